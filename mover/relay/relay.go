// Package relay carries the calls of an object store over the link to a gateway: Store is the source's end, Server the gateway's, which carries them out on stores of
// its own. docs/protocol.md has the frames.
//
// The way of an object that is stored:
//
//	Store.Put      body into stretches of memory (leased); cut by content; each chunk digested
//	outbox         chunks of all objects under way into batches: CHUNKS ▶ NEED ▶ what is needed compressed together ▶ DATA (one outbox for each connection)
//	Store.Put      when the chunks of the body are there: CALL with key, attributes and the list of chunks
//	Server         DATA: decompress, digest (C7), into the chunk cache; CALL: the body from the cache, each chunk digested again, into the store; RESULT
//
// All of a body goes over one connection, so what a CALL names has been read before it. A chunk that is gone from the cache meanwhile is named in the RESULT, sent again,
// and the call repeated. Nobody fences anybody: calls can be done twice (objstore/retry tells why), and several workers may have links about one flow.
package relay

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/moverd/mover/internal/sentinel"
	"github.com/moverd/mover/objstore"
	"github.com/moverd/mover/wire"
)

// kinds are those of RESULT.
var kinds = [...]error{
	wire.ResultNotFound: objstore.ErrNotFound, wire.ResultDenied: objstore.ErrDenied, wire.ResultCorrupt: objstore.ErrCorrupt, wire.ResultNotSupported: objstore.ErrNotSupported,
	wire.ResultRefused: objstore.ErrRefused, wire.ResultChanged: objstore.ErrChanged, wire.ResultExists: objstore.ErrExists, wire.ResultArchived: objstore.ErrArchived,
	wire.ResultClock: objstore.ErrClock, wire.ResultSlowDown: objstore.ErrSlowDown, wire.ResultTransient: objstore.ErrTransient, wire.ResultCut: io.ErrUnexpectedEOF,
}

// failure is an error of a store as RESULT has it.
func failure(err error) (uint8, wire.Failure) {
	f := wire.Failure{Text: err.Error()}
	kind := error(nil)
	if e, ok := err.(*objstore.Error); ok {
		f.Status, f.Code, f.Request = uint16(max(0, min(e.Status, 999))), short(e.Code), short(e.Request)
		kind, f.Text = e.Kind, ""
		if e.Err != nil {
			f.Text = e.Err.Error()
		}
	}
	if kind == nil && errors.Is(err, context.Canceled) { // this end stops, or its peer went; the other one may try again
		kind = objstore.ErrTransient
	}
	for n, is := range kinds {
		if is != nil && (kind == is || kind == nil && errors.Is(err, is)) {
			return uint8(n), f
		}
	}
	return wire.ResultFinal, f
}

func short(s string) string {
	s = strings.ToValidUTF8(s, "?")
	return s[:min(len(s), wire.MaxName/2)] // what is cut may end in the middle of a letter
}

// failed is the error that a RESULT tells.
func failed(op, store, key string, kind uint8, f wire.Failure) error {
	e := &objstore.Error{Op: op, Store: store, Key: key, Status: int(f.Status), Code: f.Code, Request: f.Request}
	if f.Text != "" {
		e.Err = errors.New(f.Text)
	}
	switch {
	case kind == wire.ResultCut:
		e.Err = fmt.Errorf("%s: %w", f.Text, io.ErrUnexpectedEOF)
	case int(kind) < len(kinds):
		e.Kind = kinds[kind]
	}
	return e
}

// lost is the kind of what ended a connection: mostly another try may succeed.
func lost(err error) error {
	e, ok := errors.AsType[*wire.Error](err)
	switch {
	case !ok && (errors.Is(err, sentinel.ErrProtocol) || errors.Is(err, sentinel.ErrNotSupported) || errors.Is(err, sentinel.ErrUsage)):
		return nil
	case !ok && errors.Is(err, sentinel.ErrDenied):
		return objstore.ErrDenied
	case !ok:
		return objstore.ErrTransient
	}
	switch e.Code {
	case wire.CodeDenied:
		return objstore.ErrDenied
	case wire.CodeRefused:
		return objstore.ErrRefused
	case wire.CodeVersion:
		return objstore.ErrNotSupported
	case wire.CodeCorrupt:
		return objstore.ErrCorrupt
	case wire.CodeProtocol:
		return nil
	}
	return objstore.ErrTransient
}

func nano(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return t.UnixNano()
}

func unnano(n int64) time.Time {
	if n == 0 {
		return time.Time{}
	}
	return time.Unix(0, n).UTC()
}

func toEntry(e objstore.Entry) wire.Entry {
	return wire.Entry{Key: e.Key, Size: uint64(e.Size), ETag: e.ETag, Modified: nano(e.Modified), Class: e.Class}
}

func ofEntry(e wire.Entry) objstore.Entry {
	return objstore.Entry{Key: e.Key, Size: int64(e.Size), ETag: e.ETag, Modified: unnano(e.Modified), Class: e.Class}
}

func toPairs(m map[string]string) (all []wire.Pair) {
	for _, k := range slices.Sorted(maps.Keys(m)) {
		all = append(all, wire.Pair{Name: k, Value: m[k]})
	}
	return all
}

func ofPairs(all []wire.Pair) map[string]string {
	m := make(map[string]string, len(all))
	for _, p := range all {
		m[p.Name] = p.Value
	}
	return m
}

func toAttrs(a objstore.Attrs) wire.Attrs {
	return wire.Attrs{Headers: [6]string{a.ContentType, a.CacheControl, a.ContentDisposition, a.ContentEncoding, a.ContentLanguage, a.Expires}, Meta: toPairs(a.Meta)}
}

func ofAttrs(a wire.Attrs) objstore.Attrs {
	h := a.Headers
	out := objstore.Attrs{ContentType: h[0], CacheControl: h[1], ContentDisposition: h[2], ContentEncoding: h[3], ContentLanguage: h[4], Expires: h[5]}
	if len(a.Meta) > 0 {
		out.Meta = ofPairs(a.Meta)
	}
	return out
}

func toObject(o objstore.Object) wire.Object {
	return wire.Object{Entry: toEntry(o.Entry), Attrs: toAttrs(o.Attrs), Tags: int32(max(-1, o.Tags))}
}

func ofObject(o wire.Object) objstore.Object {
	return objstore.Object{Entry: ofEntry(o.Entry), Attrs: ofAttrs(o.Attrs), Tags: int(o.Tags)}
}

func toPut(o objstore.PutOptions) wire.PutOptions {
	p := wire.PutOptions{Attrs: toAttrs(o.Attrs), Class: o.Class}
	if o.Absent {
		p.Flags = wire.FlagAbsent
	}
	return p
}

func ofPut(p wire.PutOptions) objstore.PutOptions {
	return objstore.PutOptions{Attrs: ofAttrs(p.Attrs), Class: p.Class, Absent: p.Flags&wire.FlagAbsent != 0}
}

func toParts(parts []objstore.Part) (all []wire.Part) {
	for _, p := range parts {
		all = append(all, wire.Part{No: uint32(p.No), Size: uint64(p.Size), ETag: p.ETag})
	}
	return all
}

func ofParts(parts []wire.Part) (all []objstore.Part) {
	for _, p := range parts {
		all = append(all, objstore.Part{No: int(p.No), Size: int64(p.Size), ETag: p.ETag})
	}
	return all
}
