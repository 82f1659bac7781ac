// Package exit maps errors to exit codes, for every command in one place.
package exit

import (
	"errors"

	"github.com/moverd/mover/internal/sentinel"
)

// Exit codes.
const (
	Done     = 0
	Failed   = 1
	Usage    = 2 // usage or config
	NotEqual = 3 // not converged, or verification failed
	Broken   = 4 // a cutover was broken off when a target was, or may have been, handed over
)

// Code is what a command that ended with err exits with.
func Code(err error) int {
	switch {
	case err == nil:
		return Done
	case errors.Is(err, sentinel.ErrBrokenOff):
		return Broken
	case errors.Is(err, sentinel.ErrUsage):
		return Usage
	case errors.Is(err, sentinel.ErrNotConverged), errors.Is(err, sentinel.ErrDiffer):
		return NotEqual
	}
	return Failed
}
