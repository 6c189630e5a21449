package conntest

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"github.com/freshet-cache/freshet/cluster"
)

// Hub is a message server in memory. It is safe for concurrent use. Without faults, a message is in
// every subscription's queue when Publish returns.
type Hub struct {
	mu      sync.Mutex
	random  *rand.Rand
	faults  Faults
	conns   []*Conn
	late    map[*time.Timer]struct{} // deliveries on their way; each is in flights
	flights sync.WaitGroup
	closed  bool
}

// Faults are what a Hub does to each delivery of a message to a subscription, and to each answer.
type Faults struct {
	// Drop and Duplicate are chances, 0 to 1.
	Drop, Duplicate float64
	// Delay bounds how long a delivery takes: each takes a random time up to it, so that they overtake
	// one another. 0 = none.
	Delay time.Duration
}

// NewHub makes a Hub without faults. The seed decides which deliveries they strike.
func NewHub(seed uint64) *Hub {
	return &Hub{random: rand.New(rand.NewPCG(seed, 0)), late: map[*time.Timer]struct{}{}}
}

// Set replaces the faults.
func (h *Hub) Set(f Faults) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.faults = f
}

// Connect makes a member's connection. missed, if not nil, is called when messages may have been lost
// that nobody counts: after each Heal of a Cut, and when a queue is full. It must neither block nor call
// the Conn.
func (h *Hub) Connect(missed func()) *Conn {
	if missed == nil {
		missed = func() {}
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	c := &Conn{hub: h, missed: missed, ended: make(chan struct{})}
	if h.closed {
		c.close()
	}
	h.conns = append(h.conns, c)
	return c
}

// Close closes all connections and returns when no goroutine is left. What is on its way is lost.
func (h *Hub) Close() {
	h.mu.Lock()
	h.closed = true
	conns := slices.Clone(h.conns)
	for timer := range h.late {
		if timer.Stop() {
			h.flights.Done()
		}
	}
	h.late = nil
	h.mu.Unlock()
	for _, c := range conns {
		c.Close()
	}
	h.flights.Wait()
}

// carry calls arrive once, twice or never, now or later, as the faults want it. The caller holds mu, and
// so does whoever calls arrive.
func (h *Hub) carry(arrive func()) {
	times := 1
	if h.random.Float64() < h.faults.Duplicate {
		times = 2
	}
	for range times {
		switch {
		case h.random.Float64() < h.faults.Drop:
		case h.faults.Delay > 0:
			h.carryLate(arrive, time.Duration(h.random.Int64N(int64(h.faults.Delay))))
		default:
			arrive()
		}
	}
}

func (h *Hub) carryLate(arrive func(), d time.Duration) {
	if h.closed {
		return
	}
	h.flights.Add(1)
	var timer *time.Timer
	timer = time.AfterFunc(d, func() { // not before mu is free
		defer h.flights.Done()
		h.mu.Lock()
		defer h.mu.Unlock()
		if !h.closed {
			delete(h.late, timer)
			arrive()
		}
	})
	h.late[timer] = struct{}{}
}

// state is how a member is connected.
type state uint8

const (
	up    state = iota
	muted       // it does not know that nothing comes through
	cut
	closed
)

// Conn is one member's connection to a [Hub]. It implements [cluster.Conn].
type Conn struct {
	hub    *Hub
	missed func()
	ended  chan struct{} // closed by close

	// Under the hub's lock.
	state         state
	subscriptions []*subscription
}

var _ cluster.Conn = (*Conn)(nil)

var (
	errClosed       = errors.New("conntest: the connection is closed")
	errNobody       = errors.New("conntest: nobody subscribes")
	errDisconnected = fmt.Errorf("conntest: %w", cluster.ErrDisconnected)
	errUnflushed    = errors.New("conntest: flushing took too long")
)

// Cut takes the member off the Hub, and it knows: nothing is sent or arrives until Heal.
func (c *Conn) Cut() { c.change(cut) }

// Mute loses all that the member sends and is sent until Heal, and it does not know.
func (c *Conn) Mute() { c.change(muted) }

// Heal ends Cut and Mute.
func (c *Conn) Heal() {
	if c.change(up) == cut {
		c.missed()
	}
}

// Connected reports whether the member takes itself to be on the Hub.
func (c *Conn) Connected() bool {
	c.hub.mu.Lock()
	defer c.hub.mu.Unlock()
	return c.state == up || c.state == muted
}

func (c *Conn) change(to state) (before state) {
	c.hub.mu.Lock()
	defer c.hub.mu.Unlock()
	if before = c.state; before != closed {
		c.state = to
	}
	return before
}

// Close ends the connection and its subscriptions, and returns when nothing is being delivered any
// more. Closing again does nothing.
func (c *Conn) Close() {
	c.hub.mu.Lock()
	subscriptions := slices.Clone(c.subscriptions)
	c.close()
	c.hub.mu.Unlock()
	for _, s := range subscriptions {
		_ = s.Close()
	}
}

// close is Close without waiting. The caller holds the hub's lock.
func (c *Conn) close() {
	if c.state != closed {
		c.state = closed
		close(c.ended)
	}
}

// usable says why nothing can be sent. The caller holds the hub's lock.
func (c *Conn) usable() error {
	switch c.state {
	case closed:
		return errClosed
	case cut:
		return errDisconnected
	case up, muted:
	}
	return nil
}

// Publish implements [cluster.Conn].
func (c *Conn) Publish(subject string, data []byte) error {
	_, err := c.publish(subject, cluster.Message{Data: bytes.Clone(data)}, nil)
	return err
}

// publish returns how many subscriptions there are. answer, if not nil, takes an answer under the hub's
// lock.
func (c *Conn) publish(subject string, m cluster.Message, answer func([]byte)) (n int, err error) {
	h := c.hub
	h.mu.Lock()
	defer h.mu.Unlock()
	if err := c.usable(); err != nil {
		return 0, err
	}
	for _, to := range h.conns {
		if to.state == cut || to.state == closed {
			continue
		}
		for _, s := range to.subscriptions {
			if s.subject != subject {
				continue
			}
			n++
			if c.state == muted {
				continue
			}
			h.carry(func() {
				if to.state != up {
					return
				}
				m := m
				if answer != nil {
					m.Respond = func(data []byte) error { return to.respond(bytes.Clone(data), answer) }
				}
				s.put(m)
			})
		}
	}
	return n, nil
}

func (c *Conn) respond(data []byte, answer func([]byte)) error {
	c.hub.mu.Lock()
	defer c.hub.mu.Unlock()
	if err := c.usable(); err != nil {
		return err
	}
	if c.state == up {
		c.hub.carry(func() { answer(data) })
	}
	return nil
}

// Request implements [cluster.Conn].
func (c *Conn) Request(ctx context.Context, subject string, data []byte) ([]byte, error) {
	answers := make(chan []byte, 1)
	n, err := c.publish(subject, cluster.Message{Data: bytes.Clone(data)}, func(data []byte) {
		if c.state != up {
			return
		}
		select {
		case answers <- data:
		default: // there is one already
		}
	})
	if err == nil && n == 0 {
		err = errNobody
	}
	if err != nil {
		return nil, err
	}
	select {
	case data := <-answers:
		return data, nil
	case <-c.ended:
		return nil, errClosed
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// Flush implements [cluster.Conn].
func (c *Conn) Flush(d time.Duration) error {
	c.hub.mu.Lock()
	now, err := c.state, c.usable()
	c.hub.mu.Unlock()
	if now != muted {
		return err
	}
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return errUnflushed
	case <-c.ended:
		return errClosed
	}
}

// Subscribe implements [cluster.Conn].
func (c *Conn) Subscribe(subject string, q cluster.Queue, deliver func(cluster.Message)) (cluster.Subscription, error) {
	c.hub.mu.Lock()
	defer c.hub.mu.Unlock()
	if c.state == closed {
		return nil, errClosed
	}
	s := &subscription{
		conn: c, subject: subject, deliver: deliver,
		messages: cmp.Or(q.Messages, 1<<16), bytes: cmp.Or(q.Bytes, 64<<20),
		wake: make(chan struct{}, 1), ended: make(chan struct{}), done: make(chan struct{}),
	}
	c.subscriptions = append(c.subscriptions, s)
	go s.run()
	return s, nil
}

// subscription delivers in a goroutine of its own, as the client of NATS does.
type subscription struct {
	conn            *Conn
	subject         string
	deliver         func(cluster.Message)
	messages, bytes int // bounds

	wake  chan struct{} // capacity 1: put sends, run receives
	ended chan struct{} // closed by Close, once
	done  chan struct{} // closed by run

	// Under the hub's lock.
	waiting []cluster.Message
	size    int // bytes in waiting
	dropped uint64
	closing bool
}

// put queues a message. The caller holds the hub's lock.
func (s *subscription) put(m cluster.Message) {
	if s.closing || s.conn.state == closed {
		return
	}
	if len(s.waiting) >= s.messages || s.size+len(m.Data) > s.bytes {
		s.dropped++
		s.conn.missed()
		return
	}
	s.waiting = append(s.waiting, m)
	s.size += len(m.Data)
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

func (s *subscription) take() (m cluster.Message, ok bool) {
	s.conn.hub.mu.Lock()
	defer s.conn.hub.mu.Unlock()
	if s.closing || len(s.waiting) == 0 {
		return m, false
	}
	m, s.waiting = s.waiting[0], s.waiting[1:]
	s.size -= len(m.Data)
	return m, true
}

func (s *subscription) run() {
	defer close(s.done)
	for {
		if m, ok := s.take(); ok {
			s.deliver(m)
			continue
		}
		select {
		case <-s.wake:
		case <-s.ended:
			return
		}
	}
}

// Dropped implements [cluster.Subscription].
func (s *subscription) Dropped() uint64 {
	s.conn.hub.mu.Lock()
	defer s.conn.hub.mu.Unlock()
	return s.dropped
}

// Close implements [cluster.Subscription].
func (s *subscription) Close() error {
	s.conn.hub.mu.Lock()
	if !s.closing {
		s.closing = true
		close(s.ended)
		s.conn.subscriptions = slices.DeleteFunc(s.conn.subscriptions, func(other *subscription) bool { return other == s })
	}
	s.conn.hub.mu.Unlock()
	<-s.done
	return nil
}
