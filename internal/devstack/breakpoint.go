package devstack

import (
	"errors"
	"slices"
	"sync"
)

// ErrBreakpoint is returned by [Break] when a proxy has a breakpoint already.
var ErrBreakpoint = errors.New("devstack: the proxy has a breakpoint already")

// Chunk is what a proxy forwards at a time: what one read from the sender
// returned, at most 16 KiB. Where one message ends and the next begins it does
// not know; a program that writes a message and waits for the answer sends one
// chunk, unless it is longer.
type Chunk struct {
	Proxy     *Proxy
	Direction Direction
	Bytes     []byte // not to be changed
}

// Breakpoint counts the chunks that pass some proxies, in both directions, and
// holds one of them. So each point at which a program waits for the network can
// be had in turn: hold the first chunk of an operation and do to the program
// what is to be done, then the second, until the operation ends before the chunk
// comes.
type Breakpoint struct {
	k       int
	counts  func(Chunk) bool // nil = all
	proxies []*Proxy

	held     chan struct{} // closed when the k-th chunk is held and all before it are written
	released chan struct{} // closed by Deliver and Drop

	mu      sync.Mutex
	passed  int        // chunks counted so far, the held one too
	writing int        // chunks that were counted, or let pass, and are not written yet
	conn    *proxyConn // that of the held chunk; nil = none yet
	chunk   Chunk      // the held one
	drop    bool       // Drop was called
	over    bool       // Deliver or Drop was called
}

// Break arms a breakpoint at the k-th chunk, counted from 1, that the proxies
// forward from now on and for which counts says true; nil counts all. The order
// is one over all the proxies. counts is called for one chunk at a time and must
// neither block nor use the proxies. When the k-th chunk comes, it is held, and
// nothing that comes later on its connection passes in either direction; what
// came earlier does, and other connections go on. A stalled, delayed or dropped
// chunk counts when it is about to be written.
//
// A breakpoint ends with Deliver or Drop, which must be called also when nothing
// was held. A proxy has one at a time: a second is [ErrBreakpoint]. A proxy
// without one forwards as ever.
func Break(k int, counts func(Chunk) bool, proxies ...*Proxy) (*Breakpoint, error) {
	if k < 1 || len(proxies) == 0 {
		return nil, errors.New("devstack: a breakpoint needs a proxy, and chunks are counted from 1")
	}
	b := &Breakpoint{
		k: k, counts: counts, proxies: slices.Clone(proxies),
		held: make(chan struct{}), released: make(chan struct{}),
	}
	for i, p := range b.proxies {
		if !p.breakpoint.CompareAndSwap(nil, b) {
			b.proxies = b.proxies[:i]
			b.Deliver()
			return nil, ErrBreakpoint
		}
	}
	return b, nil
}

// Held returns a channel that is closed when the k-th chunk is held and every
// chunk that passed before it has been written to its receiver's socket.
func (b *Breakpoint) Held() <-chan struct{} { return b.held }

// Chunk returns the chunk that is, or was, held; the zero Chunk when none was.
func (b *Breakpoint) Chunk() Chunk {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.chunk
}

// Passed returns how many chunks were counted so far, with the held one. It
// counts no more after Deliver or Drop.
func (b *Breakpoint) Passed() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.passed
}

// Deliver lets the held chunk and everything behind it pass and ends the
// breakpoint. The receiver gets the chunk also when its sender has ended
// meanwhile. When nothing is held, nothing will be. Calls after the first of
// Deliver or Drop do nothing.
func (b *Breakpoint) Deliver() { b.end(false) }

// Drop discards the held chunk and breaks its connection on both sides, since a
// stream with a hole in it is none, and ends the breakpoint. Otherwise it is
// Deliver.
func (b *Breakpoint) Drop() { b.end(true) }

func (b *Breakpoint) end(drop bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.over {
		return
	}
	b.over, b.drop = true, drop
	if drop && b.conn != nil {
		b.conn.close()
	}
	close(b.released)
	for _, p := range b.proxies {
		p.breakpoint.CompareAndSwap(b, nil)
	}
}

// enter counts a chunk that is about to be written, and holds it if it is the
// one. It returns false when the chunk must not be written.
func (b *Breakpoint) enter(c *proxyConn, k Chunk) bool {
	b.mu.Lock()
	if b.over {
		b.writing++
		b.mu.Unlock()
		return true
	}
	hold := b.conn == c // behind the held chunk
	if !hold && (b.counts == nil || b.counts(k)) {
		b.passed++
		if b.passed == b.k {
			b.conn, b.chunk, hold = c, k, true
			b.tell()
		}
	}
	if !hold {
		b.writing++
		b.mu.Unlock()
		return true
	}
	b.mu.Unlock()
	select {
	case <-b.released:
	case <-c.life.Done():
		return false
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.drop {
		return false
	}
	b.writing++
	return true
}

// leave ends the writing of a chunk that was let through.
func (b *Breakpoint) leave() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.writing--
	b.tell()
}

// tell closes held when it is time. b.mu is held.
func (b *Breakpoint) tell() {
	if b.conn == nil || b.writing > 0 || b.over {
		return
	}
	select {
	case <-b.held:
	default:
		close(b.held)
	}
}
