package bosemu

import (
	"iter"
	"slices"
	"sort"
)

// run is how many keys lie together: a search finds the run, then the key.
const run = 512

// keySet is keys in the order of their bytes.
type keySet struct{ runs [][]string } // none is empty

// find is where key is, or would be put.
func (k *keySet) find(key string) (i, j int, found bool) {
	i = sort.Search(len(k.runs), func(i int) bool { r := k.runs[i]; return r[len(r)-1] >= key })
	if i == len(k.runs) {
		return i, 0, false
	}
	j, found = slices.BinarySearch(k.runs[i], key)
	return i, j, found
}

func (k *keySet) add(key string) {
	i, j, found := k.find(key)
	switch {
	case found:
		return
	case len(k.runs) == 0:
		k.runs = [][]string{{key}}
		return
	case i == len(k.runs):
		i--
		j = len(k.runs[i])
	}
	r := slices.Insert(k.runs[i], j, key)
	if k.runs[i] = r; len(r) > run {
		half := slices.Clone(r[len(r)/2:])
		k.runs[i] = slices.Clip(r[:len(r)/2])
		k.runs = slices.Insert(k.runs, i+1, half)
	}
}

func (k *keySet) remove(key string) {
	i, j, found := k.find(key)
	if !found {
		return
	}
	if k.runs[i] = slices.Delete(k.runs[i], j, j+1); len(k.runs[i]) == 0 {
		k.runs = slices.Delete(k.runs, i, i+1)
	}
}

// from gives the keys that are not less than first.
func (k *keySet) from(first string) iter.Seq[string] {
	return func(yield func(string) bool) {
		i, j, _ := k.find(first)
		for ; i < len(k.runs); i, j = i+1, 0 {
			for _, key := range k.runs[i][j:] {
				if !yield(key) {
					return
				}
			}
		}
	}
}
