package bosemu

import (
	"encoding/json"
	"io"
	"net/http"
	"regexp"
	"slices"
	"strings"
	"sync"
	"time"
)

var (
	bucketName = regexp.MustCompile(`^[a-z0-9][a-z0-9-]{1,61}[a-z0-9]$`)
	classes    = []string{"STANDARD", "STANDARD_IA", "COLD", "ARCHIVE", "MAZ_STANDARD", "MAZ_STANDARD_IA", "MAZ_COLD"}
)

// bucket is one with its objects.
type bucket struct {
	Bucket
	made time.Time

	mu      sync.RWMutex
	grants  []grant
	objects map[string]*object
	keys    keySet // of objects
	uploads map[string]*upload

	rateMu sync.Mutex
	tokens float64
	filled time.Time
}

func newBucket(b Bucket, grants []grant) *bucket {
	return &bucket{Bucket: b, made: time.Now(), grants: grants, objects: map[string]*object{}, uploads: map[string]*upload{}}
}

// admit takes one of the tokens that rate fills; a second's worth can be saved.
func (b *bucket) admit(now time.Time, rate float64) bool {
	if rate <= 0 {
		return true
	}
	b.rateMu.Lock()
	defer b.rateMu.Unlock()
	if b.filled.IsZero() {
		b.tokens, b.filled = max(rate, 1), now
	}
	b.tokens = min(max(rate, 1), b.tokens+rate*max(0, now.Sub(b.filled).Seconds()))
	b.filled = now
	if b.tokens < 1 {
		return false
	}
	b.tokens--
	return true
}

// put makes o the object of key.
func (b *bucket) put(key string, o *object) {
	if old := b.objects[key]; old != nil {
		old.body.drop()
	} else {
		b.keys.add(key)
	}
	b.objects[key] = o
}

func (b *bucket) remove(key string) {
	if old := b.objects[key]; old != nil {
		old.body.drop()
		delete(b.objects, key)
		b.keys.remove(key)
	}
}

type owner struct {
	ID          string `json:"id"`
	DisplayName string `json:"displayName"`
}

func (q *request) listBuckets() error {
	type entry struct {
		Name         string `json:"name"`
		Location     string `json:"location"`
		CreationDate string `json:"creationDate"`
	}
	all := []entry{}
	q.s.mu.Lock()
	for _, b := range q.s.buckets {
		if b.Owner == q.account {
			all = append(all, entry{b.Name, b.Region, b.made.UTC().Format(authTime)})
		}
	}
	q.s.mu.Unlock()
	slices.SortFunc(all, func(a, b entry) int { return strings.Compare(a.Name, b.Name) })
	return q.answerJSON(http.StatusOK, map[string]any{"owner": owner{q.account, q.account}, "buckets": all})
}

func (q *request) putBucket() error {
	_, _, region, _, _ := q.s.address(q.r)
	q.s.mu.Lock()
	defer q.s.mu.Unlock()
	if q.s.buckets[q.name] != nil {
		return fail("BucketAlreadyExists", "the bucket %s is there already", q.name)
	}
	if _, text := q.s.addBucket(Bucket{Name: q.name, Owner: q.account, Region: region}); text != "" {
		return fail("InvalidBucketName", "%s", text)
	}
	return q.answerEmpty(http.StatusOK)
}

func (q *request) deleteBucket() error {
	q.s.mu.Lock()
	defer q.s.mu.Unlock()
	q.bucket.mu.RLock()
	defer q.bucket.mu.RUnlock()
	if len(q.bucket.objects) > 0 {
		return fail("BucketNotEmpty", "the bucket %s has objects", q.name)
	}
	delete(q.s.buckets, q.name)
	return q.answerEmpty(http.StatusNoContent)
}

func (q *request) bucketLocation() error {
	return q.answerJSON(http.StatusOK, map[string]string{"locationConstraint": q.bucket.Region})
}

func (q *request) bucketClass() error {
	return q.answerJSON(http.StatusOK, map[string]string{"storageClass": q.bucket.Class})
}

func (q *request) bucketVersioning() error {
	status := "suspended"
	if q.bucket.Versioned {
		status = "enabled"
	}
	return q.answerJSON(http.StatusOK, map[string]string{"status": status})
}

// decode reads a JSON body.
func (q *request) decode(v any) error {
	b, err := io.ReadAll(io.LimitReader(q.r.Body, 16<<20))
	if err != nil {
		return err
	}
	s := newSummer(http.Header{}) // a CRC is of the object
	_, _ = s.Write(b)
	if err := s.check(http.Header{"Content-Md5": q.r.Header["Content-Md5"]}); err != nil {
		return err
	}
	if err := json.Unmarshal(b, v); err != nil {
		return fail("MalformedJSON", "the body cannot be read: %v", err)
	}
	return nil
}
