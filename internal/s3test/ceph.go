package s3test

import (
	"context"
	"encoding/xml"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"
)

// Ceph is a Ceph of one node with its object gateway (RGW): everything in one folder, in memory as far as objects go. It needs the Debian packages ceph-mon
// ceph-osd ceph-common radosgw.
type Ceph struct {
	Server
	dir      string
	children []*child
}

var programs = []string{"ceph-authtool", "monmaptool", "ceph-mon", "ceph", "ceph-osd", "radosgw", "radosgw-admin"}

// StartCeph makes a cluster in the empty folder dir, and returns when its gateway answers.
func StartCeph(ctx context.Context, dir string) (*Ceph, error) {
	for _, p := range programs {
		if _, err := exec.LookPath(p); err != nil {
			return nil, fmt.Errorf("%s is not installed: it is in the Debian packages ceph-mon ceph-osd ceph-common radosgw", p)
		}
	}
	c := &Ceph{dir: dir, Server: Server{ID: "MOVERTESTKEY", Secret: "mover/test+secret"}}
	if err := c.start(ctx); err != nil {
		err = fmt.Errorf("start ceph: %w%s", err, c.logs())
		return nil, errors.Join(err, c.Close())
	}
	return c, nil
}

func (c *Ceph) start(ctx context.Context) error {
	ports, err := freePorts(2)
	if err != nil {
		return err
	}
	c.Endpoint = fmt.Sprintf("http://127.0.0.1:%d", ports[1])
	for _, d := range []string{"mon", "osd", "rgw", "run", "log"} {
		if err := os.Mkdir(filepath.Join(c.dir, d), 0o700); err != nil {
			return err
		}
	}
	id, err := os.ReadFile("/proc/sys/kernel/random/uuid")
	if err != nil {
		return err
	}
	fsid := strings.TrimSpace(string(id))
	if err := os.WriteFile(filepath.Join(c.dir, "ceph.conf"), []byte(config(c.dir, fsid, ports)), 0o600); err != nil {
		return err
	}
	mon := fmt.Sprintf("[v2:127.0.0.1:%d]", ports[0])
	for _, args := range [][]string{
		{"ceph-authtool", "--create-keyring", "keyring", "--gen-key", "-n", "mon.", "--cap", "mon", "allow *"},
		{"ceph-authtool", "keyring", "--gen-key", "-n", "client.admin", "--cap", "mon", "allow *", "--cap", "osd", "allow *", "--cap", "mgr", "allow *"},
		{"ceph-authtool", "keyring", "--gen-key", "-n", "osd.0", "--cap", "mon", "allow profile osd", "--cap", "osd", "allow *", "--cap", "mgr", "allow profile osd"},
		{"ceph-authtool", "keyring", "--gen-key", "-n", "client.rgw.a", "--cap", "mon", "allow rwx", "--cap", "osd", "allow rwx", "--cap", "mgr", "allow rw"},
		{"monmaptool", "--create", "--fsid", fsid, "--addv", "a", mon, "monmap", "--clobber"},
		{"ceph-mon", "-c", "ceph.conf", "--mkfs", "-i", "a", "--monmap", "monmap", "--keyring", "keyring"},
	} {
		if err := c.run(ctx, args...); err != nil {
			return err
		}
	}
	if err := c.daemon("mon", "ceph-mon", "-i", "a"); err != nil {
		return err
	}
	osd, err := os.ReadFile("/proc/sys/kernel/random/uuid")
	if err != nil {
		return err
	}
	uuid := strings.TrimSpace(string(osd))
	if err := c.run(ctx, "ceph", "-c", "ceph.conf", "osd", "new", uuid); err != nil {
		return err
	}
	if err := c.run(ctx, "ceph-osd", "-c", "ceph.conf", "-i", "0", "--mkfs", "--osd-uuid", uuid); err != nil {
		return err
	}
	if err := c.daemon("osd", "ceph-osd", "-i", "0"); err != nil {
		return err
	}
	if err := c.daemon("rgw", "radosgw", "-n", "client.rgw.a"); err != nil {
		return err
	}
	if err := c.answers(ctx); err != nil {
		return err
	}
	return c.User(ctx, "mover", c.ID, c.Secret)
}

// User adds a user with keys.
func (c *Ceph) User(ctx context.Context, name, id, secret string) error {
	return c.run(ctx, "radosgw-admin", "-c", "ceph.conf", "user", "create", "--uid", name, "--display-name", name, "--access-key", id, "--secret-key", secret)
}

