package disk

import (
	"fmt"
	"os"
	"strings"
	"testing"
)

// TestMain fails when open devices and images are left behind.
func TestMain(m *testing.M) {
	code := m.Run()
	if left := openFiles(); code == 0 && len(left) > 0 {
		fmt.Printf("left open: %v\n", left)
		code = 1
	}
	os.Exit(code)
}

func openFiles() (out []string) {
	list, _ := os.ReadDir("/proc/self/fd")
	for _, e := range list {
		to, err := os.Readlink("/proc/self/fd/" + e.Name())
		if err == nil && (strings.HasPrefix(to, "/dev/loop") || strings.HasPrefix(to, "/proc/") || strings.Contains(to, "looptest-")) {
			out = append(out, to)
		}
	}
	return out
}
