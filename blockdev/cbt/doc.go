// Package cbt tracks changed blocks with eBPF: programs that mark, at completion, in pinned bitmaps, what was written to the leaf
// disks of a volume (C1). docs/tracking.md tells the method, what it needs from a kernel, and what ends a history.
//
// One Tracker has, for each leaf disk, a program on completions, one on issues, and these maps:
//
//	dirty    one bit (or byte) per granule, set by the programs
//	coarse   one bit (or byte) per 64 words of dirty, set for long discards
//	taken    one bit per granule: taken and not retired; user space only
//	cells    per CPU: bytes that the programs saw, for the witness
//	flight   notes of writes that were issued and not seen complete
//	control  forced misses, for tests
//
// and one state map for the whole: generation, epochs, what the maps belong to. All are pinned below PinDir/NAME, the state last, so
// that a kill at any moment leaves either everything or something that is known to be incomplete.
package cbt
