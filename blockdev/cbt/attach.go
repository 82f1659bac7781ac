package cbt

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"unsafe"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/btf"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"
)

const (
	coarseWords = 64     // words of dirty that one granule of coarse stands for; as in bpf/track.c
	mmapable    = 0x0400 // BPF_F_MMAPABLE
)

// cell is struct cell of bpf/track.c.
type cell struct {
	written, discarded, passed, overflow uint64
	_                                    [4]uint64
}

// note is struct note of bpf/track.c.
type note struct {
	issued, sector uint64
	bytes, kind    uint32
}

const kindWritten, kindDiscarded = 0, 1 // others do not tell their ranges

// control is struct control of bpf/track.c.
type control struct{ miss, skip uint64 }

// attach replaces whatever is pinned by new maps and programs, and begins a generation.
func (t *Tracker) attach() (err error) {
	defer func() {
		if err != nil {
			removePins(t.dir) // no half of it stays in the kernel
		}
	}()
	if err := removePins(t.dir); err != nil {
		return fmt.Errorf("clear %s: %w", t.dir, err)
	}
	if err := allowMemory(); err != nil {
		return err
	}
	for i := range t.plan.leaves {
		l, err := attachLeaf(t.dir, t.plan, i)
		if err != nil {
			return fmt.Errorf("attach to %s: %w", t.plan.leaves[i].disk, err)
		}
		t.leaves = append(t.leaves, l)
	}
	m, err := ebpf.NewMap(&ebpf.MapSpec{Name: "mover_state", Type: ebpf.Array, KeySize: 4, ValueSize: stateSize, MaxEntries: 1, Flags: mmapable})
	if err != nil {
		return fmt.Errorf("make the state map: %w", err)
	}
	defer m.Close()
	if err := t.mapState(m); err != nil {
		return err
	}
	t.st.fill(t.plan)
	t.bind()
	t.st.Generation = newID()
	t.st.Ready = 1
	if err := m.Pin(filepath.Join(t.dir, statePin)); err != nil { // last: now the whole is there
		return fmt.Errorf("pin the state: %w", err)
	}
	return nil
}

func (t *Tracker) mapState(m *ebpf.Map) error {
	mem, err := mapMemory(m, 0, stateSize)
	if err != nil {
		return err
	}
	t.stMem = mem
	t.st = (*state)(unsafe.Pointer(&mem[0]))
	return nil
}

// bind gives each leaf its part of the state.
func (t *Tracker) bind() {
	for i, l := range t.leaves {
		l.st = &t.st.Leaf[i]
	}
}

// adopt takes over what is pinned, or says why it cannot be.
func (t *Tracker) adopt() string {
	m, err := ebpf.LoadPinnedMap(filepath.Join(t.dir, statePin), nil)
	if errors.Is(err, os.ErrNotExist) {
		return "nothing complete is pinned"
	}
	if err != nil {
		return fmt.Sprintf("the pinned state cannot be opened: %v", err)
	}
	defer m.Close()
	if m.ValueSize() != stateSize {
		return "what is pinned is of another version"
	}
	if err := t.mapState(m); err != nil {
		return err.Error()
	}
	if why := t.st.unlike(t.plan); why != "" {
		return why
	}
	for i := range t.plan.leaves {
		l, err := adoptLeaf(t.dir, t.plan, i)
		if err != nil {
			return err.Error()
		}
		t.leaves = append(t.leaves, l)
	}
	t.bind()
	return ""
}

// loadSpec prepares the program's object for one leaf.
func loadSpec(p *plan, lp *leafPlan) (*ebpf.CollectionSpec, error) {
	load := loadBitmap
	if p.variant == VariantBytemap {
		load = loadBytemap
	}
	spec, err := load()
	if err != nil {
		return nil, err
	}
	for name, v := range map[string]any{
		"major": int32(unix.Major(lp.disk.dev)), "first_minor": int32(unix.Minor(lp.disk.dev)),
		"start": uint64(lp.start / 512), "length": uint64((lp.length + 511) / 512), "shift": p.shift(),
		"depth": uint32(lp.depth), "queues": uint32(lp.queues),
	} {
		if err := spec.Variables[name].Set(v); err != nil {
			return nil, fmt.Errorf("set %s: %w", name, err)
		}
	}
	per := perWord(p.variant)
	dirty := words(lp.granules, per)
	spec.Maps["dirty"].MaxEntries = uint32(dirty)
	spec.Maps["coarse"].MaxEntries = uint32(words(words(dirty, coarseWords), per))
	spec.Maps["flight"].MaxEntries = uint32(max(1, lp.depth*lp.queues))
	spec.Maps["cells"].MaxEntries = uint32(ebpf.MustPossibleCPU())
	return spec, pickIssue(spec)
}

