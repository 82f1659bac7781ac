// Package sentinel holds the few errors that layers test for with errors.Is.
package sentinel

import "errors"

var (
	// ErrTrackLost: the history of changes has a gap (C2). The answer is a rescan.
	ErrTrackLost = errors.New("change history lost")
	// ErrFenced: a newer link or generation has taken over (C8).
	ErrFenced = errors.New("fenced")
	// ErrCorrupt: bytes are not what their digest or count says.
	ErrCorrupt = errors.New("corrupt")
	// ErrProtocol: the peer broke the protocol.
	ErrProtocol = errors.New("protocol error")
	// ErrNotFound: a named thing does not exist.
	ErrNotFound = errors.New("not found")
	// ErrNotSupported: this kernel, device or filesystem cannot do it; the text says what can.
	ErrNotSupported = errors.New("not supported")
	// ErrRefused: going on could harm something; an operator has to decide.
	ErrRefused = errors.New("refused")
	// ErrDenied: the peer's policy or certificate does not allow it.
	ErrDenied = errors.New("denied")
	// ErrNotConverged: changes arrive faster than they can be moved within the limit.
	ErrNotConverged = errors.New("not converged")
	// ErrBrokenOff: a cutover ended when a target was, or may have been, handed over; the writers stay stopped until the operator decides.
	ErrBrokenOff = errors.New("broken off at the hand-over")
	// ErrDiffer: both ends were compared and are not equal.
	ErrDiffer = errors.New("source and target differ")
	// ErrUsage: flags, arguments or config are wrong.
	ErrUsage = errors.New("usage")
)
