package s3

import (
	"crypto/md5"
	"crypto/sha1"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"hash"
	"hash/crc32"
	"hash/crc64"
	"net/http"
	"strconv"
	"strings"
)

// What S3 calls checksums, by the last word of their headers, the cheapest first.
var sums = []struct {
	name string
	make func() hash.Hash
}{
	{"Crc32c", func() hash.Hash { return crc32.New(castagnoli) }},
	{"Crc64nvme", func() hash.Hash { return crc64.New(nvme) }},
	{"Crc32", func() hash.Hash { return crc32.NewIEEE() }},
	{"Sha1", sha1.New},
	{"Sha256", sha256.New},
}

var (
	castagnoli = crc32.MakeTable(crc32.Castagnoli)
	nvme       = crc64.MakeTable(0x9a6c9329ac4bc9b5) // the polynomial of NVMe, reflected
)

// told is a checksum of all bytes of an object that an answer has with it; name is empty where it has none.
type told struct {
	name, value string
}

// toldBy looks into an answer. A checksum of checksums of parts proves nothing here.
func toldBy(h http.Header) told {
	if strings.EqualFold(h.Get("X-Amz-Checksum-Type"), "COMPOSITE") {
		return told{}
	}
	for _, s := range sums {
		if v := h.Get("X-Amz-Checksum-" + s.name); v != "" && !strings.Contains(v, "-") {
			return told{s.name, v}
		}
	}
	return told{}
}

// newSum starts the checksum of that name.
func newSum(name string) hash.Hash {
	for _, s := range sums {
		if s.name == name {
			return s.make()
		}
	}
	return nil
}

// is tells whether h has come to what was told.
func (t told) is(h hash.Hash) bool { return base64.StdEncoding.EncodeToString(h.Sum(nil)) == t.value }

// opaque tells whether the ETag of an answer is none of the bytes: they lie encrypted under a key of their own.
func opaque(h http.Header) bool {
	return strings.HasPrefix(h.Get("X-Amz-Server-Side-Encryption"), "aws:kms") || h.Get("X-Amz-Server-Side-Encryption-Customer-Algorithm") != ""
}

// plain gives the MD5 that an ETag is; nil if it is none.
func plain(etag string) []byte {
	if len(etag) != 2*md5.Size {
		return nil
	}
	b, err := hex.DecodeString(etag)
	if err != nil {
		return nil
	}
	return b
}

// joined gives the ETag that an object of these parts has where the server follows AWS; "" if a part's ETag is no MD5.
func joined(etags []string) string {
	all := md5.New()
	for _, e := range etags {
		b := plain(e)
		if b == nil {
			return ""
		}
		all.Write(b)
	}
	return hex.EncodeToString(all.Sum(nil)) + "-" + strconv.Itoa(len(etags))
}

// likeJoined tells whether an ETag has the form of joined.
func likeJoined(etag string) bool {
	sum, n, ok := strings.Cut(etag, "-")
	_, err := strconv.Atoi(n)
	return ok && err == nil && plain(sum) != nil
}

// unquote takes the quotation marks off an ETag.
func unquote(etag string) string {
	if len(etag) >= 2 && etag[0] == '"' && etag[len(etag)-1] == '"' {
		return etag[1 : len(etag)-1]
	}
	return etag
}

func quote(etag string) string { return `"` + etag + `"` }
