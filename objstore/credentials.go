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

// Doubter is Credentials that may end before their time.
type Doubter interface {
	// Doubt tells that a store has refused a session's token. true: there is another one, or it has been asked for, so another try may succeed.
	Doubt(token string) bool
}

// Refused tells whether c has other keys than those that a store has refused, or gets some now. Keys without a token do not end.
func Refused(c Credentials, token string) bool {
	d, ok := c.(Doubter)
	return ok && token != "" && d.Doubt(token)
}

// Fixed is keys that never change.
type Fixed Keys

// Keys gives them.
func (f Fixed) Keys(context.Context) (Keys, error) { return Keys(f), nil }

func (f Fixed) String() string   { return Keys(f).String() }
func (f Fixed) GoString() string { return Keys(f).String() }

// SessionLife is how long a session that ends at a time may be used, where a service's clock showed now. Both are told in seconds that were cut off: the session
// may end a second sooner than they say.
func SessionLife(now, ends time.Time) time.Duration {
	life := ends.Sub(now)
	return life - min(time.Second, max(0, life/2))
}
