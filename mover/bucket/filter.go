package bucket

import (
	"fmt"
	"regexp"
	"strings"

	"github.com/moverd/mover/internal/sentinel"
)

// Filter says which keys are moved: those that an include pattern fits, or any where there is none, and no exclude pattern. In a pattern `*` stands for anything
// without `/`, `**` for anything, `?` for one character but `/`.
type Filter struct{ include, exclude *regexp.Regexp }

// NewFilter reads patterns.
func NewFilter(include, exclude []string) (f Filter, err error) {
	if f.include, err = patterns("include", include); err != nil {
		return f, err
	}
	f.exclude, err = patterns("exclude", exclude)
	return f, err
}

// Takes tells whether key is moved.
func (f Filter) Takes(key string) bool {
	return (f.include == nil || f.include.MatchString(key)) && (f.exclude == nil || !f.exclude.MatchString(key))
}

func patterns(name string, globs []string) (*regexp.Regexp, error) {
	if len(globs) == 0 {
		return nil, nil
	}
	var all []string
	for _, g := range globs {
		if g == "" {
			return nil, fmt.Errorf("%s: an empty pattern: %w", name, sentinel.ErrUsage)
		}
		var b strings.Builder
		for len(g) > 0 {
			switch {
			case strings.HasPrefix(g, "**"):
				b.WriteString(`.*`)
				g = g[2:]
				continue
			case g[0] == '*':
				b.WriteString(`[^/]*`)
			case g[0] == '?':
				b.WriteString(`[^/]`)
			default:
				n := strings.IndexAny(g, "*?")
				if n < 0 {
					n = len(g)
				}
				b.WriteString(regexp.QuoteMeta(g[:n]))
				g = g[n:]
				continue
			}
			g = g[1:]
		}
		all = append(all, b.String())
	}
	re, err := regexp.Compile(`(?s)\A(?:` + strings.Join(all, "|") + `)\z`)
	if err != nil {
		return nil, fmt.Errorf("%s %q: %v: %w", name, globs, err, sentinel.ErrUsage)
	}
	return re, nil
}
