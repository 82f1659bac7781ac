package s3

import (
	"encoding/hex"
	"testing"
)

func TestSums(t *testing.T) {
	for name, want := range map[string]string{"Crc32": "cbf43926", "Crc32c": "e3069283", "Crc64nvme": "ae8b14860a799888", "Sha1": "f7c3bc1d808e04732adf679965ccc34ca7ae3441"} {
		h := newSum(name)
		h.Write([]byte("123456789"))
		if got := hex.EncodeToString(h.Sum(nil)); got != want {
			t.Errorf("%s is %s, want %s", name, got, want)
		}
	}
}

func TestClimbs(t *testing.T) {
	for key, want := range map[string]bool{"a": false, "..": true, "a/..": false, "a/../..": true, "../a": true, "a/../b/../c": false, "/..": true, "./..": true, "a//../..": true, "..a/...": false} {
		if climbs(key) != want {
			t.Errorf("%q: %v", key, !want)
		}
	}
}
