// Marks what changed on one disk, when a request (or a part of it) completes and before its submitter learns of it (C1).
//
// One source, two objects. By default a granule is one bit, set by an atomic OR; with -DBYTEMAP it is one byte, set by a plain
// store, for kernels whose BPF has no atomics.
//
// A second program notes each write in `flight` when it is issued; its completion takes the note away. The kernel skips a program that is
// already running on the CPU, as when an interrupt completes a request inside another completion. A note that stays is a write whose
// completion was skipped: it stands for dirty granules until the same request is issued again and marks them.
//
// What is tracked is fixed in constants before loading: a disk, its sectors [start, start+length), and the granule's size.

#include "kernel.h"

#define OP_MASK 0xff
#define NO_SECTOR (~0ULL)

#ifdef BYTEMAP
#define PER_WORD 8 // granules in one 64-bit word of `dirty` and of `coarse`
#else
#define PER_WORD 64
#endif
#define UNIT_WORDS 64                    // words of `dirty` that one granule of `coarse` stands for
#define UNIT (UNIT_WORDS * PER_WORD)     // granules that one granule of `coarse` stands for
#define SHORT_WORDS (2 * UNIT_WORDS)     // a range that fits in so many words is marked without `coarse`
#define COARSE_WORDS 260                 // 4 GiB (a request's limit) at granules of 4 KiB, in words of `coarse`
#define MAX_BIOS 256                     // ranges of one merged discard that drivers allow

volatile const int major, first_minor;
volatile const u64 start, length; // sectors of 512 bytes
volatile const u32 shift;         // a granule is 1 << shift sectors
volatile const u32 depth, queues; // requests of one hardware queue, and number of these

// cell is what one CPU has seen: 64 bytes, a cache line of its own. All only grow.
struct cell {
	u64 written;   // bytes, counted as the kernel counts writes: everything but discards
	u64 discarded; // bytes
	u64 passed;    // pass-through writes, whose range nobody knows
	u64 overflow;  // requests that could not be marked whole
	u64 unused[4];
};

// note is a write that was issued and has not been seen complete.
struct note {
	u64 issued; // time, which tells one use of a request from another; 0: no note
	u64 sector;
	u32 bytes;
	u32 kind;
};

enum { WRITTEN, DISCARDED, DISCARDED_MANY };

struct control {
	u64 miss; // counts down at each write; at 1 its completion is dropped, and its note too
	u64 skip; // the same, but the note stays
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, 1);
	__type(key, u32);
	__type(value, u64);
} dirty SEC(".maps"), coarse SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, 1);
	__type(key, u32);
	__type(value, struct cell);
} cells SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, 1);
	__type(key, u32);
	__type(value, struct note);
} flight SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, 1);
	__type(key, u32);
	__type(value, struct control);
} control SEC(".maps");

#ifdef BYTEMAP

static __always_inline int set_byte(void *map, u64 granule)
{
	u32 key = granule / PER_WORD;
	u64 *word = bpf_map_lookup_elem(map, &key);
	if (!word)
		return 1;
	((volatile u8 *)word)[granule % PER_WORD] = 1;
	return 0;
}

// edge marks granules [first, end) up to a word's end.
static __always_inline u64 edge(void *map, u64 first, u64 end)
{
	for (int i = 0; i < PER_WORD - 1; i++) {
		if (first >= end || !(first % PER_WORD) || set_byte(map, first))
			break;
		first++;
	}
	return first;
}

// fill marks granules [first, end) of a map, at most `words` words of it, and returns where it stopped.
static __always_inline u64 fill(void *map, u64 first, u64 end, u32 words)
{
	first = edge(map, first, end);
	for (u32 i = 0; i < words; i++) {
		if (first + PER_WORD > end)
			break;
		u32 key = first / PER_WORD;
		u64 *word = bpf_map_lookup_elem(map, &key);
		if (!word)
			return first;
		*(volatile u64 *)word = 0x0101010101010101ULL;
		first += PER_WORD;
	}
	if (first < end && !(first % PER_WORD) && !set_byte(map, first))
		first++;
	return edge(map, first, end);
}

#else

// set marks n granules of a word, from granule bit on.
static __always_inline void set(u64 *word, u32 bit, u32 n)
{
	u64 mask = (~0ULL >> ((64 - n) & 63)) << (bit & 63);
	if ((*(volatile u64 *)word & mask) != mask)
		__sync_fetch_and_or(word, mask);
}

// fill marks granules [first, end) of a map, at most `words` words of it, and returns where it stopped.
static __always_inline u64 fill(void *map, u64 first, u64 end, u32 words)
{
	for (u32 i = 0; i < words; i++) {
		if (first >= end)
			break;
		u32 key = first / PER_WORD;
		u32 bit = first % PER_WORD;
		u32 n = PER_WORD - bit;
		if (end - first < n)
			n = end - first;
		u64 *word = bpf_map_lookup_elem(map, &key);
		if (!word)
			break;
		set(word, bit, n);
		first += n;
	}
	return first;
}

