package bench

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/moverd/mover/mover"
)

// monitored bounds each wait of Monitoring: three scrapes and evaluations take a second.
const monitored = 60 * time.Second

// whiles are metrics that are shown only while something goes on, so that a scrape at rest lacks them.
var whiles = regexp.MustCompile(`^mover_(pass_|group_)`)

// Monitoring has a real Prometheus scrape both daemons with the rules as they are, and with the same rules whose times are cut to a
// second: every metric that rules and dashboard name must be there, alerts must fire when the gateway is killed and resolve afterwards.
func Monitoring(ctx context.Context, bin, rules, dashboard string, w io.Writer) (err error) {
	say := func(format string, args ...any) { fmt.Fprintf(w, format+"\n", args...) }
	var ports [3]int
	for i := range ports {
		if ports[i], err = freePort(); err != nil {
			return err
		}
	}
	at := func(i int) string { return fmt.Sprintf("127.0.0.1:%d", ports[i]) }
	r, err := NewRig(ctx, bin, RigOptions{Create: true, Interval: "200ms", SourceMetrics: at(0), GatewayMetrics: at(1)})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, r.Close()) }()
	r.o.Volume, r.o.Target = r.path("volume"), r.path("target")
	if err := os.WriteFile(r.o.Volume, make([]byte, 8<<20), 0o600); err != nil {
		return err
	}
	if err := errors.Join(r.StartGateway(), r.StartSource()); err != nil {
		return err
	}
	if _, err := r.Await(ctx, "source", "at a point", monitored, func(s mover.Status) bool { return s.PointEpoch > 0 }); err != nil {
		return err
	}
	p, err := startPrometheus(ctx, r, rules, at(2), at(0), at(1))
	if err != nil {
		return err
	}
	named, err := p.named(rules, dashboard)
	if err != nil {
		return err
	}
	if err := p.await(ctx, "every metric that rules and dashboard name", func() (string, error) { return p.missing(ctx, named) }); err != nil {
		return err
	}
	say("1. scraped:   all %d metrics that rules and dashboard name", len(named))
	quiet := func() (string, error) {
		firing, err := p.firing(ctx)
		return strings.Join(firing, " "), err
	}
	if err := p.await(ctx, "no alert at rest", quiet); err != nil {
		return err
	}
	say("2. at rest:   no alert")
	r.KillGateway()
	want := []string{"MoverDown", "MoverLinkDown"}
	if err := p.await(ctx, "alerts of a killed gateway", func() (string, error) {
		firing, err := p.firing(ctx)
		return strings.Join(slices.DeleteFunc(slices.Clone(want), func(a string) bool { return slices.Contains(firing, a) }), " "), err
	}); err != nil {
		return err
	}
	say("3. killed:    the gateway; %s fire", strings.Join(want, " and "))
	if err := r.StartGateway(); err != nil {
		return err
	}
	if err := p.await(ctx, "no alert after the gateway was started again", quiet); err != nil {
		return err
	}
	say("4. started:   the gateway; every alert has resolved")
	return nil
}

// prometheus is a real one.
type prometheus struct {
	addr, log string
}

var (
	forTime = regexp.MustCompile(`(?m)^(\s*for:) \S+$`)
	word    = regexp.MustCompile(`\bmover_[a-z_]+`)
)

