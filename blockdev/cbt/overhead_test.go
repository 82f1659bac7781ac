package cbt

import (
	"encoding/json"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"testing"

	"github.com/moverd/mover/internal/looptest"
)

// BenchmarkOverhead runs fio with 4 KiB random writes in pairs, without and with a tracker, in turns, and reports the median of the ratios
// of their rates. PAIRS sets how many; SECONDS how long each run takes.
func BenchmarkOverhead(b *testing.B) {
	looptest.NeedRoot(b)
	number := func(name string, otherwise int) int {
		if n, err := strconv.Atoi(os.Getenv(name)); err == nil {
			return n
		}
		return otherwise
	}
	pairs, seconds := number("PAIRS", 1), number("SECONDS", 1)
	const size = 1 << 30
	l := looptest.New(b, size, looptest.Options{DirectIO: true})
	o := Options{Name: b.Name(), Map: wholeMap(devOf(b, l.Dev), size), Size: size, PinDir: testPins()}
	looptest.Run(b, "fio", "--name=fill", "--filename="+l.Dev, "--direct=1", "--rw=write", "--bs=1M", "--size=1g", "--ioengine=libaio", "--iodepth=4")
	for b.Loop() {
		var ratios, without []float64
		for i := range pairs {
			plain, tracked := 0.0, 0.0
			run := func(with bool) {
				if with {
					tr, err := Open(o)
					if err != nil {
						b.Fatal(err)
					}
					defer tr.Remove()
					tracked = randomWrites(b, l.Dev, seconds)
				} else {
					plain = randomWrites(b, l.Dev, seconds)
				}
			}
			run(i%2 == 1) // who goes first alternates too
			run(i%2 == 0)
			ratios = append(ratios, tracked/plain)
			without = append(without, plain)
			b.Logf("pair %d: %.0f and %.0f IOPS, %.3f", i, plain, tracked, tracked/plain)
		}
		slices.Sort(ratios)
		slices.Sort(without)
		b.ReportMetric(ratios[len(ratios)/2], "ratio")
		b.ReportMetric(without[len(without)/2], "IOPS")
	}
}

// randomWrites is fio's rate in writes a second.
func randomWrites(b *testing.B, dev string, seconds int) float64 {
	b.Helper()
	out, err := exec.Command("fio", "--name=w", "--filename="+dev, "--direct=1", "--rw=randwrite", "--bs=4k", "--ioengine=libaio", "--iodepth=16",
		"--numjobs=2", "--group_reporting", "--time_based", "--runtime="+strconv.Itoa(seconds), "--norandommap", "--output-format=json").Output()
	if err != nil {
		b.Fatal(err)
	}
	var r struct {
		Jobs []struct {
			Write struct{ IOPS float64 }
		}
	}
	if err := json.Unmarshal(out, &r); err != nil || len(r.Jobs) == 0 {
		b.Fatalf("%v: %s", err, out)
	}
	return r.Jobs[0].Write.IOPS
}
