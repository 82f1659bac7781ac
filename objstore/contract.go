// Package objstore has the contract of object stores: what a bucket flow lists, reads and writes. The packages below it implement it, or wrap one that does;
// objstore/objtest is their conformance suite.
package objstore

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/moverd/mover/internal/digest"
)

// Store is one bucket. Keys are bytes and compared as such; no driver cleans or joins them. Safe for concurrent use. A call is one try: objstore/retry tries
// again. Whatever a store answers that is no clear success is an error, never an empty result: no ETag, a redirect, an error inside a 200, a list that is cut
// short. Errors are *Error, and tell their kind by errors.Is.
type Store interface {
	// String names the bucket for people, without credentials: "s3://photos at https://rgw.example".
	String() string
	Limits() Limits

	// List gives what comes after q.After in the order of the keys' bytes.
	List(ctx context.Context, q Query) (Page, error)
	// Head gives an object without its bytes. ErrNotFound.
	Head(ctx context.Context, key string) (Object, error)
	// Get opens the bytes of an object that o asks for. The object is in the state that these bytes are of. A body that ends early reads as
	// io.ErrUnexpectedEOF; what is there beyond its length as ErrCorrupt. Close may be called at any time. ErrNotFound, ErrChanged.
	Get(ctx context.Context, key string, o GetOptions) (Object, io.ReadCloser, error)
	// Put stores b whole or not at all. It returns after the store has confirmed what it holds: a digest of the bytes as they were sent is equal to one that
	// the store tells of what it stored (ErrCorrupt), and Written.ETag is not empty. ErrExists.
	Put(ctx context.Context, key string, b Body, o PutOptions) (Written, error)
	// Delete removes keys, at most Limits.Batch. One that is not there is no error. left has those that may still be there, each with its reason.
	Delete(ctx context.Context, keys ...string) (left map[string]error, err error)

	// Begin starts an upload in parts. Attributes that the store takes only at the end have to be given again in Complete.
	Begin(ctx context.Context, key string, o PutOptions) (upload string, err error)
	// PutPart stores part no, from 1, of an upload, with the promise of Put. A part that is there already is replaced. ErrNotFound: no such upload.
	PutPart(ctx context.Context, key, upload string, no int, b Body) (Written, error)
	// Parts gives the parts of an upload after number after, ascending; more tells whether there are others behind. ErrNotFound: no such upload.
	Parts(ctx context.Context, key, upload string, after int) (parts []Part, more bool, err error)
	// Complete makes the object of parts, ascending. Where it is not known whether it has, for an answer was lost, the object tells. ErrNotFound, ErrExists.
	Complete(ctx context.Context, key, upload string, parts []Part, o PutOptions) (Written, error)
	// Abort forgets an upload. One that is not there is no error.
	Abort(ctx context.Context, key, upload string) error
	// Uploads gives the uploads that were begun and neither completed nor aborted, in the order of their keys, after the place after; the zero value is the
	// beginning. next is where to go on, nil at the end.
	Uploads(ctx context.Context, prefix string, after UploadPlace) (uploads []Upload, next *UploadPlace, err error)

	// Close ends what the store holds open. Calls under way end with an error.
	Close() error
}

// Query asks for a page of a listing.
type Query struct {
	Prefix string // only keys that begin with it
	After  string // only keys greater than it
	Max    int    // keys at most; 0 or more than Limits.List: that many
}

// Page is a part of a listing: what lies between Query.After and the key of the last entry is complete.
type Page struct {
	Entries []Entry // ascending by key
	More    bool    // there may be others behind; then Entries is not empty
	// Now is the store's clock when it answered; zero: not told. What was modified just before may be modified again without another Modified.
	Now time.Time
}

// Entry is what a listing tells of an object.
type Entry struct {
	Key      string
	Size     int64     // bytes
	ETag     string    // the store's mark of this content, without quotation marks, never empty. Another content has another one
	Modified time.Time // UTC; of the resolution that the store has, often seconds
	Class    string    // the storage class as the store names it; "": its standard
}

// Object is an object without its bytes.
type Object struct {
	Entry
	Attrs Attrs
	// Tags is how many tags it has, where the store tells by the way; -1: it does not.
	Tags int
	// MD5 is that of all its bytes, where the store tells it by the way; nil: it does not.
	MD5 []byte
}

// Attrs is what travels with the bytes of an object. Empty values are not set.
type Attrs struct {
	ContentType, CacheControl, ContentDisposition, ContentEncoding, ContentLanguage string
	Expires                                                                         string            // as the header has it
	Meta                                                                            map[string]string // the user's metadata: keys in lower case, without prefix
}