#endif

// The functions from here on are not static where that spares the verifier work: it then checks each once, by itself. They return 0 when
// all is marked.

__attribute__((noinline)) int fill_dirty(u64 first, u64 end)
{
	return fill(&dirty, first, end, SHORT_WORDS) < end;
}

__attribute__((noinline)) int fill_coarse(u64 first, u64 end)
{
	return fill(&coarse, first, end, COARSE_WORDS) < end;
}

// mark_many marks granules [first, end). A long range gets its whole units marked in `coarse`, so that a discard of 4 GiB costs a few
// hundred words.
__attribute__((noinline)) int mark_many(u64 first, u64 end)
{
	if (end - first <= (SHORT_WORDS - 1) * PER_WORD)
		return fill_dirty(first, end);
	u64 unit = (first + UNIT - 1) / UNIT, last = end / UNIT;
	return fill_dirty(first, unit * UNIT) | fill_coarse(unit, last) | fill_dirty(last * UNIT, end);
}

// mark marks the granules of bytes at sector that lie in the tracked range, and returns 0 when all of them are.
static __always_inline int mark(u64 sector, u32 bytes)
{
	u64 end = sector + ((u64)bytes + 511) / 512;
	if (sector < start)
		sector = start;
	if (end > start + length)
		end = start + length;
	if (sector >= end)
		return 0;
	u64 first = (sector - start) >> shift;
	u64 last = (end - 1 - start) >> shift;
#ifdef BYTEMAP
	if (first == last)
		return set_byte(&dirty, first);
#else
	if (first / PER_WORD == last / PER_WORD) {
		u32 key = first / PER_WORD;
		u64 *word = bpf_map_lookup_elem(&dirty, &key);
		if (!word)
			return 1;
		set(word, first % PER_WORD, last - first + 1);
		return 0;
	}
#endif
	return mark_many(first, last + 1);
}

__attribute__((noinline)) int mark_bio(u64 sector, u32 bytes)
{
	return mark(sector, bytes);
}

// mark_discard marks each bio of a discard for itself: drivers merge discards that do not touch each other, and the request then has the
// first one's sector and the sum of the lengths. What completes now has not been advanced past yet. More bios than any driver takes
// ranges are merged only where they touch each other: then the last one ends where the sum does.
static __always_inline int mark_discard(struct request *rq, u64 sector, u32 bytes)
{
	struct bio *bio = rq->bio, *tail = rq->biotail;
	int bad = 0;
	if (!bio)
		return mark(sector, bytes);
	for (u32 i = 0; i < MAX_BIOS; i++) {
		if (!bio)
			return bad;
		bad |= mark_bio(bio->bi_iter.bi_sector, bio->bi_iter.bi_size);
		bio = bio->bi_next;
	}
	if (!bio)
		return bad;
	if (tail->bi_iter.bi_sector + tail->bi_iter.bi_size / 512 != sector + bytes / 512)
		return 1;
	return mark_bio(sector, bytes);
}

// note_of gives the place for a request's note: it belongs to the request for as long as the disk lives. NULL: there is none.
static __always_inline struct note *note_of(struct request *rq)
{
	u32 tag = rq->internal_tag >= 0 ? rq->internal_tag : rq->tag;
	u32 queue = rq->mq_hctx->queue_num;
	if (tag >= depth || queue >= queues)
		return NULL;
	u32 key = queue * depth + tag;
	return bpf_map_lookup_elem(&flight, &key);
}

static __always_inline void count(struct cell *c, int discard, u32 bytes)
{
	if (discard)
		__sync_fetch_and_add(&c->discarded, bytes);
	else
		__sync_fetch_and_add(&c->written, bytes);
}

// settle marks and counts the first bytes of a note, which have completed without being seen.
static __always_inline void settle(struct cell *c, struct note *n, u32 bytes)
{
	int bad = n->kind == DISCARDED_MANY;
	bad |= mark_bio(n->sector, bytes);
	if (bad)
		__sync_fetch_and_add(&c->overflow, 1);
	count(c, n->kind != WRITTEN, bytes);
}

// land takes the completed bytes at sector off a request's note. Parts of a request complete in order: what the note still has before
// sector was skipped.
static __always_inline void land(struct request *rq, struct cell *c, u64 sector, u32 bytes)
{
	struct note *n = note_of(rq);
	if (!n || !n->issued || n->issued != rq->start_time_ns)
		return;
	u32 before = (sector - n->sector) * 512;
	if (before && before < n->bytes)
		settle(c, n, before);
	else
		before = 0;
	if (before + bytes >= n->bytes) {
		*(volatile u64 *)&n->issued = 0;
		return;
	}
	n->sector = sector + bytes / 512; // in this order what is left is always covered
	barrier();
	n->bytes -= before + bytes;
}

