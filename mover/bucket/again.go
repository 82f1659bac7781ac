package bucket

import (
	"context"
	"crypto/md5"
	"encoding/hex"
	"maps"

	"github.com/moverd/mover/objstore"
)

// stored tells whether the target has the bytes of an object already, as it would be stored: a worker that had it before, and died before it could tell, has put it there. ETags
// that are no MD5 are not understood, and the object is put again.
func (c *copier) stored(ctx context.Context, it Item, key string, buf []byte, o objstore.PutOptions) (objstore.Written, bool) {
	if !it.Again {
		return objstore.Written{}, false
	}
	there, err := c.to.Head(ctx, key)
	if err != nil || there.Size != int64(len(buf)) || there.Class != o.Class || !sameAttrs(there.Attrs, o.Attrs) {
		return objstore.Written{}, false
	}
	sum := md5.Sum(buf)
	return objstore.Written{ETag: there.ETag}, there.ETag == hex.EncodeToString(sum[:])
}

func sameAttrs(a, b objstore.Attrs) bool {
	return a.ContentType == b.ContentType && a.CacheControl == b.CacheControl && a.ContentDisposition == b.ContentDisposition && a.ContentEncoding == b.ContentEncoding &&
		a.ContentLanguage == b.ContentLanguage && a.Expires == b.Expires && maps.Equal(a.Meta, b.Meta)
}
