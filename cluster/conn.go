package cluster

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go"
)

// Conn carries messages between the members of an application, at most once. [NATS] makes the real
// one. It is safe for concurrent use, and its owner closes it after whoever uses it.
//
// What one member publishes arrives at each subscriber in its order, also at its own; any of it may be
// lost on the way.
type Conn interface {
	// Publish sends data, which may be changed afterwards, to every subscription of the subject.
	// Nothing is kept for later: while there is no connection the error wraps [ErrDisconnected]. No
	// error does not mean that it arrived.
	Publish(subject string, data []byte) error
	// Subscribe hands every message on the subject to deliver, one at a time. It fails on a closed
	// connection; one that is away is good enough.
	Subscribe(subject string, q Queue, deliver func(Message)) (Subscription, error)
	// Request publishes data and returns the first answer, or why there is none: nobody subscribes, the
	// context has ended, or the connection is away. A context without an end waits for ever.
	Request(ctx context.Context, subject string, data []byte) ([]byte, error)
	// Flush returns nil when all that was published has left for good, or an error when that takes
	// longer than d, or at once without a connection.
	Flush(d time.Duration) error
}

// ErrDisconnected says that there is no connection now.
var ErrDisconnected = nats.ErrDisconnected

// Queue bounds what waits for the deliver function of one subscription. What comes above it is lost and
// counted, and the connection's owner is told of a slow consumer. A zero field means its default.
type Queue struct {
	Messages int // 0 = 65,536
	Bytes    int // 0 = 64 MiB
}

func (q Queue) messages() int { return cmp.Or(q.Messages, 1<<16) }
func (q Queue) bytes() int    { return cmp.Or(q.Bytes, 64<<20) }

// Message is what a subscription delivers. Data may be kept, and must not be changed: other
// subscriptions have it, too.
type Message struct {
	Data []byte
	// Respond answers a request, from any goroutine; only the first answer counts. nil: none is wanted.
	Respond func(data []byte) error
}

// Subscription is one call of Subscribe.
type Subscription interface {
	// Dropped counts the messages lost since deliver did not keep up.
	Dropped() uint64
	// Close ends the subscription and returns when deliver is not running any more and will not be
	// called again, or when the connection is closed. Closing again does the same. deliver must not
	// call it.
	Close() error
}

// NATS is a [Conn] over a connection to NATS, which stays the caller's. nil stays nil.
func NATS(conn *nats.Conn) Conn {
	if conn == nil {
		return nil
	}
	return natsConn{conn}
}

type natsConn struct{ nats *nats.Conn }

func (c natsConn) Publish(subject string, data []byte) error {
	if err := c.away(); err != nil {
		return err // the client would keep it until it is connected again
	}
	return c.nats.Publish(subject, data)
}

// away says why nothing can be sent now.
func (c natsConn) away() error {
	switch {
	case c.nats.IsConnected():
		return nil
	case c.nats.IsClosed():
		return nats.ErrConnectionClosed
	}
	return ErrDisconnected
}

func (c natsConn) Subscribe(subject string, q Queue, deliver func(Message)) (Subscription, error) {
	sub, err := c.nats.Subscribe(subject, func(m *nats.Msg) {
		message := Message{Data: m.Data}
		if m.Reply != "" {
			message.Respond = m.Respond
		}
		deliver(message)
	})
	if err != nil {
		return nil, fmt.Errorf("cluster: subscribe to %s: %w", subject, err)
	}
	if err := sub.SetPendingLimits(q.messages(), q.bytes()); err != nil {
		return nil, fmt.Errorf("cluster: bound what waits of %s: %w", subject, err)
	}
	return &natsSubscription{sub: sub}, nil
}

func (c natsConn) Request(ctx context.Context, subject string, data []byte) ([]byte, error) {
	if err := c.away(); err != nil {
		return nil, err
	}
	answer, err := c.nats.RequestWithContext(ctx, subject, data)
	if err != nil {
		return nil, err
	}
	return answer.Data, nil
}

func (c natsConn) Flush(d time.Duration) error {
	if err := c.away(); err != nil {
		return err
	}
	return c.nats.FlushTimeout(d)
}

type natsSubscription struct {
	sub     *nats.Subscription
	closing sync.Once
	closed  error         // of Close
	dropped atomic.Uint64 // when last asked of an open subscription
}

func (s *natsSubscription) Dropped() uint64 {
	if n, err := s.sub.Dropped(); err == nil {
		s.dropped.Store(uint64(n))
	}
	return s.dropped.Load()
}

func (s *natsSubscription) Close() error {
	s.closing.Do(func() {
		done := make(chan struct{})
		s.sub.SetClosedHandler(func(string) { close(done) })
		switch err := s.sub.Unsubscribe(); {
		case err == nil:
			<-done
		case errors.Is(err, nats.ErrConnectionClosed), errors.Is(err, nats.ErrBadSubscription):
			// The connection has been closed, and the subscription with it.
		default:
			s.closed = fmt.Errorf("cluster: unsubscribe: %w", err)
		}
	})
	return s.closed
}