// dropped tells whether a forced miss drops the completion; for tests.
static __always_inline int dropped(struct request *rq)
{
	u32 zero = 0;
	struct control *ctl = bpf_map_lookup_elem(&control, &zero);
	if (!ctl)
		return 0;
	u64 miss = *(volatile u64 *)&ctl->miss, skip = *(volatile u64 *)&ctl->skip;
	if (!(miss | skip))
		return 0;
	if (miss)
		*(volatile u64 *)&ctl->miss = miss - 1;
	if (skip)
		*(volatile u64 *)&ctl->skip = skip - 1;
	if (miss != 1 && skip != 1)
		return 0;
	if (miss == 1) {
		struct note *n = note_of(rq);
		if (n)
			*(volatile u64 *)&n->issued = 0;
	}
	return 1;
}

static __always_inline struct gendisk *disk_of(struct request *rq)
{
	struct request___old *old = (void *)rq;
	if (bpf_core_field_exists(old->rq_disk))
		return old->rq_disk;
	return rq->q->disk;
}

static __always_inline int is_pass_through(u32 op, u64 sector)
{
	if (sector == NO_SECTOR || op == OP(DRV_OUT))
		return 1;
	return bpf_core_enum_value_exists(enum req_opf, REQ_OP_SCSI_OUT___old) &&
	       op == bpf_core_enum_value(enum req_opf, REQ_OP_SCSI_OUT___old);
}

static __always_inline int is_ours(struct request *rq)
{
	struct gendisk *disk = disk_of(rq);
	return disk->first_minor == first_minor && disk->major == major;
}

static __always_inline struct cell *own_cell(void)
{
	u32 cpu = bpf_get_smp_processor_id();
	return bpf_map_lookup_elem(&cells, &cpu);
}

// (request, error, bytes); a failed write may have changed the medium too, so errors count as well.
SEC("tp_btf/block_rq_complete")
int complete(u64 *ctx)
{
	struct request *rq = (void *)ctx[0];
	u32 bytes = ctx[2];
	if (!is_ours(rq))
		return 0;
	u32 op = rq->cmd_flags & OP_MASK;
	if (!(op & 1)) // reads and flushes
		return 0;
	u64 sector = rq->__sector;
	int passed = is_pass_through(op, sector);
	if (!bytes && !passed)
		return 0;
	struct cell *c = own_cell();
	if (!c)
		return 0; // not counted: the witness tells
	if (dropped(rq))
		return 0;

	if (passed) {
		__sync_fetch_and_add(&c->passed, 1);
		return 0;
	}
	int discard = op == OP(DISCARD), bad;
	if (discard || op == OP(SECURE_ERASE))
		bad = mark_discard(rq, sector, bytes);
	else
		bad = mark(sector, bytes);
	if (bad)
		__sync_fetch_and_add(&c->overflow, 1);
	count(c, discard, bytes); // before the note goes: the witness reads notes first
	land(rq, c, sector, bytes);
	return 0;
}

// issue notes a write. A note of an earlier use of the request is of a write that has completed without being seen: what it
// wrote is marked now. A request that is issued again after it was put back only renews its note.
static __always_inline int issue(struct request *rq)
{
	if (!is_ours(rq))
		return 0;
	u32 op = rq->cmd_flags & OP_MASK, bytes = rq->__data_len;
	if (!(op & 1) || !bytes || is_pass_through(op, rq->__sector))
		return 0;
	struct note *n = note_of(rq);
	struct cell *c = own_cell();
	if (!n || !c)
		return 0;
	u64 now = rq->start_time_ns;
	if (n->issued && n->issued != now)
		settle(c, n, n->bytes);
	*(volatile u64 *)&n->issued = 0; // user space reads a note only while issued stays the same
	barrier();
	n->sector = rq->__sector;
	n->bytes = bytes;
	n->kind = WRITTEN;
	if (op == OP(DISCARD))
		n->kind = rq->bio == rq->biotail ? DISCARDED : DISCARDED_MANY;
	barrier();
	*(volatile u64 *)&n->issued = now;
	return 0;
}

// (request) from 5.11 on, (queue, request) before; one of the two is loaded.
SEC("tp_btf/block_rq_issue")
int issue1(u64 *ctx)
{
	return issue((void *)ctx[0]);
}

SEC("tp_btf/block_rq_issue")
int issue2(u64 *ctx)
{
	return issue((void *)ctx[1]);
}

char _license[] SEC("license") = "Dual MIT/GPL";
