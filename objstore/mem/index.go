package mem

import "math/rand/v2"

// index is a skip list of objects by key: what a page of a listing costs does not depend on how many keys there are.
type index struct {
	head node
	n    int
}

type node struct {
	key  string
	o    *object
	next []*node
}

const levels = 24 // enough for 4^24 keys: one node of four rises a level

// from is the first node whose key is at least key; nil: none.
func (x *index) from(key string) *node {
	return x.walk(func(n *node) bool { return n.key < key }, nil)
}

// after is the first node whose key is greater than key; nil: none. That of "" is the first of all: there is no empty key.
func (x *index) after(key string) *node {
	return x.walk(func(n *node) bool { return n.key <= key }, nil)
}

// walk goes as far as before holds and gives the node behind; into gets the last node before it of each level.
func (x *index) walk(before func(*node) bool, into *[levels]*node) *node {
	at := &x.head
	for level := levels - 1; level >= 0; level-- {
		for level < len(at.next) && at.next[level] != nil && before(at.next[level]) {
			at = at.next[level]
		}
		if into != nil {
			into[level] = at
		}
	}
	if len(at.next) == 0 {
		return nil
	}
	return at.next[0]
}

func (x *index) get(key string) *object {
	if n := x.from(key); n != nil && n.key == key {
		return n.o
	}
	return nil
}

func (x *index) set(key string, o *object) {
	if x.head.next == nil {
		x.head.next = make([]*node, levels)
	}
	var before [levels]*node
	if n := x.walk(func(n *node) bool { return n.key < key }, &before); n != nil && n.key == key {
		n.o = o
		return
	}
	high := 1
	for r := rand.Uint64(); high < levels && r&3 == 0; r >>= 2 {
		high++
	}
	n := &node{key, o, make([]*node, high)}
	for level := range n.next {
		n.next[level], before[level].next[level] = before[level].next[level], n
	}
	x.n++
}

func (x *index) del(key string) {
	var before [levels]*node
	n := x.walk(func(n *node) bool { return n.key < key }, &before)
	if n == nil || n.key != key {
		return
	}
	for level := range n.next {
		before[level].next[level] = n.next[level]
	}
	x.n--
}
