// Package bench is a library of workloads: it makes disks and writers, runs the real moverd and its peers on them, checks every copy
// and records what it measured. cmd/moverbench runs it.
package bench

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"sort"
	"strings"
	"text/tabwriter"
)

// Result is one measured value, a JSON line of bench/results.
type Result struct {
	Workload string  `json:"workload"`
	Subject  string  `json:"subject"`
	Metric   string  `json:"metric"`
	Value    float64 `json:"value"`
	Unit     string  `json:"unit"`
	Commit   string  `json:"commit"`
	Machine  string  `json:"machine"`
}

// Results appends measured values to a file as they come, so that a run that is cut short keeps what it had.
type Results struct {
	path            string
	commit, machine string
	All             []Result
}

// NewResults begins the file path anew.
func NewResults(path string) (*Results, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return nil, err
	}
	if err := os.WriteFile(path, nil, 0o644); err != nil {
		return nil, err
	}
	return &Results{path: path, commit: commit(), machine: machine()}, nil
}

// Add records a value.
func (r *Results) Add(workload, subject, metric string, value float64, unit string) error {
	res := Result{workload, subject, metric, value, unit, r.commit, r.machine}
	r.All = append(r.All, res)
	line, err := json.Marshal(res)
	if err != nil {
		return err
	}
	f, err := os.OpenFile(r.path, os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	if _, err := f.Write(append(line, '\n')); err != nil {
		f.Close()
		return err
	}
	return f.Close()
}

// ReadResults loads every JSON line of the files in dir.
func ReadResults(dir string) ([]Result, error) {
	files, err := filepath.Glob(filepath.Join(dir, "*.jsonl"))
	if err != nil {
		return nil, err
	}
	sort.Strings(files)
	var out []Result
	for _, name := range files {
		f, err := os.Open(name)
		if err != nil {
			return nil, err
		}
		lines := bufio.NewScanner(f)
		for lines.Scan() {
			var r Result
			if err := json.Unmarshal(lines.Bytes(), &r); err != nil {
				f.Close()
				return nil, fmt.Errorf("%s: %w", name, err)
			}
			out = append(out, r)
		}
		f.Close()
		if err := lines.Err(); err != nil {
			return nil, err
		}
	}
	return out, nil
}

// Table writes the results as a Markdown table.
func Table(w io.Writer, results []Result) error {
	tw := tabwriter.NewWriter(w, 0, 0, 1, ' ', 0)
	fmt.Fprintf(tw, "| workload\t| subject\t| metric\t| value\t| unit\t| commit\t|\n")
	fmt.Fprintf(tw, "|---\t|---\t|---\t|---\t|---\t|---\t|\n")
	for _, r := range results {
		fmt.Fprintf(tw, "| %s\t| %s\t| %s\t| %s\t| %s\t| %s\t|\n", r.Workload, r.Subject, r.Metric, number(r.Value), r.Unit, r.Commit)
	}
	return tw.Flush()
}

func number(v float64) string {
	if v == float64(int64(v)) {
		return fmt.Sprintf("%d", int64(v))
	}
	return fmt.Sprintf("%.4g", v)
}

func commit() string {
	out, err := exec.Command("git", "rev-parse", "--short", "HEAD").Output()
	if err != nil {
		return "unknown"
	}
	return strings.TrimSpace(string(out))
}

// machine describes the hardware without naming the host.
func machine() string {
	model := "unknown CPU"
	if b, err := os.ReadFile("/proc/cpuinfo"); err == nil {
		for line := range strings.Lines(string(b)) {
			if k, v, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(k) == "model name" {
				model = strings.TrimSpace(v)
				break
			}
		}
	}
	kernel := ""
	if b, err := os.ReadFile("/proc/sys/kernel/osrelease"); err == nil {
		kernel, _, _ = strings.Cut(strings.TrimSpace(string(b)), "-")
	}
	return fmt.Sprintf("%s, %d cores, Linux %s", model, runtime.NumCPU(), kernel)
}

// Median of the values; 0 of none.
func Median(values []float64) float64 {
	if len(values) == 0 {
		return 0
	}
	s := append([]float64(nil), values...)
	sort.Float64s(s)
	if n := len(s); n%2 == 0 {
		return (s[n/2-1] + s[n/2]) / 2
	}
	return s[len(s)/2]
}

// MedianInterval is a confidence interval of at least 95 % of the median, from the order of the values alone: nothing is assumed about how they
// scatter. Of fewer than 6 values it is all of them.
func MedianInterval(values []float64) (lo, hi float64) {
	n := len(values)
	if n == 0 {
		return 0, 0
	}
	s := append([]float64(nil), values...)
	sort.Float64s(s)
	// P(X <= k) of a binomial distribution with p = 1/2: the chance that the median lies below the (k+1)-th value.
	p, sum, k := 1.0, 0.0, 0
	for range n {
		p /= 2
	}
	for sum+p <= 0.025 && k < n/2 {
		sum += p
		p = p * float64(n-k) / float64(k+1)
		k++
	}
	k = max(k-1, 0)
	return s[k], s[n-1-k]
}
