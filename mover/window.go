package mover

// Window bounds the plain bytes that are sent and not acked. One batch always fits, however small the window.
type Window struct {
	Limit int64 // bytes
	used  int64
}

// Take admits n bytes, or tells that they have to wait.
func (w *Window) Take(n int64) bool {
	if w.used > 0 && w.used+n > w.Limit {
		return false
	}
	w.used += n
	return true
}

// Give returns n bytes that Take admitted.
func (w *Window) Give(n int64) {
	if w.used -= n; w.used < 0 {
		panic("mover: window given more than was taken")
	}
}

// Used is the bytes under way.
func (w *Window) Used() int64 { return w.used }