func startPrometheus(ctx context.Context, r *Rig, rules, addr string, targets ...string) (*prometheus, error) {
	text, err := os.ReadFile(rules)
	if err != nil {
		return nil, err
	}
	// The rules as they are must load; what fires within this run are the same ones with shorter times.
	fast := strings.ReplaceAll(strings.Replace(forTime.ReplaceAllString(string(text), "$1 1s"), "name: mover", "name: fast", 1), "labels: {", "labels: {times: cut, ")
	config := fmt.Sprintf("global: {scrape_interval: 300ms, evaluation_interval: 300ms}\nrule_files: [alerts.yaml, fast.yaml]\nscrape_configs:\n  - job_name: mover\n    static_configs: [{targets: [%s]}]\n",
		strings.Join(targets, ", "))
	for name, b := range map[string]string{"alerts.yaml": string(text), "fast.yaml": fast, "prometheus.yaml": config} {
		if err := os.WriteFile(r.path(name), []byte(b), 0o600); err != nil {
			return nil, err
		}
	}
	p := &prometheus{addr: addr, log: r.path("prometheus.log")}
	log, err := os.Create(p.log)
	if err != nil {
		return nil, err
	}
	defer log.Close()
	cmd := exec.CommandContext(ctx, "prometheus", "--config.file="+r.path("prometheus.yaml"), "--storage.tsdb.path="+r.path("tsdb"), "--web.listen-address="+addr)
	cmd.Stdout, cmd.Stderr = log, log
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("%w (Debian package prometheus)", err)
	}
	r.Defer(func() error {
		cmd.Process.Kill()
		cmd.Wait()
		return nil
	})
	return p, p.await(ctx, "both sets of rules loaded", func() (string, error) {
		var got struct {
			Groups []struct {
				Name  string
				Rules []struct{ Name string }
			}
		}
		if err := p.get(ctx, "/api/v1/rules", &got); err != nil {
			return err.Error(), nil // not listening yet
		}
		if len(got.Groups) < 2 {
			return fmt.Sprintf("%d groups of rules", len(got.Groups)), nil
		}
		return "", nil
	})
}

// await calls until it says "": nothing is wrong any more.
func (p *prometheus) await(ctx context.Context, what string, until func() (string, error)) error {
	ctx, cancel := context.WithTimeout(ctx, monitored)
	defer cancel()
	tick := time.NewTicker(200 * time.Millisecond)
	defer tick.Stop()
	for {
		wrong, err := until()
		if err == nil && wrong == "" {
			return nil
		}
		select {
		case <-ctx.Done():
			log, _ := os.ReadFile(p.log)
			return fmt.Errorf("%s: not within %v: %s %v\n%s", what, monitored, wrong, err, log[max(0, len(log)-2000):])
		case <-tick.C:
		}
	}
}

func (p *prometheus) get(ctx context.Context, path string, data any) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+p.addr+path, nil)
	if err != nil {
		return err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	var answer struct {
		Status, Error string
		Data          json.RawMessage
	}
	if err := json.NewDecoder(resp.Body).Decode(&answer); err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	if answer.Status != "success" {
		return fmt.Errorf("%s: %s", path, answer.Error)
	}
	return json.Unmarshal(answer.Data, data)
}

// named lists every metric of Mover in the files.
func (p *prometheus) named(files ...string) (names []string, err error) {
	for _, file := range files {
		b, err := os.ReadFile(filepath.Clean(file))
		if err != nil {
			return nil, err
		}
		for _, name := range word.FindAllString(string(b), -1) {
			if !slices.Contains(names, name) && !whiles.MatchString(name) {
				names = append(names, name)
			}
		}
	}
	return names, nil
}

// missing tells which of the names no scrape has shown.
func (p *prometheus) missing(ctx context.Context, names []string) (string, error) {
	var have []string
	if err := p.get(ctx, "/api/v1/label/__name__/values?match[]="+url.QueryEscape(`{__name__=~"mover_.*"}`), &have); err != nil {
		return "", err
	}
	return strings.Join(slices.DeleteFunc(slices.Clone(names), func(n string) bool { return slices.Contains(have, n) }), " "), nil
}

// firing are the alerts that fire now.
func (p *prometheus) firing(ctx context.Context) (names []string, err error) {
	var got struct {
		Alerts []struct {
			State  string
			Labels map[string]string
		}
	}
	if err := p.get(ctx, "/api/v1/alerts", &got); err != nil {
		return nil, err
	}
	for _, a := range got.Alerts {
		if a.State == "firing" && !slices.Contains(names, a.Labels["alertname"]) {
			names = append(names, a.Labels["alertname"])
		}
	}
	return names, nil
}
