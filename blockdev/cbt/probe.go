package cbt

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/btf"
	"github.com/cilium/ebpf/link"
	"github.com/cilium/ebpf/rlimit"
	"golang.org/x/sys/unix"
)

// Methods and variants that Probe names.
const (
	MethodEBPF     = "ebpf"
	MethodScan     = "scan"
	VariantBitmap  = "bitmap"  // a granule is a bit
	VariantBytemap = "bytemap" // a granule is a byte: the kernel's BPF has no atomics
)

// Support is what this kernel can do.
type Support struct {
	Method  string // MethodEBPF or MethodScan
	Variant string // with MethodEBPF
	Reason  string // why it is not something better, "" when it is the best
}

// Probe tries what a tracker needs, once per process; it never looks at a version.
var Probe = sync.OnceValue(func() Support {
	if _, err := btf.LoadKernelSpec(); err != nil {
		return Support{Method: MethodScan, Reason: fmt.Sprintf("the kernel has no BTF (CONFIG_DEBUG_INFO_BTF): %v", err)}
	}
	if err := allowMemory(); err != nil {
		return Support{Method: MethodScan, Reason: err.Error()}
	}
	first := tryVariant(VariantBitmap)
	if first == nil {
		return Support{Method: MethodEBPF, Variant: VariantBitmap}
	}
	if errors.Is(first, os.ErrPermission) {
		return Support{Method: MethodScan, Reason: "loading eBPF is not permitted: run as root or with CAP_BPF, CAP_PERFMON and CAP_SYS_ADMIN, without kernel lockdown"}
	}
	if err := tryVariant(VariantBytemap); err != nil {
		return Support{Method: MethodScan, Reason: fmt.Sprintf("the kernel does not take the program: %s", lastLine(err))}
	}
	return Support{Method: MethodEBPF, Variant: VariantBytemap, Reason: "the kernel's eBPF has no atomics: " + lastLine(first)}
})

// tryVariant loads and attaches the program for a disk that does not exist, maps a map into memory, and takes all away again.
func tryVariant(variant string) error {
	p := &plan{variant: variant, granule: minGranule}
	lp := &leafPlan{length: minGranule, granules: 1}
	spec, err := loadSpec(p, lp)
	if err != nil {
		return err
	}
	c, err := ebpf.NewCollection(spec)
	if err != nil {
		return err
	}
	defer c.Close()
	for _, name := range leafLinks {
		l, err := link.AttachTracing(link.TracingOptions{Program: c.Programs[name]})
		if err != nil {
			return err
		}
		defer l.Close()
		if _, err := l.Info(); err != nil { // before 5.8 there are no links to ask or pin
			return err
		}
	}
	mem, err := mapMemory(c.Maps["dirty"], 0, 8)
	if err == nil {
		err = unix.Munmap(mem)
	}
	return err
}

// allowMemory lifts the limit on locked memory where maps count against it (before 5.11).
func allowMemory() error {
	if err := rlimit.RemoveMemlock(); err != nil {
		return fmt.Errorf("lift the limit on locked memory, as this kernel needs for maps (CAP_SYS_RESOURCE): %w", err)
	}
	return nil
}

// lastLine is the first line of an error, which names what was refused; a verifier's log follows it.
func lastLine(err error) string {
	s, _, _ := strings.Cut(err.Error(), "\n")
	return s
}

// ForceMiss makes the programs of all disks of a pinned tracker neither mark nor count the n-th write from now (1 is the next), as if
// the kernel had skipped them; 0 takes that back. For tests and soak: a real gap that has to be detected (C2).
func ForceMiss(pinDir, name string, n int) error {
	return force(pinDir, name, control{miss: uint64(n)})
}

// ForceSkip is ForceMiss for the completion only: the write stays noted as underway, and nothing is lost. For tests.
func ForceSkip(pinDir, name string, n int) error {
	return force(pinDir, name, control{skip: uint64(n)})
}

func force(pinDir, name string, c control) error {
	dir := filepath.Join(pinDir, pinName(name))
	pins, err := filepath.Glob(filepath.Join(dir, "disk*-control"))
	if err != nil || len(pins) == 0 {
		return fmt.Errorf("no tracker %s is pinned below %s: %w", name, pinDir, os.ErrNotExist)
	}
	for _, pin := range pins {
		m, err := ebpf.LoadPinnedMap(pin, nil)
		if err != nil {
			return err
		}
		err = m.Put(uint32(0), [2]uint64{c.miss, c.skip})
		if err = errors.Join(err, m.Close()); err != nil {
			return err
		}
	}
	return nil
}
