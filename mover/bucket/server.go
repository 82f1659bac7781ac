package bucket

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"slices"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"

	"github.com/moverd/mover/internal/sentinel"
)

// Server is a NATS server inside this process, for workers of this process alone or, where it listens, of others too.
type Server struct{ s *server.Server }

// ServerConfig says how the server is reached. The zero value: from inside this process only.
type ServerConfig struct {
	Host string
	Port int // -1: any
	TLS  *tls.Config
	// Admit tells which worker a certificate names, and for which flows it may work. Needed with TLS.
	Admit func(s tls.ConnectionState) (worker string, flows []string, err error)
	Log   func(text string) // of connections that are refused; may be nil
}

const (
	queueMemory = 64 << 20
	tlsSeconds  = 10 // for a handshake
)

// NewServer starts one. dir is for what it wants to write.
func NewServer(dir string, c ServerConfig) (*Server, error) {
	o := &server.Options{ServerName: "mover", DontListen: c.Port == 0, Host: c.Host, Port: c.Port, JetStream: true, StoreDir: dir, JetStreamMaxMemory: queueMemory, NoLog: true,
		NoSigs: true}
	if c.TLS != nil {
		o.TLSConfig, o.TLS, o.TLSVerify, o.TLSTimeout, o.AuthTimeout = c.TLS, true, true, tlsSeconds, tlsSeconds+1
		o.CustomClientAuthentication = doorman{c}
	}
	s, err := server.NewServer(o)
	if err != nil {
		return nil, fmt.Errorf("queue: %w", err)
	}
	s.Start()
	if !s.ReadyForConnections(serverWait) {
		s.Shutdown()
		return nil, fmt.Errorf("queue: the NATS server at %s:%d is not ready after %v: is the port in use: %w", c.Host, c.Port, serverWait, sentinel.ErrRefused)
	}
	return &Server{s}, nil
}

// Close ends it.
func (s *Server) Close() {
	s.s.Shutdown()
	s.s.WaitForShutdown()
}

// Address is where it listens, host:port.
func (s *Server) Address() string { return s.s.Addr().String() }

// Dial connects to a server inside this process.
func (s *Server) Dial() (*nats.Conn, error) { return nats.Connect("", nats.InProcessServer(s.s)) }

// doorman lets each certificate do what a worker of its flows needs, and nothing else. Connections of this process may do all.
type doorman struct{ c ServerConfig }

func (d doorman) Check(c server.ClientAuthentication) bool {
	state := c.GetTLSConnectionState()
	if state == nil { // TLS is asked of all others
		a := c.RemoteAddress()
		return a != nil && a.Network() == "pipe"
	}
	worker, flows, err := d.c.Admit(*state)
	if err != nil || len(flows) == 0 {
		if d.c.Log != nil {
			d.c.Log(fmt.Sprintf("%s at %v may work for no flow: %v", worker, c.RemoteAddress(), err))
		}
		return false
	}
	c.RegisterUser(&server.User{Username: worker, Permissions: permissions(worker, flows)})
	return true
}

// permissions are those of one worker.
func permissions(worker string, flows []string) *server.Permissions {
	var publish, subscribe []string
	name := token(worker)
	for _, f := range flows {
		q := &queue{name: QueueName(f)}
		for _, what := range []string{"ask", "result", "alive"} {
			publish = append(publish, q.subject(what)+"."+name)
		}
		publish = append(publish, "$JS.API.CONSUMER.INFO."+q.stream()+"."+consumer, "$JS.API.CONSUMER.MSG.NEXT."+q.stream()+"."+consumer, "$JS.ACK."+q.stream()+"."+consumer+".>")
		subscribe = append(subscribe, q.subject("who"))
	}
	subscribe = append(subscribe, inbox(worker)+".>")
	return &server.Permissions{Publish: &server.SubjectPermission{Allow: slices.Compact(publish)}, Subscribe: &server.SubjectPermission{Allow: subscribe}}
}

// inbox is where a worker gets answers: nobody else may listen there.
func inbox(worker string) string { return "_INBOX." + token(worker) }

// Remote says how the queue in another process is reached.
type Remote struct {
	URL    []string
	TLS    *tls.Config           // nil: without
	Roots  func() *x509.CertPool // asked at each connection
	Worker string                // whose inbox it is; "": a coordinator
	Wait   time.Duration         // between tries to connect again; 0: 1 s
	Log    func(err error)       // of what the server refuses; may be nil
}

// Dial connects. Once it is connected, it connects again whenever it has to, for ever.
func (r Remote) Dial() (*nats.Conn, error) {
	if r.Wait <= 0 {
		r.Wait = time.Second
	}
	opts := []nats.Option{nats.MaxReconnects(-1), nats.ReconnectWait(r.Wait), nats.IgnoreAuthErrorAbort(), nats.Timeout(serverWait)}
	if r.TLS != nil {
		opts = append(opts, nats.Secure(r.TLS))
		if r.Roots != nil {
			opts = append(opts, func(o *nats.Options) error {
				o.RootCAsCB = func() (*x509.CertPool, error) { return r.Roots(), nil }
				return nil
			})
		}
	}
	if r.Log != nil {
		opts = append(opts, nats.ErrorHandler(func(_ *nats.Conn, _ *nats.Subscription, err error) { r.Log(err) }))
	}
	if r.Worker != "" {
		opts = append(opts, nats.Name("worker "+r.Worker), nats.CustomInboxPrefix(inbox(r.Worker)))
	}
	nc, err := nats.Connect(joined(r.URL), opts...)
	if err != nil {
		return nil, fmt.Errorf("queue at %s: %w", joined(r.URL), err)
	}
	return nc, nil
}

func joined(urls []string) (s string) {
	for i, u := range urls {
		if i > 0 {
			s += ","
		}
		s += u
	}
	return s
}
