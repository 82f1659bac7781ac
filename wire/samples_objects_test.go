package wire

import "github.com/moverd/mover/internal/digest"

// strFields are a string on the wire.
func strFields(name string, n int) []field {
	if n == 0 {
		return []field{{name + ", length", 2}}
	}
	return []field{{name + ", length", 2}, {name, n}}
}

var (
	someAttrs  = Attrs{Headers: [6]string{"text/plain", "", "", "gzip"}, Meta: []Pair{{"a", "1"}, {"b", ""}}}
	attrFields = join(strFields("content type", 10), strFields("cache control", 0), strFields("content disposition", 0), strFields("content encoding", 4),
		strFields("content language", 0), strFields("expires", 0), []field{{"n", 2}}, strFields("name", 1), strFields("value", 1), strFields("name", 1), strFields("value", 0))
	someEntry   = Entry{"a/b", 5, "5d41402a", 1700000000123456789, "COLD"}
	entryFields = join(strFields("key", 3), []field{{"size", 8}}, strFields("ETag", 8), []field{{"modified, ns", 8}}, strFields("class", 4))
	someTraits  = StoreTraits{Name: "bos://photos", Rule: "bos", Root: "own/", Put: 256 << 20, Object: 10_000 * 256 << 20, PartLeast: 5 << 20, PartAlign: 1 << 20, PartMost: 256 << 20,
		Parts: 10_000, List: 1000, Batch: 1000, Meta: 2048}
)

// objectSamples are those of CALL, RESULT and CHUNKS.
func objectSamples() []sample {
	call := func(op Op, v Values) *Call { return &Call{Op: op, Values: v} }
	done := func(op Op, v Values) *Result { return &Result{Op: op, Values: v} }
	op, both := []field{{"op", 1}}, []field{{"op", 1}, {"kind: done", 1}}
	chunk := []field{{"digest", 32}, {"length", 4}}
	return []sample{
		{"call-open", 1, call(OpOpen, Values{}), op},
		{"call-list", 2, call(OpList, Values{Prefix: "a/", After: "a/b", Most: 100}), join(op, strFields("prefix", 2), strFields("after", 3), []field{{"most", 4}})},
		{"call-get", 3, call(OpGet, Values{Key: "a/b", Off: 1, Len: 2, ETag: "5d41402a"}), join(op, strFields("key", 3), []field{{"offset", 8}, {"length", 8}}, strFields("ETag", 8))},
		{"call-read", 4, call(OpRead, Values{Of: 3, Most: 4096}), join(op, []field{{"of", 4}, {"most", 4}})},
		{"call-put", 5, call(OpPut, Values{Key: "a/b", Put: PutOptions{someAttrs, "COLD", FlagAbsent}, Body: []Chunk{{dg(1), 5}, {dg(2), 65536}}}),
			join(op, strFields("key", 3), attrFields, strFields("class", 4), []field{{"flags: absent", 1}, {"n", 4}}, chunk, chunk)},
		{"call-delete", 6, call(OpDelete, Values{Keys: []string{"a", "\xff"}}), join(op, []field{{"n", 2}}, strFields("key", 1), strFields("key", 1))},
		{"call-complete", 7, call(OpComplete, Values{Key: "a/b", Upload: "u1", Put: PutOptions{Attrs: someAttrs}, Parts: []Part{{1, 5 << 20, "e1"}}}),
			join(op, strFields("key", 3), strFields("upload", 2), attrFields, strFields("class", 0), []field{{"flags", 1}, {"n", 2}, {"number", 4}, {"size", 8}}, strFields("ETag", 2))},
		{"call-set-tags", 8, call(OpSetTags, Values{Key: "k", Tags: []Pair{{"a", "1"}}}), join(op, strFields("key", 1), []field{{"n", 2}}, strFields("name", 1), strFields("value", 1))},
		{"result-open", 1, done(OpOpen, Values{Store: someTraits}), join(both, strFields("name", 12), strFields("rule", 3), strFields("root", 4), []field{{"put", 8}, {"object", 8},
			{"least part", 8}, {"multiple of parts", 8}, {"largest part", 8}, {"parts", 4}, {"keys of a page", 4}, {"keys of a delete", 4}, {"metadata", 4}})},
		{"result-list", 2, done(OpList, Values{Entries: []Entry{someEntry}, Flag: true, Now: 1700000000123456789}), join(both, []field{{"n", 2}}, entryFields,
			[]field{{"more", 1}, {"now, ns", 8}})},
		{"result-get", 3, done(OpGet, Values{Object: Object{someEntry, someAttrs, -1}}), join(both, entryFields, attrFields, []field{{"tags: not told", 4}})},
		{"result-read", 4, done(OpRead, Values{Bytes: []byte("bytes"), Flag: true}), join(both, []field{{"length", 4}, {"bytes", 5}, {"more", 1}})},
		{"result-missing", 5, &Result{Op: OpPut, Kind: ResultMissing, Missing: Missing{10, []byte{0x02, 0x02}}}, []field{{"op", 1}, {"kind: missing", 1}, {"n", 4},
			{"bitmap: 1 and 9 are not there", 2}}},
		{"result-delete", 6, done(OpDelete, Values{Left: []Left{{"a", ResultDenied, "no"}}}), join(both, []field{{"n", 2}}, strFields("key", 1), []field{{"kind", 1}}, strFields("text", 2))},
		{"result-uploads", 9, done(OpUploads, Values{Uploads: []Upload{{"a", "u1", 1}}, Flag: true, After: "a", Upload: "u1"}), join(both, []field{{"n", 2}}, strFields("key", 1),
			strFields("upload", 2), []field{{"begun, ns", 8}, {"more", 1}}, strFields("key", 1), strFields("upload", 2))},
		{"result-grants", 10, done(OpGrants, Values{Name: "private", Grants: []string{"x"}}), join(both, strFields("name", 7), []field{{"n", 2}}, strFields("grant", 1))},
		{"result-sum", 11, done(OpSum, Values{Object: Object{Entry: someEntry}, Sums: []digest.Digest{dg(1)}}), join(both, entryFields, strFields("content type", 0),
			strFields("cache control", 0), strFields("content disposition", 0), strFields("content encoding", 0), strFields("content language", 0), strFields("expires", 0),
			[]field{{"n", 2}, {"tags", 4}, {"n", 2}, {"digest of block 0", 32}})},
		{"result-error", 12, &Result{Op: OpHead, Kind: ResultNotFound, Failure: Failure{404, 0, "NoSuchKey", "r-1", "it is not there"}}, join([]field{{"op", 1}, {"kind: not found", 1},
			{"status", 2}, {"retry after ms", 4}}, strFields("code", 9), strFields("request", 3), strFields("text", 15))},
		{"chunks", 13, &Chunks{[]Chunk{{dg(1), 5}, {dg(2), MaxChunk}}}, join([]field{{"n", 2}}, chunk, chunk)},
	}
}