// AllowSessions lets the user ask for sessions.
func (c *Ceph) AllowSessions(ctx context.Context) error {
	if err := c.run(ctx, "radosgw-admin", "-c", "ceph.conf", "caps", "add", "--uid", "mover", "--caps", "user-policy=*;roles=*"); err != nil {
		return err
	}
	form := url.Values{"Action": {"PutUserPolicy"}, "UserName": {"mover"}, "PolicyName": {"sessions"}, "Version": {"2010-05-08"},
		"PolicyDocument": {`{"Version":"2012-10-17","Statement":[{"Effect":"Allow","Action":["*"],"Resource":["*"]}]}`}}
	_, err := c.do(ctx, "iam", http.MethodPost, "/", form.Encode())
	return err
}

// Role makes a role that the user may assume, and that may do everything with S3. It gives its ARN.
func (c *Ceph) Role(ctx context.Context, name string) (arn string, err error) {
	for _, args := range [][]string{
		{"role", "create", "--role-name", name, "--assume-role-policy-doc",
			`{"Version":"2012-10-17","Statement":[{"Effect":"Allow","Principal":{"AWS":["arn:aws:iam:::user/mover"]},"Action":["sts:AssumeRole"]}]}`},
		{"role-policy", "put", "--role-name", name, "--policy-name", "all", "--policy-doc",
			`{"Version":"2012-10-17","Statement":[{"Effect":"Allow","Action":["s3:*"],"Resource":"arn:aws:s3:::*"}]}`},
	} {
		if err := c.run(ctx, append([]string{"radosgw-admin", "-c", "ceph.conf"}, args...)...); err != nil {
			return "", err
		}
	}
	return "arn:aws:iam:::role/" + name, nil
}

// Session gives keys of a session of 15 minutes.
func (c *Ceph) Session(ctx context.Context) (id, secret, token string, err error) {
	if err := c.AllowSessions(ctx); err != nil {
		return "", "", "", err
	}
	text, err := c.do(ctx, "sts", http.MethodPost, "/", "Action=GetSessionToken&DurationSeconds=900&Version=2011-06-15")
	if err != nil {
		return "", "", "", err
	}
	var answer struct {
		ID     string `xml:"GetSessionTokenResult>Credentials>AccessKeyId"`
		Secret string `xml:"GetSessionTokenResult>Credentials>SecretAccessKey"`
		Token  string `xml:"GetSessionTokenResult>Credentials>SessionToken"`
	}
	if err := xml.Unmarshal(text, &answer); err != nil {
		return "", "", "", fmt.Errorf("%w: %s", err, text)
	}
	return answer.ID, answer.Secret, answer.Token, nil
}

// Quota sets how many objects a user may have.
func (c *Ceph) Quota(ctx context.Context, name string, objects int) error {
	if err := c.run(ctx, "radosgw-admin", "-c", "ceph.conf", "quota", "set", "--quota-scope=user", "--uid", name, fmt.Sprintf("--max-objects=%d", objects)); err != nil {
		return err
	}
	return c.run(ctx, "radosgw-admin", "-c", "ceph.conf", "quota", "enable", "--quota-scope=user", "--uid", name)
}

