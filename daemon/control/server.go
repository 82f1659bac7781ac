package control

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/moverd/mover/internal/sentinel"
	"github.com/moverd/mover/mover"
)

// Server answers on a socket.
type Server struct {
	svc  Service
	http http.Server
	log  *slog.Logger

	running sync.WaitGroup // verbs under way, those included whose client has gone
}

// NewServer makes a server of svc. ctx ends verbs under way; the service decides what that means past a freeze.
func NewServer(ctx context.Context, svc Service, log *slog.Logger) *Server {
	s := &Server{svc: svc, log: log}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /v1/daemon", func(w http.ResponseWriter, _ *http.Request) { answer(w, svc.Daemon()) })
	mux.HandleFunc("GET /v1/status", func(w http.ResponseWriter, _ *http.Request) {
		all := svc.Status()
		if all == nil {
			all = []mover.Status{}
		}
		answer(w, all)
	})
	for _, verb := range Verbs {
		mux.HandleFunc("POST /v1/"+verb, func(w http.ResponseWriter, r *http.Request) { s.verb(ctx, verb, w, r) })
	}
	s.http = http.Server{Handler: mux, ReadHeaderTimeout: 10 * time.Second, ErrorLog: slog.NewLogLogger(log.Handler(), slog.LevelDebug),
		ConnContext: withPeer}
	return s
}

// Listen makes the socket, mode 0600. A socket that nobody answers on is replaced; one that is in use is refused.
func Listen(path string) (net.Listener, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return nil, err
	}
	if c, err := net.Dial("unix", path); err == nil {
		c.Close()
		return nil, fmt.Errorf("control socket %s: another daemon answers on it: %w", path, sentinel.ErrRefused)
	}
	if st, err := os.Lstat(path); err == nil {
		if st.Mode()&os.ModeSocket == 0 {
			return nil, fmt.Errorf("control socket %s: is a file that is no socket; move it away: %w", path, sentinel.ErrRefused)
		}
		if err := os.Remove(path); err != nil {
			return nil, err
		}
	}
	// The mode must be right before the first client: the umask is of the whole process, so the socket is made under another name.
	temp := fmt.Sprintf("%s.%d", path, os.Getpid())
	os.Remove(temp)
	ln, err := net.ListenUnix("unix", &net.UnixAddr{Name: temp, Net: "unix"})
	if err != nil {
		return nil, fmt.Errorf("control socket %s: %w", path, err)
	}
	ln.SetUnlinkOnClose(false)
	if err := errors.Join(os.Chmod(temp, 0o600), os.Rename(temp, path)); err != nil {
		ln.Close()
		os.Remove(temp)
		return nil, fmt.Errorf("control socket %s: %w", path, err)
	}
	return &listener{UnixListener: ln, path: path}, nil
}

// listener lets in root only and removes the socket when it is closed.
type listener struct {
	*net.UnixListener
	path string
	once sync.Once
}

func (l *listener) Accept() (net.Conn, error) {
	for {
		c, err := l.AcceptUnix()
		if err != nil {
			return nil, err
		}
		if cred, err := peer(c); err == nil && (cred.Uid == 0 || int(cred.Uid) == os.Geteuid()) {
			return c, nil
		}
		c.Close()
	}
}

func (l *listener) Close() error {
	l.once.Do(func() { os.Remove(l.path) })
	return l.UnixListener.Close()
}

type peerKey struct{}

// Peer names the process that asked for the verb that runs in ctx, as uid:N/pid:N; empty: nobody did.
func Peer(ctx context.Context) string {
	name, _ := ctx.Value(peerKey{}).(string)
	return name
}

// withPeer remembers who is on the other side of c.
func withPeer(ctx context.Context, c net.Conn) context.Context {
	u, ok := c.(*net.UnixConn)
	if !ok {
		return ctx
	}
	cred, err := peer(u)
	if err != nil {
		return ctx
	}
	return context.WithValue(ctx, peerKey{}, fmt.Sprintf("uid:%d/pid:%d", cred.Uid, cred.Pid))
}

