package bosemu

import (
	"maps"
	"net/http"
	"slices"
	"strings"
)

type entry struct {
	Key          string `json:"key"`
	LastModified string `json:"lastModified"`
	ETag         string `json:"eTag"`
	Size         int64  `json:"size"`
	StorageClass string `json:"storageClass"`
	Owner        owner  `json:"owner"`
	VersionID    string `json:"versionId,omitempty"`
	IsLatest     bool   `json:"isLatest,omitempty"`
}

type commonPrefix struct {
	Prefix string `json:"prefix"`
}

type page struct {
	Name           string         `json:"name"`
	Prefix         string         `json:"prefix"`
	Delimiter      string         `json:"delimiter"`
	Marker         string         `json:"marker"`
	NextMarker     string         `json:"nextMarker,omitempty"`
	NextVersion    string         `json:"nextVersionidMarker,omitempty"`
	MaxKeys        int            `json:"maxKeys"`
	IsTruncated    bool           `json:"isTruncated"`
	Contents       []entry        `json:"contents"`
	CommonPrefixes []commonPrefix `json:"commonPrefixes,omitempty"`
}

func (q *request) listObjects() error {
	most, err := q.page("maxKeys")
	if err != nil {
		return err
	}
	p := page{Name: q.name, Prefix: q.query["prefix"], Delimiter: q.query["delimiter"], Marker: q.query["marker"], MaxKeys: most, Contents: []entry{}}
	q.fill(&p)
	return q.answerJSON(http.StatusOK, p)
}

// listVersions has one version of each object: older ones are not kept.
func (q *request) listVersions() error {
	most, err := q.page("maxKeys")
	if err != nil {
		return err
	}
	p := page{Name: q.name, Prefix: q.query["prefix"], Delimiter: q.query["delimiter"], Marker: q.query["marker"], MaxKeys: most, Contents: []entry{}}
	q.fill(&p)
	for i := range p.Contents {
		p.Contents[i].VersionID, p.Contents[i].IsLatest = "null", true
	}
	if p.IsTruncated {
		p.NextVersion = "null"
	}
	return q.answerJSON(http.StatusOK, p)
}

// fill puts at most p.MaxKeys entries into a page.
func (q *request) fill(p *page) {
	q.bucket.mu.RLock()
	defer q.bucket.mu.RUnlock()
	n, last := 0, ""
	for key := range q.bucket.keys.from(max(p.Prefix, p.Marker)) {
		if !strings.HasPrefix(key, p.Prefix) {
			break
		}
		if key <= p.Marker {
			continue
		}
		common, under := folder(key, p.Prefix, p.Delimiter)
		if under && (common == last || common <= p.Marker) {
			continue
		}
		if n == p.MaxKeys {
			p.IsTruncated, p.NextMarker = true, last
			break
		}
		n++
		if under {
			last = common
			p.CommonPrefixes = append(p.CommonPrefixes, commonPrefix{common})
			continue
		}
		last = key
		o := q.bucket.objects[key]
		p.Contents = append(p.Contents, entry{key, o.modified.Format(authTime), q.tag(o.etag), o.body.size(), o.class, owner{q.bucket.Owner, q.bucket.Owner}, "", false})
	}
}

// folder is the part of key up to the first delimiter after prefix.
func folder(key, prefix, delimiter string) (string, bool) {
	if delimiter == "" {
		return "", false
	}
	i := strings.Index(key[len(prefix):], delimiter)
	if i < 0 {
		return "", false
	}
	return key[:len(prefix)+i+len(delimiter)], true
}

// listUploads goes on after a key: there is no marker for one of several uploads of a key.
func (q *request) listUploads() error {
	most, err := q.page("maxUploads")
	if err != nil {
		return err
	}
	type row struct {
		Key          string `json:"key"`
		UploadID     string `json:"uploadId"`
		Owner        owner  `json:"owner"`
		Initiated    string `json:"initiated"`
		StorageClass string `json:"storageClass"`
	}
	prefix, marker, delimiter := q.query["prefix"], q.query["keyMarker"], q.query["delimiter"]
	q.bucket.mu.RLock()
	all := []row{}
	for id, u := range q.bucket.uploads {
		if strings.HasPrefix(u.key, prefix) && u.key > marker {
			all = append(all, row{u.key, id, owner{q.bucket.Owner, q.bucket.Owner}, u.made.Format(authTime), u.o.class})
		}
	}
	q.bucket.mu.RUnlock()
	slices.SortFunc(all, func(a, b row) int { return strings.Compare(a.Key+"\x00"+a.UploadID, b.Key+"\x00"+b.UploadID) })
	commons, seen := []commonPrefix{}, ""
	all = slices.DeleteFunc(all, func(r row) bool {
		common, under := folder(r.Key, prefix, delimiter)
		if under && common != seen {
			seen = common
			commons = append(commons, commonPrefix{common})
		}
		return under
	})
	answer := map[string]any{"bucket": q.name, "prefix": prefix, "delimiter": delimiter, "keyMarker": marker, "maxUploads": most, "commonPrefixes": commons,
		"isTruncated": len(all) > most}
	if len(all) > most {
		all = all[:most]
		answer["nextKeyMarker"] = all[most-1].Key
	}
	answer["uploads"] = all
	return q.answerJSON(http.StatusOK, answer)
}

func (q *request) listParts() error {
	most, err := q.page("maxParts")
	if err != nil {
		return err
	}
	after, err := q.number("partNumberMarker", 0, 1<<31-1, 0)
	if err != nil {
		return err
	}
	type row struct {
		PartNumber   int    `json:"partNumber"`
		LastModified string `json:"lastModified"`
		ETag         string `json:"eTag"`
		Size         int64  `json:"size"`
	}
	q.bucket.mu.RLock()
	defer q.bucket.mu.RUnlock()
	u, err := q.find()
	if err != nil {
		return err
	}
	rows, more, next := []row{}, false, after
	for _, no := range slices.Sorted(maps.Keys(u.parts)) {
		if no <= after {
			continue
		}
		if more = len(rows) == most; more {
			break
		}
		p := u.parts[no]
		rows, next = append(rows, row{no, p.modified.Format(authTime), q.tag(p.etag), p.content.size}), no
	}
	return q.answerJSON(http.StatusOK, map[string]any{"bucket": q.name, "key": q.key, "uploadId": q.query["uploadId"], "initiated": u.made.Format(authTime),
		"owner": owner{q.bucket.Owner, q.bucket.Owner}, "storageClass": u.o.class, "partNumberMarker": after, "nextPartNumberMarker": next,
		"maxParts": most, "isTruncated": more, "parts": rows})
}
