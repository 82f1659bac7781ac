package sender

import "github.com/moverd/mover/mover"

// Pulse tells a watchdog whether the flow hangs. A flow without a connection waits for the gateway, which may take for ever; with one it
// is at work while a step of its loop is under way.
func (f *Flow) Pulse() mover.Pulse {
	l := f.link.view()
	p := mover.Pulse{Flow: f.cfg.Flow, Done: f.reader.served.Load() + l.Heard}
	f.mu.Lock()
	defer f.mu.Unlock()
	p.Done += f.steps
	p.Working = f.cancel != nil && l.Conns > 0
	return p
}
