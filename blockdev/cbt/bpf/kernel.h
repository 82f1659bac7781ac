// The few kernel types that the tracker reads. Field offsets are patched when the program is loaded (CO-RE), so only names matter;
// a name behind three underscores is a flavour: the same kernel type as another release has it.

#pragma once

typedef unsigned char __u8;
typedef unsigned short __u16;
typedef unsigned int __u32;
typedef unsigned long long __u64;
typedef signed char __s8;
typedef short __s16;
typedef int __s32;
typedef long long __s64;
typedef __u16 __be16;
typedef __u32 __be32;
typedef __u64 __be64;
typedef __u32 __wsum;
typedef __u8 u8;
typedef __u32 u32;
typedef __u64 u64;

#include <bpf/bpf_helpers.h>
#include <bpf/bpf_core_read.h>

#define BPF_MAP_TYPE_ARRAY 2
#define BPF_F_MMAPABLE 1024
#define NULL ((void *)0)

#pragma clang attribute push(__attribute__((preserve_access_index)), apply_to = record)

struct gendisk {
	int major;
	int first_minor;
};

struct request_queue {
	struct gendisk *disk; // from 5.15
};

struct bvec_iter {
	u64 bi_sector;
	u32 bi_size;
} __attribute__((packed));

struct bio {
	struct bio *bi_next;
	struct bvec_iter bi_iter;
};

struct blk_mq_hw_ctx {
	u32 queue_num;
};

struct request {
	struct request_queue *q;
	struct blk_mq_hw_ctx *mq_hctx;
	u32 cmd_flags;
	int tag;
	int internal_tag; // -1 without an I/O scheduler
	u32 __data_len;
	u64 __sector;
	struct bio *bio;
	struct bio *biotail;
	u64 start_time_ns;
};

struct request___old {
	struct gendisk *rq_disk; // until 5.16
};

#pragma clang attribute pop

// Operations were renamed from enum req_opf in 6.0. Values that never moved are used as they are; these are looked up.
enum req_op {
	REQ_OP_DISCARD = 3,
	REQ_OP_SECURE_ERASE = 5,
	REQ_OP_DRV_OUT = 35,
};

enum req_opf {
	REQ_OP_DISCARD___old = 3,
	REQ_OP_SECURE_ERASE___old = 5,
	REQ_OP_DRV_OUT___old = 35,
	REQ_OP_SCSI_OUT___old = 33, // until 5.14
};

#define OP(name)                                                    \
	(bpf_core_type_exists(enum req_op)                          \
		 ? bpf_core_enum_value(enum req_op, REQ_OP_##name)  \
		 : bpf_core_enum_value(enum req_opf, REQ_OP_##name##___old))