// pickIssue keeps the one of the two issue programs whose arguments are those of this kernel's tracepoint.
func pickIssue(spec *ebpf.CollectionSpec) error {
	kernel, err := btf.LoadKernelSpec()
	if err != nil {
		return err
	}
	var def *btf.Typedef
	if err := kernel.TypeByName("btf_trace_block_rq_issue", &def); err != nil {
		return err
	}
	ptr, _ := def.Type.(*btf.Pointer)
	if ptr == nil {
		return errors.New("the kernel's block_rq_issue is not a function")
	}
	proto, _ := ptr.Target.(*btf.FuncProto)
	if proto == nil || len(proto.Params) < 2 || len(proto.Params) > 3 {
		return errors.New("the kernel's block_rq_issue has unknown arguments")
	}
	name := fmt.Sprintf("issue%d", len(proto.Params)-1) // the first is the tracepoint's own
	spec.Programs["issue"] = spec.Programs[name]
	delete(spec.Programs, "issue1")
	delete(spec.Programs, "issue2")
	return nil
}

// attachLeaf loads, attaches and pins the programs for one leaf disk.
func attachLeaf(dir string, p *plan, no int) (*leaf, error) {
	lp := &p.leaves[no]
	spec, err := loadSpec(p, lp)
	if err != nil {
		return nil, err
	}
	c, err := ebpf.NewCollection(spec)
	if err != nil {
		return nil, err
	}
	defer c.Close()
	taken, err := ebpf.NewMap(&ebpf.MapSpec{Name: "taken", Type: ebpf.Array, KeySize: 4, ValueSize: 8,
		MaxEntries: uint32(words(lp.granules, 64)), Flags: mmapable})
	if err != nil {
		return nil, err
	}
	c.Maps["taken"] = taken // closed with the collection
	for _, name := range leafMaps {
		if err := c.Maps[name].Pin(filepath.Join(dir, pinOf(no, name))); err != nil {
			return nil, fmt.Errorf("pin: %w", err)
		}
	}
	for _, name := range leafLinks {
		if err := attachProgram(c.Programs[name], filepath.Join(dir, pinOf(no, name))); err != nil {
			return nil, err
		}
	}
	return openLeaf(p, lp, c.Maps)
}

// attachProgram attaches a program and leaves the link to its pin: without the pin the kernel detaches.
func attachProgram(prog *ebpf.Program, pin string) error {
	l, err := link.AttachTracing(link.TracingOptions{Program: prog})
	if err != nil {
		return err
	}
	defer l.Close()
	if err := l.Pin(pin); err != nil {
		return fmt.Errorf("pin: %w", err)
	}
	return nil
}

func adoptLeaf(dir string, p *plan, no int) (*leaf, error) {
	lp := &p.leaves[no]
	maps := map[string]*ebpf.Map{}
	defer func() {
		for _, m := range maps {
			m.Close()
		}
	}()
	for _, name := range leafMaps {
		m, err := ebpf.LoadPinnedMap(filepath.Join(dir, pinOf(no, name)), nil)
		if err != nil {
			return nil, fmt.Errorf("pinned map %s of %s is gone: %w", name, lp.disk, err)
		}
		maps[name] = m
	}
	for _, name := range leafLinks {
		if err := checkLink(filepath.Join(dir, pinOf(no, name)), maps); err != nil {
			return nil, fmt.Errorf("pinned link %s of %s: %w", name, lp.disk, err)
		}
	}
	return openLeaf(p, lp, maps)
}

// checkLink proves that a pinned link holds a loaded program that marks in these maps.
func checkLink(pin string, maps map[string]*ebpf.Map) error {
	l, err := link.LoadPinnedLink(pin, nil)
	if err != nil {
		return err
	}
	defer l.Close()
	li, err := l.Info()
	if err != nil {
		return err
	}
	prog, err := ebpf.NewProgramFromID(li.Program)
	if err != nil {
		return fmt.Errorf("its program is gone: %w", err)
	}
	defer prog.Close()
	pi, err := prog.Info()
	if err != nil {
		return err
	}
	ids, ok := pi.MapIDs()
	if !ok {
		return errors.New("the kernel does not tell its maps")
	}
	for _, name := range []string{"dirty", "cells", "flight"} {
		mi, err := maps[name].Info()
		if err != nil {
			return err
		}
		if id, _ := mi.ID(); !slices.Contains(ids, id) {
			return fmt.Errorf("its program does not use the pinned map %s", name)
		}
	}
	return nil
}

func mapMemory(m *ebpf.Map, off, n int64) ([]byte, error) {
	mem, err := unix.Mmap(m.FD(), off, int(n), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return nil, fmt.Errorf("map %d bytes of %s into memory: %w", n, m, err)
	}
	return mem, nil
}
