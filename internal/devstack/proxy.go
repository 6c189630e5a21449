package devstack

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"sync"
	"time"
)

// Bounds of a proxy.
const (
	proxyConns = 1024            // client connections; further ones are closed at once
	proxyChunk = 16 << 10        // bytes read at a time
	proxyQueue = 64              // chunks held per direction; then the proxy stops reading
	proxyDial  = 5 * time.Second // to reach the target
	reopenWait = 10 * time.Millisecond
)

// Proxy passes TCP connections from its own address on to one server, and cuts,
// stalls or delays them when told to. Give its address to one client to cut that
// client off while others reach the server. The nodes of a Redis Cluster tell
// clients their own addresses, so a cluster client must map those to proxies
// when it dials.
//
// Its methods are safe for concurrent use; what they change holds for existing
// and new connections when they return.
type Proxy struct {
	target string
	ports  *block
	addr   string

	// life is the proxy's lifetime; cancel ends it.
	life   context.Context
	cancel context.CancelFunc
	wg     sync.WaitGroup // every goroutine of the proxy

	mu       sync.Mutex
	mode     proxyMode
	delay    time.Duration
	changed  chan struct{}           // closed, and replaced, by every change of mode
	listener net.Listener            // nil while cut
	conns    map[*proxyConn]struct{} // the open connections
}

type proxyMode int

const (
	forwarding proxyMode = iota
	stalled
	cut
)

// NewProxy starts a proxy for the server at target, host:port, on a free
// loopback port that stays the same until Close. The server need not run: a
// connection that cannot be passed on is closed.
func NewProxy(target string) (*Proxy, error) {
	if _, _, err := net.SplitHostPort(target); err != nil {
		return nil, fmt.Errorf("devstack: proxy target %q must be host:port: %w", target, err)
	}
	ports, err := reserve(1, 0)
	if err != nil {
		return nil, err
	}
	p := &Proxy{target: target, ports: ports, addr: ports.addr(1), changed: make(chan struct{}), conns: make(map[*proxyConn]struct{})}
	p.life, p.cancel = context.WithCancel(context.Background())
	p.mu.Lock()
	defer p.mu.Unlock()
	if err := p.listen(); err != nil {
		p.cancel()
		return nil, errors.Join(fmt.Errorf("devstack: proxy: %w", err), ports.close())
	}
	return p, nil
}

// Addr returns the proxy's own address, host:port.
func (p *Proxy) Addr() string { return p.addr }

// Cut drops all connections, losing what was on its way, and refuses new ones,
// as when the server's process has died.
func (p *Proxy) Cut() { p.change(cut) }

// Stall keeps connections open and accepts new ones but forwards nothing in
// either direction, as when a network swallows packets. Up to 1 MiB per
// connection and direction waits in the proxy, then the sender is held up. After
// a Cut it accepts connections again.
func (p *Proxy) Stall() { p.change(stalled) }

// Delay forwards everything that arrives from now on d later, in each direction:
// a round trip takes 2d longer. Throughput is bounded by 1 MiB per d, connection
// and direction. Zero or less means no delay. It does not end Cut or Stall.
func (p *Proxy) Delay(d time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.delay = max(d, 0)
}

// Heal ends Cut, Stall and Delay. What waited during a Stall is forwarded; what
// was delayed already keeps its delay.
func (p *Proxy) Heal() {
	p.Delay(0)
	p.change(forwarding)
}

// Close drops all connections and ends the proxy. It waits for its goroutines.
// Calls after the first do nothing.
func (p *Proxy) Close() {
	p.cancel()
	p.change(cut)
	p.wg.Wait()
	_ = p.ports.close() // of a listener of our own: it can only be closed already
}

// change sets the mode and makes it hold.
func (p *Proxy) change(mode proxyMode) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.life.Err() != nil {
		mode = cut
	}
	p.mode = mode
	close(p.changed)
	p.changed = make(chan struct{})
	if mode == cut {
		p.drop()
		return
	}
	if p.listener == nil && p.listen() != nil {
		// Somebody outside took our port while it was free. The block's guard
		// makes that next to impossible; it is not worth an error for every
		// caller of Heal.
		p.wg.Go(p.reopen)
	}
}

// drop closes everything. p.mu is held.
func (p *Proxy) drop() {
	if p.listener != nil {
		p.listener.Close()
		p.listener = nil
	}
	for c := range p.conns {
		c.close()
	}
	clear(p.conns)
}

// listen opens the port. p.mu is held.
func (p *Proxy) listen() error {
	l, err := net.Listen("tcp", p.addr)
	if err != nil {
		return err
	}
	p.listener = l
	p.wg.Go(func() { p.accept(l) })
	return nil
}

// reopen tries to listen until it can or need not.
func (p *Proxy) reopen() {
	for {
		select {
		case <-p.life.Done():
			return
		case <-time.After(reopenWait):
		}
		p.mu.Lock()
		done := p.mode == cut || p.listener != nil || p.listen() == nil
		p.mu.Unlock()
		if done {
			return
		}
	}
}

