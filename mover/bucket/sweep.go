package bucket

import (
	"context"
	"fmt"
	"strings"

	"github.com/moverd/mover/objstore"
)

// Sweep ends the uploads in parts at the target that this flow has begun and not ended: of a worker that died right after it began one, or of an object that was gone
// before the last part. others are those of keys that the flow does not know; they stay. Nothing of the flow may be under way.
func (l *Ledger) Sweep(ctx context.Context, to objstore.Store, cfg CopyConfig) (ended, others int, err error) {
	ours := func(name string) (string, bool, error) {
		rest, ok := strings.CutPrefix(name, cfg.ToPrefix)
		if !ok {
			return "", false, nil
		}
		for _, key := range []string{cfg.FromPrefix + rest, cfg.FromPrefix + unescape(rest)} {
			_, found, err := l.record(key)
			if err == nil && !found {
				var u uploadRecord
				found, err = l.get(uploadKey(key), &u)
			}
			if found || err != nil {
				return key, found, err
			}
		}
		return "", false, nil
	}
	for at := (&objstore.UploadPlace{}); at != nil; {
		ups, next, err := to.Uploads(ctx, cfg.ToPrefix, *at)
		if err != nil {
			return ended, others, fmt.Errorf("look for uploads that are left: %w", err)
		}
		for _, u := range ups {
			key, found, err := ours(u.Key)
			if err != nil {
				return ended, others, err
			}
			if !found {
				others++
				continue
			}
			if err := to.Abort(ctx, u.Key, u.ID); err != nil {
				return ended, others, fmt.Errorf("end an upload that is left: %w", err)
			}
			ended++
			if err := l.update(func(c change) error { return l.forget(c, key) }); err != nil {
				return ended, others, err
			}
		}
		at = next
	}
	return ended, others, nil
}
