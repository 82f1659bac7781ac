package bucket

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/moverd/mover/internal/sentinel"
)

// The queue hands numbers of units to workers, and carries what they ask and tell. It holds nothing that would be missed: the ledger is the truth, and the
// coordinator fills the queue anew from it when it starts.
//
//	mover.FLOW.units            stream of unit numbers, 8 bytes; work queue in memory. A number is acked when its unit has been asked for: from then on the coordinator watches it
//	mover.FLOW.ask.WORKER       request: Ask; answer: Unit, what is left of it
//	mover.FLOW.result.WORKER    request: Result; answer: it is durable
//	mover.FLOW.alive.WORKER     request: Alive, again and again, and when asked for; answer: Heard
//	mover.FLOW.who              the coordinator asks who holds what: it has started, and should not hand out what is under way
//
// The server lets a worker speak under its own name only, where it knows whose certificate a connection has.

const (
	serverWait   = 10 * time.Second
	queueWait    = 30 * time.Second // for a server that does not answer
	queuePayload = 1 << 20          // bytes of a message that any server takes
)

// queue is one flow's.
type queue struct {
	nc    *nats.Conn
	js    jetstream.JetStream
	name  string
	me    string             // the worker
	made  time.Time          // the stream, by fresh
	units jetstream.Consumer // of a worker
}

func newQueue(nc *nats.Conn, flow string) (*queue, error) {
	js, err := jetstream.New(nc)
	if err != nil {
		return nil, fmt.Errorf("queue: %w", err)
	}
	return &queue{nc: nc, js: js, name: flow}, nil
}

// token is a name as part of a subject.
func token(name string) string { return tokens.Replace(name) }

var tokens = strings.NewReplacer(".", "%", " ", "_", "*", "_", ">", "_")

func (q *queue) subject(what string) string { return "mover." + q.name + "." + what }
func (q *queue) stream() string             { return "mover-" + q.name }

// fresh makes the stream, empty. The coordinator does. ackWait: from a number to the question for its unit.
func (q *queue) fresh(ctx context.Context, pending int, ackWait time.Duration) error {
	st, err := q.js.CreateOrUpdateStream(ctx, jetstream.StreamConfig{Name: q.stream(), Subjects: []string{q.subject("units")}, Retention: jetstream.WorkQueuePolicy,
		Storage: jetstream.MemoryStorage})
	if err == nil {
		err = st.Purge(ctx)
	}
	if err == nil {
		_, err = st.CreateOrUpdateConsumer(ctx, jetstream.ConsumerConfig{Durable: consumer, AckPolicy: jetstream.AckExplicitPolicy, AckWait: ackWait, MaxAckPending: pending,
			FilterSubject: q.subject("units")})
	}
	if err != nil {
		return fmt.Errorf("queue: make the stream %s: %w", q.stream(), err)
	}
	q.made = st.CachedInfo().Created
	return nil
}

// consumer is shared by all workers of a flow.
const consumer = "workers"

// lost tells whether the stream is gone, or is not the one that fresh has made: its server was started again.
func (q *queue) lost(ctx context.Context) bool {
	ctx, cancel := context.WithTimeout(ctx, serverWait)
	defer cancel()
	st, err := q.js.Stream(ctx, q.stream())
	if err != nil {
		return errors.Is(err, jetstream.ErrStreamNotFound)
	}
	return !st.CachedInfo().Created.Equal(q.made)
}

// publish hands out a unit.
func (q *queue) publish(ctx context.Context, unit uint64) error {
	if _, err := q.js.Publish(ctx, q.subject("units"), binary.BigEndian.AppendUint64(nil, unit)); err != nil {
		return fmt.Errorf("queue: hand out unit %d: %w", unit, err)
	}
	return nil
}

// next waits for a unit; nil: none has come yet. An error: there is no queue now.
func (q *queue) next(ctx context.Context) (jetstream.Msg, error) {
	if q.units == nil {
		c, err := q.js.Consumer(ctx, q.stream(), consumer)
		if err != nil {
			return nil, err
		}
		q.units = c
	}
	ctx, cancel := context.WithTimeout(ctx, nextWait)
	defer cancel()
	m, err := q.units.Next(jetstream.FetchContext(ctx))
	if errors.Is(err, nats.ErrTimeout) || errors.Is(err, jetstream.ErrNoMessages) || errors.Is(err, context.DeadlineExceeded) || errors.Is(err, context.Canceled) {
		return nil, nil
	}
	return m, err
}

// nextWait is how long one question for a unit waits at the server.
const nextWait = 5 * time.Second

// answerer answers what a worker asks or tells.
type answerer func(ctx context.Context, worker string, b []byte) (any, error)

// answer serves requests of workers from now until stop, several at a time.
func (q *queue) answer(what string, f answerer) (stop func(), err error) {
	const together, waiting = 64, 8192 // what comes when so many wait is dropped, and asked again after a long while
	msgs := make(chan *nats.Msg, waiting)
	sub, err := q.nc.ChanSubscribe(q.subject(what)+".*", msgs)
	if err != nil {
		return nil, fmt.Errorf("queue: %w", err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	for range together {
		wg.Go(func() {
			for {
				select {
				case <-ctx.Done():
					return
				case m := <-msgs:
					q.reply(ctx, m, f)
				}
			}
		})
	}
	return func() {
		_ = sub.Unsubscribe() // it goes with the connection
		cancel()
		wg.Wait()
	}, nil
}

// reply answers one request. An error goes as text; none when ctx has ended: who asked asks again.
func (q *queue) reply(ctx context.Context, m *nats.Msg, f answerer) {
	v, err := f(ctx, m.Subject[strings.LastIndexByte(m.Subject, '.')+1:], m.Data)
	if ctx.Err() != nil && err != nil {
		return
	}
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
		m, err := q.nc.RequestWithContext(try, q.subject(what)+"."+token(q.me), b)
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

// once asks the coordinator one time. false: it has not answered.
func (q *queue) once(ctx context.Context, what string, v, answer any) (bool, error) {
	b, err := pack(v)
	if err != nil {
		return false, err
	}
	m, err := q.nc.RequestWithContext(ctx, q.subject(what)+"."+token(q.me), b)
	if err != nil || m.Header.Get("error") != "" {
		return false, nil
	}
	return true, unpack(m.Data, answer)
}

// Who is a worker, in one life of it.
type Who struct {
	Worker string // its name
	Life   string // drawn by lot at each start
}

// Ask is a worker that wants to begin with a unit. From then on its Alive messages name the unit.
type Ask struct {
	Who
	Seq  uint64 // its Alive messages until now
	Sole bool   // Alive.Sole
	Flow string // Alive.Flow
	Unit uint64
}

// Alive is a worker that wants to keep its units.
type Alive struct {
	Who
	Seq     uint64
	Units   []uint64 // of which anything may be under way
	Sole    bool     // no earlier process of this name is alive, for it would hold a lock that this one has
	Flow    string   // what it moves where, and its version: as the coordinator's, or it is refused
	Host    string
	Objects int64 // under way
	Done    int64 // in this life
	Use     Use   // of its share of the flow's rate
}

// Heard is the coordinator's answer to Alive: the worker keeps all units but those that are lost.
type Heard struct {
	Lost    []uint64
	Refused string // why the worker may not work
	Share   int64  // of the flow's rate, bytes a second; noRate: without a bound
	Class   uint8  // what the flow sends for now: a shape.Class
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