// accept serves one listener until it is closed.
func (p *Proxy) accept(l net.Listener) {
	for {
		client, err := l.Accept()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			// Out of file descriptors, most likely: others may close some.
			select {
			case <-p.life.Done():
				return
			case <-time.After(reopenWait):
			}
			continue
		}
		c := p.newConn(client)
		if !p.add(c, l) {
			c.close()
			continue
		}
		p.wg.Go(func() { p.serve(c) })
	}
}

func (p *Proxy) newConn(client net.Conn) *proxyConn {
	life, cancel := context.WithCancel(p.life)
	return &proxyConn{client: client, life: life, cancel: cancel}
}

// add takes a connection up unless its listener was closed meanwhile or there
// are too many.
func (p *Proxy) add(c *proxyConn, l net.Listener) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.listener != l || len(p.conns) >= proxyConns {
		return false
	}
	p.conns[c] = struct{}{}
	return true
}

// serve connects a client with the target and stays until both directions end.
func (p *Proxy) serve(c *proxyConn) {
	defer func() {
		c.close()
		p.mu.Lock()
		defer p.mu.Unlock()
		delete(p.conns, c)
	}()
	if !p.flowing(c) {
		return
	}
	dialer := net.Dialer{Timeout: proxyDial}
	server, err := dialer.DialContext(c.life, "tcp", p.target)
	if err != nil {
		return // the client sees its connection reset
	}
	if !c.attach(server) {
		return
	}
	var up, down bool // whether the direction ended in order
	var directions sync.WaitGroup
	directions.Go(func() { up = p.pipe(c, server, c.client) })
	directions.Go(func() { down = p.pipe(c, c.client, server) })
	directions.Wait()
	if up && down {
		c.finish()
	}
}

// chunk is what one read returned, to be written at its time. An empty one says
// that the sender will send no more.
type chunk struct {
	bytes []byte
	due   time.Time
}

// pipe forwards one direction until the sender ends it, which is in order, or
// the connection breaks, which ends the other direction too.
func (p *Proxy) pipe(c *proxyConn, to, from net.Conn) (inOrder bool) {
	queue := make(chan chunk, proxyQueue) // sent and closed by read
	var reader sync.WaitGroup
	reader.Go(func() { p.read(c, from, queue) })
	defer reader.Wait()
	for k := range queue {
		if !c.sleep(time.Until(k.due)) || !p.flowing(c) {
			c.close()
			return false
		}
		if len(k.bytes) == 0 {
			return closeWrite(to) == nil
		}
		if _, err := to.Write(k.bytes); err != nil {
			c.close()
			return false
		}
	}
	return false
}

// read puts what arrives into the queue.
func (p *Proxy) read(c *proxyConn, from net.Conn, queue chan<- chunk) {
	defer close(queue)
	b := make([]byte, proxyChunk)
	for {
		n, err := from.Read(b)
		if n == 0 && err != nil && !errors.Is(err, io.EOF) {
			c.close()
			return
		}
		p.mu.Lock()
		k := chunk{bytes: slices.Clone(b[:n]), due: time.Now().Add(p.delay)}
		p.mu.Unlock()
		select {
		case queue <- k:
		case <-c.life.Done():
			return
		}
		if n == 0 {
			return
		}
	}
}

// flowing waits until nothing is stalled. It returns false when the connection
// has ended.
func (p *Proxy) flowing(c *proxyConn) bool {
	for {
		p.mu.Lock()
		mode, changed := p.mode, p.changed
		p.mu.Unlock()
		if c.life.Err() != nil {
			return false
		}
		if mode != stalled {
			return true
		}
		select {
		case <-changed:
		case <-c.life.Done():
			return false
		}
	}
}

// proxyConn is one client's connection and its counterpart to the target.
type proxyConn struct {
	client net.Conn
	life   context.Context // of this connection
	cancel context.CancelFunc

	mu     sync.Mutex
	server net.Conn // nil before attach
}

// attach adds the connection to the target, unless the client's has ended.
func (c *proxyConn) attach(server net.Conn) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.life.Err() != nil {
		reset(server)
		return false
	}
	c.server = server
	return true
}

// close resets both sides. It can be called more than once.
func (c *proxyConn) close() {
	c.cancel()
	c.mu.Lock()
	defer c.mu.Unlock()
	reset(c.client)
	if c.server != nil {
		reset(c.server)
	}
}

// finish closes both sides in order, so that what was written last arrives.
func (c *proxyConn) finish() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.client.Close()
	c.server.Close()
}

// sleep waits; false when the connection ended meanwhile.
func (c *proxyConn) sleep(d time.Duration) bool {
	if d <= 0 {
		return true
	}
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-c.life.Done():
		return false
	}
}

// reset closes a connection so that the other end sees that it broke.
func reset(c net.Conn) {
	if t, ok := c.(*net.TCPConn); ok {
		_ = t.SetLinger(0) // fails on a connection that is closed already
	}
	c.Close()
}

// closeWrite tells the other end that no more will be sent.
func closeWrite(c net.Conn) error {
	t, ok := c.(*net.TCPConn)
	if !ok {
		return fmt.Errorf("a %s connection cannot be closed in one direction", c.RemoteAddr().Network())
	}
	return t.CloseWrite()
}
