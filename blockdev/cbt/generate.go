package cbt

// The objects are committed; the same clang gives the same bytes. CI compares.

//go:generate go run github.com/cilium/ebpf/cmd/bpf2go -cc clang-14 -strip llvm-strip-14 -target bpfel -no-global-types bitmap bpf/track.c -- -O2 -mcpu=v3 -Wall -Wextra -Werror -Wno-unused-parameter
//go:generate go run github.com/cilium/ebpf/cmd/bpf2go -cc clang-14 -strip llvm-strip-14 -target bpfel -no-global-types bytemap bpf/track.c -- -O2 -mcpu=v3 -DBYTEMAP -Wall -Wextra -Werror -Wno-unused-parameter