// peer is the process on the other side, as it was when it connected.
func peer(c *net.UnixConn) (*unix.Ucred, error) {
	raw, err := c.SyscallConn()
	if err != nil {
		return nil, err
	}
	var cred *unix.Ucred
	var cerr error
	if err := raw.Control(func(fd uintptr) { cred, cerr = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED) }); err != nil {
		return nil, err
	}
	if cerr != nil {
		return nil, cerr
	}
	return cred, nil
}

// Serve answers until Close.
func (s *Server) Serve(ln net.Listener) error {
	if err := s.http.Serve(ln); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("control socket: %w", err)
	}
	return nil
}

// Close takes no new request, waits for verbs under way and for their last lines, at most until ctx ends.
func (s *Server) Close(ctx context.Context) error {
	err := s.http.Shutdown(ctx)
	done := make(chan struct{})
	go func() { s.running.Wait(); close(done) }()
	select {
	case <-done:
	case <-ctx.Done():
		err = errors.Join(err, s.http.Close())
		<-done
	}
	return err
}

func answer(w http.ResponseWriter, v any) {
	w.Header().Set("Content-Type", "application/json")
	json.NewEncoder(w).Encode(v)
}

func (s *Server) verb(base context.Context, verb string, w http.ResponseWriter, r *http.Request) {
	var req Request
	dec := json.NewDecoder(io.LimitReader(r.Body, 64<<10))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&req); err != nil {
		w.WriteHeader(http.StatusBadRequest)
		answer(w, Line{Failure: failure(fmt.Errorf("%s: request: %v: %w", verb, err, sentinel.ErrUsage), nil)})
		return
	}
	io.Copy(io.Discard, r.Body) // so that the server watches for a hang-up

	// The verb lives in a context of its own: a client that hangs up ends it only until the freeze.
	ctx, cancel := context.WithCancelCause(context.WithValue(base, peerKey{}, Peer(r.Context())))
	defer cancel(nil)
	out := &stream{w: w, gone: func() { cancel(ErrHangUp) }}
	stop := context.AfterFunc(r.Context(), out.hangUp)
	defer stop()

	s.running.Add(1)
	defer s.running.Done()
	w.Header().Set("Content-Type", "application/x-ndjson")
	started := time.Now()
	s.log.Info("control: begin", "verb", verb, "flow", req.Flow)
	result, err := s.svc.Do(ctx, verb, req, out.progress)
	if err != nil {
		s.log.Warn("control: end", "verb", verb, "flow", req.Flow, "after", time.Since(started), "error", err)
		out.line(Line{Failure: failure(err, result.Report)})
		return
	}
	s.log.Info("control: end", "verb", verb, "flow", req.Flow, "after", time.Since(started))
	out.line(Line{Result: &result})
}

// ErrHangUp is the cause with which a verb's context ends when its client is gone.
var ErrHangUp = errors.New("the client hung up")

// stream writes lines to a client that may be gone.
type stream struct {
	w    http.ResponseWriter
	gone func()

	mu     sync.Mutex // guards all below, and w
	frozen bool       // past the freeze: a hang-up changes nothing
	dead   bool
}

func (s *stream) progress(p mover.Progress) {
	if p.Step == FreezeStep {
		s.mu.Lock()
		s.frozen = true // before the freeze begins, for the caller freezes after this returned
		s.mu.Unlock()
	}
	s.line(Line{Progress: &p})
}

func (s *stream) line(l Line) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.dead {
		return
	}
	rc := http.NewResponseController(s.w)
	rc.SetWriteDeadline(time.Now().Add(5 * time.Second)) // a client that is stopped must not hold up a cutover
	if json.NewEncoder(s.w).Encode(l) != nil || rc.Flush() != nil {
		s.dead = true
	}
}

func (s *stream) hangUp() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.dead = true
	if !s.frozen {
		s.gone()
	}
}
