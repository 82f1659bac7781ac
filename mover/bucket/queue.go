package bucket

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/moverd/mover/internal/sentinel"
)

// The queue hands numbers of units to workers, and carries what they ask and tell. It holds nothing that would be missed: the ledger is the truth, and the
// coordinator fills the queue anew from it when it starts.
//
//	mover.FLOW.units    stream of unit numbers, 8 bytes; work queue in memory
//	mover.FLOW.ask      request: Ask; answer: Unit, what is left of it
//	mover.FLOW.result   request: Result; answer: it is durable
//	mover.FLOW.alive    Alive: told again and again, and when asked for
//	mover.FLOW.who      the coordinator asks who holds what: it has started, and must not hand out what is under way

// Server is a NATS server inside this process, for workers of this process alone or, where it listens, of others too.
type Server struct{ s *server.Server }

// ServerConfig says how the server is reached. The zero value: from inside this process only.
type ServerConfig struct {
	Host string
	Port int
	TLS  *server.TLSConfigOpts
}

const (
	queueMemory  = 64 << 20
	serverWait   = 10 * time.Second
	ackWait      = 10 * time.Second // a worker says more often that it is alive
	queuePayload = 1 << 20          // bytes of a message that any server takes
)

// NewServer starts one. dir is for what it wants to write.
func NewServer(dir string, c ServerConfig) (*Server, error) {
	o := &server.Options{ServerName: "mover", DontListen: c.Port == 0, Host: c.Host, Port: c.Port, JetStream: true, StoreDir: dir, JetStreamMaxMemory: queueMemory, NoLog: true,
		NoSigs: true}
	if c.TLS != nil {
		tls, err := server.GenTLSConfig(c.TLS)
		if err != nil {
			return nil, fmt.Errorf("queue: %w", err)
		}
		o.TLSConfig, o.TLSVerify = tls, true
	}
	s, err := server.NewServer(o)
	if err != nil {
		return nil, fmt.Errorf("queue: %w", err)
	}
	s.Start()
	if !s.ReadyForConnections(serverWait) {
		s.Shutdown()
		return nil, fmt.Errorf("queue: the embedded NATS server is not ready after %v", serverWait)
	}
	return &Server{s}, nil
}

// Close ends it.
func (s *Server) Close() {
	s.s.Shutdown()
	s.s.WaitForShutdown()
}

// Dial connects to a server inside this process.
func (s *Server) Dial() (*nats.Conn, error) { return nats.Connect("", nats.InProcessServer(s.s)) }

// queue is one flow's.
type queue struct {
	nc   *nats.Conn
	js   jetstream.JetStream
	name string
}

func newQueue(nc *nats.Conn, flow string) (*queue, error) {
	js, err := jetstream.New(nc)
	if err != nil {
		return nil, fmt.Errorf("queue: %w", err)
	}
	return &queue{nc, js, flow}, nil
}

func (q *queue) subject(what string) string { return "mover." + q.name + "." + what }
func (q *queue) stream() string             { return "mover-" + q.name }

// fresh makes the stream, empty. The coordinator does.
func (q *queue) fresh(ctx context.Context, pending int) error {
	st, err := q.js.CreateOrUpdateStream(ctx, jetstream.StreamConfig{Name: q.stream(), Subjects: []string{q.subject("units")}, Retention: jetstream.WorkQueuePolicy,
		Storage: jetstream.MemoryStorage})
	if err == nil {
		err = st.Purge(ctx)
	}
	if err == nil {
		_, err = st.CreateOrUpdateConsumer(ctx, jetstream.ConsumerConfig{Durable: "workers", AckPolicy: jetstream.AckExplicitPolicy, AckWait: ackWait, MaxAckPending: pending,
			FilterSubject: q.subject("units")})
	}
	if err != nil {
		return fmt.Errorf("queue: make the stream %s: %w", q.stream(), err)
	}
	return nil
}

// publish hands out a unit.
func (q *queue) publish(ctx context.Context, unit uint64) error {
	if _, err := q.js.Publish(ctx, q.subject("units"), binary.BigEndian.AppendUint64(nil, unit)); err != nil {
		return fmt.Errorf("queue: hand out unit %d: %w", unit, err)
	}
	return nil
}

// answer serves requests until ctx ends, several at a time.
func (q *queue) answer(ctx context.Context, what string, f func(b []byte) (any, error)) error {
	const together = 64
	msgs := make(chan *nats.Msg, together)
	sub, err := q.nc.ChanSubscribe(q.subject(what), msgs)
	if err != nil {
		return fmt.Errorf("queue: %w", err)
	}
	var wg sync.WaitGroup
	for range together {
		wg.Go(func() {
			for {
				select {
				case <-ctx.Done():
					return
				case m := <-msgs:
					q.reply(m, f)
				}
			}
		})
	}
	wg.Wait()
	return errors.Join(ctx.Err(), sub.Unsubscribe())
}

// reply answers one request. An error goes as text.
func (q *queue) reply(m *nats.Msg, f func(b []byte) (any, error)) {
	v, err := f(m.Data)
	var b []byte
	if err == nil {
		b, err = pack(v)
	}
	r := nats.NewMsg(m.Reply)
	if r.Data = b; err != nil {
		r.Header.Set("error", err.Error())
	}
	_ = m.RespondMsg(r) // who asked asks again
}

// request asks the coordinator until it answers.
func (q *queue) request(ctx context.Context, what string, v, answer any) error {
	b, err := pack(v)
	if err != nil {
		return err
	}
	if len(b) > queuePayload {
		return fmt.Errorf("queue: %s of %d bytes, at most %d: %w", what, len(b), queuePayload, sentinel.ErrNotSupported)
	}
	for wait := 50 * time.Millisecond; ; wait = min(2*wait, 2*time.Second) {
		try, cancel := context.WithTimeout(ctx, 30*time.Second)
		m, err := q.nc.RequestWithContext(try, q.subject(what), b)
		cancel()
		switch {
		case err == nil:
			if text := m.Header.Get("error"); text != "" {
				return fmt.Errorf("the coordinator: %s", text)
			}
			return unpack(m.Data, answer)
		case ctx.Err() != nil:
			return ctx.Err()
		case errors.Is(err, nats.ErrConnectionClosed):
			return fmt.Errorf("queue: %w", err)
		}
		select { // nobody is there, or slow: it comes back and knows what it has written
		case <-time.After(wait):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// Ask is a worker that wants to begin with a unit.
type Ask struct {
	Worker string
	Unit   uint64
}

// Alive is a worker that holds units.
type Alive struct {
	Worker string
	Units  []uint64
}

// hear calls f with every message of a subject until the subscription ends.
func (q *queue) hear(what string, f func(b []byte)) (*nats.Subscription, error) {
	sub, err := q.nc.Subscribe(q.subject(what), func(m *nats.Msg) { f(m.Data) })
	if err != nil {
		return nil, fmt.Errorf("queue: %w", err)
	}
	return sub, nil
}

// say tells everybody who listens.
func (q *queue) say(what string, v any) {
	if b, err := pack(v); err == nil {
		_ = q.nc.Publish(q.subject(what), b) // who misses it hears the next one
	}
}
