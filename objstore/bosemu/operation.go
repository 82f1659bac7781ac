package bosemu

import "net/http"

// op is what is done for a request, and what its account needs for it.
type op struct {
	needs need
	do    func(*request) error
}

// operations are those that are implemented. None of them holds a lock while it reads a body.
var operations = map[string]op{
	"ListBuckets":             {anAccount, (*request).listBuckets},
	"PutBucket":               {anAccount, (*request).putBucket},
	"DeleteBucket":            {control, (*request).deleteBucket},
	"HeadBucket":              {list, func(q *request) error { return q.answerEmpty(http.StatusOK) }},
	"GetBucketLocation":       {list, (*request).bucketLocation},
	"GetBucketAcl":            {control, (*request).getBucketACL},
	"PutBucketAcl":            {control, (*request).putBucketACL},
	"GetBucketStorageClass":   {list, (*request).bucketClass},
	"GetBucketVersioning":     {control, (*request).bucketVersioning},
	"ListObjects":             {list, (*request).listObjects},
	"ListObjectVersions":      {list, (*request).listVersions},
	"ListMultipartUploads":    {list, (*request).listUploads},
	"DeleteMultipleObjects":   {write, (*request).deleteObjects},
	"PutObject":               {write, (*request).putObject},
	"CopyObject":              {write, (*request).copyObject},
	"GetObject":               {read, (*request).getObject},
	"GetObjectMeta":           {read, (*request).getObject},
	"DeleteObject":            {write, (*request).deleteObject},
	"RestoreObject":           {read, (*request).restoreObject},
	"GetObjectAcl":            {control, (*request).getObjectACL},
	"PutObjectAcl":            {control, (*request).putObjectACL},
	"DeleteObjectAcl":         {control, (*request).deleteObjectACL},
	"GetObjectTagging":        {control, (*request).getTags},
	"PutObjectTagging":        {control, (*request).putTags},
	"DeleteObjectTagging":     {control, (*request).deleteTags},
	"InitiateMultipartUpload": {write, (*request).initiate},
	"UploadPart":              {write, (*request).uploadPart},
	"UploadPartCopy":          {write, (*request).uploadPartCopy},
	"CompleteMultipartUpload": {write, (*request).complete},
	"AbortMultipartUpload":    {write, (*request).abort},
	"ListParts":               {list, (*request).listParts},
}

// operation names what a request asks for; what is not known gets a name that no operation has.
func operation(r *http.Request, bucket, key string, query map[string]string) string {
	has := func(name string) bool { _, ok := query[name]; return ok }
	first := func(names ...string) string {
		for i := 0; i < len(names); i += 2 {
			if names[i] == "" || has(names[i]) {
				return names[i+1]
			}
		}
		return "unknown"
	}
	for _, no := range []string{"append", "fetch", "select", "symlink", "lifecycle", "cors", "logging", "website", "replication", "encryption", "trash", "quota"} {
		if has(no) {
			return no
		}
	}
	copies := r.Header.Get("x-bce-copy-source") != ""
	switch {
	case bucket == "" && r.Method == http.MethodGet:
		return "ListBuckets"
	case bucket == "":
		return "unknown"
	case key == "":
		switch r.Method {
		case http.MethodGet:
			return first("location", "GetBucketLocation", "acl", "GetBucketAcl", "storageClass", "GetBucketStorageClass", "versioning", "GetBucketVersioning",
				"uploads", "ListMultipartUploads", "versions", "ListObjectVersions", "", "ListObjects")
		case http.MethodHead:
			return "HeadBucket"
		case http.MethodPut:
			return first("acl", "PutBucketAcl", "", "PutBucket")
		case http.MethodPost:
			return first("delete", "DeleteMultipleObjects")
		case http.MethodDelete:
			return "DeleteBucket"
		}
	case r.Method == http.MethodGet:
		return first("acl", "GetObjectAcl", "tagging", "GetObjectTagging", "uploadId", "ListParts", "", "GetObject")
	case r.Method == http.MethodHead:
		return "GetObjectMeta"
	case r.Method == http.MethodPut && copies:
		return first("partNumber", "UploadPartCopy", "", "CopyObject")
	case r.Method == http.MethodPut:
		return first("acl", "PutObjectAcl", "tagging", "PutObjectTagging", "partNumber", "UploadPart", "", "PutObject")
	case r.Method == http.MethodPost:
		return first("uploads", "InitiateMultipartUpload", "uploadId", "CompleteMultipartUpload", "restore", "RestoreObject")
	case r.Method == http.MethodDelete:
		return first("acl", "DeleteObjectAcl", "tagging", "DeleteObjectTagging", "uploadId", "AbortMultipartUpload", "", "DeleteObject")
	}
	return "unknown"
}