// answers waits until the gateway does.
func (c *Ceph) answers(ctx context.Context) error {
	client := http.Client{Timeout: 5 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	for {
		r, err := client.Get(c.Endpoint)
		if err == nil {
			r.Body.Close()
			if r.StatusCode == http.StatusOK {
				return nil
			}
		}
		for _, d := range c.children {
			select {
			case <-d.over:
				return fmt.Errorf("%s has ended: %w", d.name, d.err)
			default:
			}
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("the gateway does not answer: %w", ctx.Err())
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// run waits for a program.
func (c *Ceph) run(ctx context.Context, args ...string) error {
	cmd := exec.CommandContext(ctx, args[0], args[1:]...)
	cmd.Dir = c.dir
	cmd.Env = append(os.Environ(), "CEPH_CONF="+filepath.Join(c.dir, "ceph.conf"))
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%s: %w: %s", strings.Join(args, " "), err, out)
	}
	return nil
}

// allocator lets the daemons keep the memory of large buffers, which the kernel would clear anew each time.
const allocator = "GLIBC_TUNABLES=glibc.malloc.mmap_threshold=33554432:glibc.malloc.trim_threshold=1073741824"

// daemon starts one of Ceph's programs, which stays in the foreground.
func (c *Ceph) daemon(name string, args ...string) error {
	cmd := exec.Command(args[0], append([]string{"-f", "-c", "ceph.conf"}, args[1:]...)...)
	cmd.Env = append(os.Environ(), allocator)
	d, err := startChild(name, c.dir, filepath.Join(c.dir, "log", name+".out"), cmd)
	if err == nil {
		c.children = append(c.children, d)
	}
	return err
}

// Reclaim frees the memory of objects that were deleted, or of which an upload was ended, now instead of hours later.
func (c *Ceph) Reclaim(ctx context.Context) error {
	return c.run(ctx, "radosgw-admin", "-c", "ceph.conf", "gc", "process", "--include-all")
}

// CPU is the time of processors that the daemons have taken so far.
func (c *Ceph) CPU() (sum time.Duration, err error) {
	for _, d := range c.children {
		t, err := d.cpu()
		if err != nil {
			return 0, err
		}
		sum += t
	}
	return sum, nil
}

// Close kills the daemons: nothing of theirs is kept. The folder stays.
func (c *Ceph) Close() error {
	var errs []error
	for i := len(c.children) - 1; i >= 0; i-- {
		errs = append(errs, c.children[i].kill())
	}
	c.children = nil
	return errors.Join(errs...)
}

// logs are the last lines of what the daemons have said.
func (c *Ceph) logs() string {
	var b strings.Builder
	for _, d := range c.children {
		for _, ext := range []string{".out", ".log"} {
			text, _ := os.ReadFile(filepath.Join(c.dir, "log", d.name+ext))
			if len(text) > 2000 {
				text = text[len(text)-2000:]
			}
			if len(text) > 0 {
				fmt.Fprintf(&b, "\n%s%s: ...%s", d.name, ext, text)
			}
		}
	}
	return b.String()
}

// freePorts finds ports of loopback that nobody has, all at once.
func freePorts(n int) ([]int, error) {
	var ports []int
	for range n {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return nil, err
		}
		defer l.Close()
		ports = append(ports, l.Addr().(*net.TCPAddr).Port)
	}
	return ports, nil
}

// silent are the parts of Ceph whose logs would be gathered in memory even where nothing is written.
var silent = strings.Fields(`asok auth buffer context crush filer finisher heartbeatmap lockdep memstore mgrc mon monc ms objclass objecter objectstore optracker osd paxos
	perfcounter rados rgw rgw_sync rocksdb striper throttle timer tp`)

// config has few threads and no logs, for a machine with few cores: what the server takes of them is missing to its clients.
func config(dir, fsid string, ports []int) string {
	var quiet strings.Builder
	for _, part := range silent {
		fmt.Fprintf(&quiet, "debug_%s = 0/0\n", part)
	}
	return fmt.Sprintf(`[global]
fsid = %[2]s
mon_host = [v2:127.0.0.1:%[3]d]
public_network = 127.0.0.0/8
ms_bind_ipv6 = false
auth_cluster_required = cephx
auth_service_required = cephx
auth_client_required = cephx
auth_allow_insecure_global_id_reclaim = false
keyring = %[1]s/keyring
run_dir = %[1]s/run
admin_socket = %[1]s/run/$name.$pid.asok
pid_file = %[1]s/run/$name.pid
log_file = %[1]s/log/$type.log
crash_dir = %[1]s/log
mon_data = %[1]s/mon
osd_data = %[1]s/osd
rgw_data = %[1]s/rgw
osd_objectstore = memstore
memstore_device_bytes = 12884901888
osd_memory_target = 939524096
osd_pool_default_size = 1
osd_pool_default_min_size = 1
osd_pool_default_pg_num = 4
osd_pool_default_pg_autoscale_mode = off
osd_crush_chooseleaf_type = 0
crush_location = root=default host=one
mon_allow_pool_size_one = true
mon_warn_on_pool_no_redundancy = false
mon_data_avail_warn = 2
mon_data_avail_crit = 1
paxos_propose_interval = 0.01
paxos_min_wait = 0.01
mon_max_pg_per_osd = 1000
%[5]sosd_enable_op_tracker = false
throttler_perf_counter = false
ms_async_op_threads = 1
osd_op_num_shards = 1
osd_op_num_threads_per_shard = 2
rgw_thread_pool_size = 16
rgw_frontends = beast endpoint=127.0.0.1:%[4]d
rgw_override_bucket_index_max_shards = 1
rgw_s3_auth_use_sts = true
rgw_sts_key = 0123456789abcdef
`, dir, fsid, ports[0], ports[1], &quiet)
}
