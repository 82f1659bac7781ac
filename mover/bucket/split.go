package bucket

import "unicode/utf8"

// span is a part of the keyspace: keys greater than after, up to to. An empty to is the end.
type span struct{ after, to string }

// has tells whether key is not behind the span.
func (s span) has(key string) bool { return s.to == "" || key <= s.to }

const (
	lastRune  = utf8.MaxRune
	lastASCII = rune(0x7f)
)

// split finds a place about the middle of what is left of s, with keys behind it: what lies up to mid and what lies behind can be listed side by side. Nobody
// knows how keys are spread, so first is asked for the first key after a place, a dozen times or so. mid is empty where there is nothing to be parted. to is
// where s ends: nearer than before where nothing lies behind.
func split(s span, first func(after string) (key string, ok bool, err error)) (mid, to string, err error) {
	to = s.to
	behind := func(place string) (bool, error) {
		if to != "" && place >= to {
			return false, nil
		}
		key, ok, err := first(place)
		some := ok && (to == "" || key <= to)
		if err == nil && !some {
			to = place
		}
		return some, err
	}
	low, ok, err := first(s.after) // s.after may be a place where nothing is
	if err != nil || !ok || !s.has(low) {
		return "", to, err
	}
	at := starts(low)
	// How many runes of low have all the keys in common that are left? The more of them a place keeps, the more lies behind it.
	lo, hi := 0, len(at)
	for lo < hi {
		i := (lo + hi + 1) / 2
		some, err := behind(head(low, at, i) + string(lastRune))
		if err != nil {
			return "", to, err
		}
		if some {
			hi = i - 1
		} else {
			lo = i
		}
	}
	// At the next rune they differ, unless they have all of low in common.
	common, least := head(low, at, lo), ' '-1
	if lo < len(at) {
		r, _ := utf8.DecodeRuneInString(low[len(common):])
		least = max(least, r)
	}
	most := rune(lastRune)
	if some, err := behind(common + string(lastASCII)); err != nil {
		return "", to, err
	} else if !some {
		most = lastASCII
	}
	for most-least > 1 {
		r := between(least, most)
		some, err := behind(common + string(r))
		if err != nil {
			return "", to, err
		}
		if some { // keys lie between least and r, and some behind
			return common + string(between(least, r+1)), to, nil
		}
		most = r
	}
	if lo < len(at) { // all but a few go on like low
		place := head(low, at, lo+1) + string(lastRune)
		if some, err := behind(place); some || err != nil {
			return place, to, err
		}
	}
	return "", to, nil
}

// between is a rune in the middle of two that are not neighbours, the lower one not counted.
func between(least, most rune) rune {
	r := least + (most-least)/2
	if 0xd800 <= r && r <= 0xdfff { // there are no such runes
		return 0xe000
	}
	return r
}

// starts gives where the runes of s begin.
func starts(s string) []int {
	at := make([]int, 0, len(s))
	for i := range s {
		at = append(at, i)
	}
	return at
}

// head is the first n runes of s.
func head(s string, at []int, n int) string {
	if n < len(at) {
		return s[:at[n]]
	}
	return s
}
