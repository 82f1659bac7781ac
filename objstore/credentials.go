package objstore

import (
	"context"
	"time"
)

// Keys sign requests. They print as what they are for, never as what they are.
type Keys struct {
	ID      string
	Secret  string
	Token   string    // of a session; may be empty
	Expires time.Time // zero: never
}

func (k Keys) String() string   { return "keys of " + k.ID }
func (k Keys) GoString() string { return k.String() }

// Credentials gives the keys that are good now, from wherever they come, and new ones before those end. Safe for concurrent use; a driver asks before each
// request.
type Credentials interface {
	Keys(ctx context.Context) (Keys, error)
}

// Fixed is keys that never change.
type Fixed Keys

// Keys gives them.
func (f Fixed) Keys(context.Context) (Keys, error) { return Keys(f), nil }

func (f Fixed) String() string   { return Keys(f).String() }
func (f Fixed) GoString() string { return Keys(f).String() }
