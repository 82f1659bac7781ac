package lvm

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/moverd/mover/internal/sentinel"
)

func recorded(t *testing.T, name string) []byte {
	t.Helper()
	b, err := os.ReadFile(filepath.Join("testdata", name))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// TestReports reads what LVM 2.03.16 said of a group with a linear volume over two disks, a thin pool, a thin volume and a snapshot of it.
func TestReports(t *testing.T) {
	all, err := parseVolumes(recorded(t, "lvs.json"))
	if err != nil {
		t.Fatal(err)
	}
	by := map[string]Volume{}
	for _, v := range all {
		if _, twice := by[v.Name]; twice {
			t.Errorf("%s is told twice", v.Name)
		}
		by[v.Name] = v
	}
	if v := by["lin"]; v.Type != "linear" || v.Size != 200<<20 || v.VG != "vg" || v.Time.Unix() < 1_700_000_000 || v.Health != "" {
		t.Errorf("%+v", v)
	}
	if v := by["pool"]; v.Type != "thin-pool" || v.Data <= 0 || v.Metadata <= 0 || v.Data > 100 {
		t.Errorf("%+v", v)
	}
	if v := by["s"]; v.Type != "thin" || v.Origin != "v" || v.Pool != "pool" || !slices.Equal(v.Tags, []string{"mover.flow=acme/db1/root", "mover.owner=0123456789abcdef"}) {
		t.Errorf("%+v", v)
	}
	if _, ok := by["pool_tdata"]; !ok {
		t.Errorf("hidden volumes are not told: %v", by)
	}
	groups, err := parseGroups(recorded(t, "vgs.json"))
	if err != nil || len(groups) != 1 || groups[0].Name != "vg" || groups[0].Free <= 0 || groups[0].Extent != 4<<20 || groups[0].Shared {
		t.Errorf("%+v, %v", groups, err)
	}
	for _, bad := range []string{"", "{", `{"report":[{"seg":[{"lv_name":"x","lv_size":"12m"}]}]}`, `{"report":[{"seg":[{"lv_name":"x","lv_size":"1","lv_time":"1","data_percent":"a"}]}]}`} {
		if v, err := parseVolumes([]byte(bad)); err == nil {
			t.Errorf("%q: %+v", bad, v)
		}
	}
}

func TestNames(t *testing.T) {
	for name, want := range map[string][2]string{
		"vg-lv": {"vg", "lv"}, "my--vg-my--lv": {"my-vg", "my-lv"}, "a-b--": {"a", "b-"}, "vg-lv-real": {}, "vg": {}, "": {}, "-lv": {}, "mover-snap-0123-real": {},
	} {
		vg, lv, ok := Split(name)
		if vg != want[0] || lv != want[1] || ok != (want[0] != "") {
			t.Errorf("%q: %q %q %v", name, vg, lv, ok)
		}
		if ok && Mapped(vg, lv) != name {
			t.Errorf("%q: %q", name, Mapped(vg, lv))
		}
	}
	for _, bad := range []string{"", "-x", ".", "..", "a/b", "a b", "a;b", "a@b", strings.Repeat("x", 128)} {
		if err := Check(bad); !errors.Is(err, sentinel.ErrUsage) {
			t.Errorf("%q: %v", bad, err)
		}
		if _, err := Volumes(context.Background(), bad); bad != "" && !errors.Is(err, sentinel.ErrUsage) {
			t.Errorf("%q reached a command: %v", bad, err)
		}
	}
	if got := Tag("mover.flow=acme/db 1/r;o,o$t\n" + strings.Repeat("x", 300)); !strings.HasPrefix(got, "mover.flow=acme/db_1/r_o_o_t_x") || len(got) != 200 {
		t.Error(got)
	}
}

// TestRun stands a script in for LVM: what it is given, and what is made of its answers.
func TestRun(t *testing.T) {
	dir := t.TempDir()
	script := "#!/bin/sh\nprintf '%s\\n' \"$@\" > " + dir + "/args\n[ \"$1\" = slow ] && { sleep 1; touch " + dir + "/slow; exit 0; }\necho '  WARNING: noise' >&2\necho '  Logical volume in use: vg/x' >&2\nexit 5\n"
	if err := os.WriteFile(filepath.Join(dir, "lvm"), []byte(script), 0o700); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", dir+":"+os.Getenv("PATH"))
	if !Installed() {
		t.Fatal("not found")
	}
	err := Run(context.Background(), nil, "lvremove", "vg/$(touch x); x")
	if err == nil || !strings.Contains(err.Error(), "lvm lvremove: exit status 5: Logical volume in use: vg/x") || strings.Contains(err.Error(), "noise") {
		t.Error(err)
	}
	args, _ := os.ReadFile(filepath.Join(dir, "args"))
	if !strings.HasPrefix(string(args), "lvremove\nvg/$(touch x); x\n--config\n") {
		t.Errorf("arguments %q", args)
	}
	// A command that changes something is not killed when nobody waits any more.
	ctx, cancel := context.WithTimeout(context.Background(), 100*time.Millisecond)
	defer cancel()
	ended := make(chan struct{})
	if err := Run(ctx, func() { close(ended) }, "slow"); !errors.Is(err, context.DeadlineExceeded) {
		t.Error(err)
	}
	<-ended
	if _, err := os.Stat(filepath.Join(dir, "slow")); err != nil {
		t.Error("the command was cut off")
	}
}

func TestLock(t *testing.T) {
	const vg = "mover-lock-test"
	path := filepath.Join(lockDir, "V_"+vg)
	t.Cleanup(func() { os.Remove(path) })
	unlock, err := Lock(context.Background(), vg)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Millisecond)
	defer cancel()
	if _, err := Lock(ctx, vg); !errors.Is(err, sentinel.ErrRefused) {
		t.Errorf("two had the lock: %v", err)
	}
	os.Remove(path) // as LVM's commands do when they unlock
	second, err := Lock(context.Background(), vg)
	if err != nil {
		t.Fatal(err)
	}
	unlock()
	second()
	if third, err := Lock(context.Background(), vg); err != nil {
		t.Error(err)
	} else {
		third()
	}
	if _, err := Lock(context.Background(), "../x"); !errors.Is(err, sentinel.ErrUsage) {
		t.Error(err)
	}
}
