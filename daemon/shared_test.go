package daemon

import (
	"strings"
	"testing"

	"github.com/moverd/mover/blockdev/disk"
	"github.com/moverd/mover/extent"
	"github.com/moverd/mover/internal/looptest"
)

// A filesystem that lies on the volumes of two flows is found, unless the flows stand still together.
func TestSharing(t *testing.T) {
	looptest.NeedRoot(t)
	loop := looptest.New(t, 64<<20, looptest.Options{})
	looptest.Mkfs(t, loop.Dev, "ext4")
	dir := looptest.Mount(t, loop.Dev)
	v, err := disk.OpenVolume(loop.Dev)
	if err != nil {
		t.Fatal(err)
	}
	defer v.Close()
	whole := extents(v)[0]
	half := func(i int64) extent.Map { // as two disks below one logical volume would be
		s := whole
		s.Len /= 2
		s.DevOff += i * s.Len
		s.Off = 0
		return extent.Map{s}
	}
	found, err := sharing([]part{{"a", "flow a", half(0)}, {"b", "group g", half(1)}})
	if err != nil || len(found) != 1 || !strings.Contains(found[0].text, dir) || !strings.Contains(found[0].text, "flows a and b") || len(found[0].flows) != 2 {
		t.Errorf("%+v, %v", found, err)
	}
	if found, err = sharing([]part{{"a", "group g", half(0)}, {"b", "group g", half(1)}}); err != nil || len(found) != 0 {
		t.Errorf("of one group: %+v, %v", found, err)
	}
}