// GetOptions is what to read of an object. The zero value is all of it, in whatever state it is.
type GetOptions struct {
	Off   int64  // at the end of an object that is not empty, or behind it: an error
	Len   int64  // 0: to the end; more than there is: to the end too
	IfTag string // only while the object has this ETag: ErrChanged
}

// PutOptions is how an object is stored.
type PutOptions struct {
	Attrs  Attrs
	Class  string // storage class; "": the store's standard
	Absent bool   // only if there is no object of this key: ErrExists
}

// Written is what a store has confirmed.
type Written struct {
	ETag string // never empty
}

// Part is a part that a store has.
type Part struct {
	No   int
	Size int64
	ETag string
}

// Upload is an upload in parts that has not ended.
type Upload struct {
	Key, ID string
	Begun   time.Time // zero: not told
}

// UploadPlace is a place in the list of uploads.
type UploadPlace struct{ Key, ID string }

// Limits is what a store takes. Zero: no limit that is known.
type Limits struct {
	Put       int64 // bytes of one Put, at most
	Object    int64 // bytes of an object, at most
	PartLeast int64 // bytes of a part that is not the last
	PartAlign int64 // which are a multiple of it
	PartMost  int64
	Parts     int // of an object, at most
	List      int // keys of a page; never 0
	Batch     int // keys of one Delete; never 0
	Meta      int // bytes of Attrs.Meta, keys and values together
	// Header and Pair tell why a header of that name, or user metadata of that name, cannot be stored with this value; nil: they can. Nil themselves: all can.
	Header, Pair func(name, value string) error
	// Key tells why a key cannot be stored; nil: it can. Never nil itself.
	Key func(key string) error
	// Rule names what Key, Header and Pair are, for another end that has to know it without asking; "": it has no name.
	Rule string
}

// What follows are abilities that a store may have as well. One that wraps another has all of them, and answers ErrNotSupported for what that one lacks.

// Tagger carries tags.
type Tagger interface {
	// Tags gives those of an object; none is an empty map. ErrNotFound.
	Tags(ctx context.Context, key string) (map[string]string, error)
	// SetTags replaces those of an object.
	SetTags(ctx context.Context, key string, tags map[string]string) error
}

// Granter tells who may do what with an object.
type Granter interface {
	// Grants gives the canned name that has the same meaning (private, public-read, ...), or the grants one by one, for people.
	Grants(ctx context.Context, key string) (canned string, grants []string, err error)
	// SetGrants sets a canned name.
	SetGrants(ctx context.Context, key, canned string) error
}

// Versioner tells what a bucket keeps beside the newest state of its objects.
type Versioner interface {
	// Versioned tells whether the bucket keeps older states, or has kept some.
	Versioned(ctx context.Context) (bool, error)
}

// OlderCounter counts what a Versioner keeps.
type OlderCounter interface {
	// Older counts a page of those below prefix, from a place on; "" is the beginning. next is where to go on, "" at the end.
	Older(ctx context.Context, prefix, place string) (n Older, next string, err error)
}

// Older is what a bucket keeps that its listing does not show.
type Older struct {
	Versions, Bytes int64 // states of objects that are not their newest
	Markers         int64 // marks of deletes
}

// Locator tells where a bucket really is, as the store says itself, not by the name of its endpoint.
type Locator interface {
	// Location is the region.
	Location(ctx context.Context) (string, error)
}

// Summer tells what an object really holds without sending its bytes to the caller.
type Summer interface {
	// Sum reads what o asks for of an object as the store has it, from the beginning of a block, at most SumMost blocks, and gives the digests of its blocks: those
	// of a Digester. ErrNotFound, ErrChanged.
	Sum(ctx context.Context, key string, o GetOptions) (Object, []digest.Digest, error)
}

// SumMost is the most blocks of one Sum.
const SumMost = 8192

// Located asks a store itself where its bucket is: ErrRefused if that is none of regions. nil: it may be anywhere. by names what allows them, for people.
func Located(ctx context.Context, s Store, regions []string, by string) error {
	where, ok := s.(Locator)
	if !ok || regions == nil {
		return nil
	}
	region, err := where.Location(ctx)
	if errors.Is(err, ErrNotSupported) {
		return nil
	} else if err != nil {
		return fmt.Errorf("ask where the bucket is: %w", err)
	}
	if !slices.Contains(regions, region) {
		return fmt.Errorf("%s is in region %q; %s allows %s: %w", s, region, by, strings.Join(regions, ", "), ErrRefused)
	}
	return nil
}
