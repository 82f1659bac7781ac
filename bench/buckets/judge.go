package buckets

import (
	"bufio"
	"bytes"
	"context"
	"crypto/md5"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"

	bcebos "github.com/baidubce/bce-sdk-go/services/bos"
	"github.com/baidubce/bce-sdk-go/services/bos/api"

	"github.com/moverd/mover/objstore"
)

// judge compares both ends: first with Mover's drivers, all that is carried; then by others, the bytes.
func (r *cutoverRun) judge(ctx context.Context, src, dst objstore.Store) error {
	a, err := contents(ctx, src)
	if err != nil {
		return err
	}
	b, err := contents(ctx, dst)
	if err != nil {
		return err
	}
	if err := unequal(a, b); err != nil {
		return fmt.Errorf("by Mover's drivers: %w", err)
	}
	sizes, err := listing(ctx, src)
	if err != nil {
		return err
	}
	r.objects = len(a)
	for _, n := range sizes {
		r.bytes += n.Size
	}
	if ups, _, err := dst.Uploads(ctx, "", objstore.UploadPlace{}); err != nil || len(ups) > 0 {
		return fmt.Errorf("%d uploads are left at the target: %v", len(ups), err)
	}
	if r.target == "rgw" {
		return r.rcloneCheck(ctx)
	}
	return r.compareBOS(ctx)
}

// unequal names what differs.
func unequal(a, b map[string]string) error {
	var bad error
	for k := range a {
		if _, ok := b[k]; !ok {
			bad = errors.Join(bad, fmt.Errorf("%q is lost", k))
		} else if a[k] != b[k] {
			bad = errors.Join(bad, fmt.Errorf("%q differs: %s, %s", k, a[k], b[k]))
		}
	}
	for k := range b {
		if _, ok := a[k]; !ok {
			bad = errors.Join(bad, fmt.Errorf("%q is only at the target", k))
		}
	}
	return bad
}

// rclone runs it with the server as "s:".
func (r *cutoverRun) rclone(ctx context.Context, args ...string) (string, error) {
	conf := r.path("rclone.conf")
	text := fmt.Sprintf("[s]\ntype = s3\nprovider = Ceph\nendpoint = %s\naccess_key_id = %s\nsecret_access_key = %s\nregion = us-east-1\n", r.ceph.Endpoint, r.ceph.ID, r.ceph.Secret)
	if err := os.WriteFile(conf, []byte(text), 0o600); err != nil {
		return "", err
	}
	cmd := exec.CommandContext(ctx, "rclone", append([]string{"--config", conf}, args...)...)
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "HOME=" + r.dir} // and nothing of what AWS's SDK would read
	var out, log bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &log
	if err := cmd.Run(); err != nil {
		return "", fmt.Errorf("rclone %s: %w: %s", args[0], err, log.String())
	}
	return out.String() + log.String(), nil
}

// rcloneCheck has rclone read every byte of both ends.
func (r *cutoverRun) rcloneCheck(ctx context.Context) error {
	from, to := r.names()
	out, err := r.rclone(ctx, "check", "--download", "s:"+from, "s:"+to)
	if err != nil {
		return err
	}
	if !strings.Contains(out, "0 differences found") || !strings.Contains(out, fmt.Sprintf("%d matching files", r.objects)) {
		return fmt.Errorf("rclone check of %d objects says: %s", r.objects, out)
	}
	return nil
}

// compareBOS compares the MD5s that rclone computes of the source with those of what Baidu's own client reads. That client writes global variables: nothing else here
// may speak to BOS meanwhile.
func (r *cutoverRun) compareBOS(ctx context.Context) error {
	from, to := r.names()
	out, err := r.rclone(ctx, "hashsum", "MD5", "--download", "s:"+from)
	if err != nil {
		return err
	}
	a := map[string]string{}
	for in := bufio.NewScanner(strings.NewReader(out)); in.Scan(); {
		if sum, key, ok := strings.Cut(in.Text(), "  "); ok {
			a[key] = sum
		}
	}
	if len(a) != r.objects {
		return fmt.Errorf("rclone hashsum tells of %d objects, not %d", len(a), r.objects)
	}
	b, err := r.readBOS(to)
	if err != nil {
		return err
	}
	if err := unequal(a, b); err != nil {
		return fmt.Errorf("by rclone and bce-sdk-go: %w", err)
	}
	return nil
}

func (r *cutoverRun) readBOS(bucket string) (map[string]string, error) {
	c, err := bcebos.NewClientWithConfig(&bcebos.BosClientConfiguration{Ak: soakKey, Sk: soakSecret, Endpoint: r.web})
	if err != nil {
		return nil, err
	}
	all := map[string]string{}
	for marker := ""; ; {
		p, err := c.ListObjects(bucket, &api.ListObjectsArgs{Marker: marker, MaxKeys: 1000})
		if err != nil {
			return nil, err
		}
		for _, o := range p.Contents {
			got, err := c.BasicGetObject(bucket, o.Key)
			if err != nil {
				return nil, fmt.Errorf("%q: %w", o.Key, err)
			}
			h := md5.New()
			n, err := io.Copy(h, got.Body)
			if err = errors.Join(err, got.Body.Close()); err != nil || n != int64(o.Size) {
				return nil, fmt.Errorf("%q: %d of %d bytes: %w", o.Key, n, o.Size, err)
			}
			all[o.Key] = hex.EncodeToString(h.Sum(nil))
			marker = o.Key
		}
		if !p.IsTruncated {
			return all, nil
		}
	}
}
