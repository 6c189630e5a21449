package devstack

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// Bounds of a proxy.
const (
	proxyConns = 1024            // client connections; further ones are closed at once
	proxyChunk = 16 << 10        // bytes read at a time
	proxyQueue = 64              // chunks held per direction; then the proxy stops reading
	proxyDial  = 5 * time.Second // to reach the target
	reopenWait = 10 * time.Millisecond
	rateSteps  = 50 // a limited direction moves this often in a second
)

// Direction is one of the two in which bytes pass a [Proxy].
type Direction int

// The directions are named as seen from the client.
const (
	Up   Direction = iota // from the client to the server
	Down                  // from the server to the client
)

func (d Direction) String() string {
	if d == Up {
		return "up"
	}
	return "down"
}

// back is the other direction.
func (d Direction) back() Direction { return 1 - d }

// Proxy passes TCP connections from its own address on to one server, and cuts,
// stalls, delays or limits them when told to, one direction or both; a
// [Breakpoint] holds one chunk of all that passes. Give its address to one client to cut that
// client off while others reach the server. The nodes of a Redis Cluster tell
// clients their own addresses, so a cluster client must map those to proxies
// when it dials: see [Redis.Proxies].
//
// Its methods are safe for concurrent use; what they change holds for existing
// and new connections when they return.
type Proxy struct {
	ports *block // nil when another owns the port
	addr  string

	// breakpoint is what counts and holds chunks; nil = nothing does.
	breakpoint atomic.Pointer[Breakpoint]
	meddle     *meddler // nil = chunks pass as they come

	// life is the proxy's lifetime; cancel ends it.
	life   context.Context
	cancel context.CancelFunc
	wg     sync.WaitGroup // every goroutine of the proxy

	mu       sync.Mutex
	targets  []string // where new connections go: the first that accepts
	next     int      // with which of the targets the next connection begins
	cut      bool
	stalled  [2]bool // by direction
	rate     [2]int  // bytes per second by direction; 0 = unlimited
	delay    time.Duration
	changed  chan struct{}           // closed, and replaced, by every change of cut and stalled
	listener net.Listener            // nil while cut
	conns    map[*proxyConn]struct{} // the open connections
}

// NewProxy starts a proxy for the server at target, host:port, on a free
// loopback port that stays the same until Close. The server need not run: a
// connection that cannot be passed on is closed.
func NewProxy(target string) (*Proxy, error) {
	if err := checkTargets(target); err != nil {
		return nil, err
	}
	ports, err := reserve(1, 0)
	if err != nil {
		return nil, err
	}
	p, err := newProxy(ports.addr(1), nil, target)
	if err != nil {
		return nil, errors.Join(err, ports.close())
	}
	p.ports = ports
	return p, nil
}

// newProxy starts a proxy at an address that its caller has reserved.
func newProxy(addr string, m *meddler, targets ...string) (*Proxy, error) {
	p := &Proxy{addr: addr, meddle: m, targets: targets, changed: make(chan struct{}), conns: make(map[*proxyConn]struct{})}
	p.life, p.cancel = context.WithCancel(context.Background())
	p.mu.Lock()
	defer p.mu.Unlock()
	if err := p.listen(); err != nil {
		p.cancel()
		return nil, fmt.Errorf("devstack: proxy: %w", err)
	}
	return p, nil
}

func checkTargets(targets ...string) error {
	if len(targets) == 0 {
		return errors.New("devstack: a proxy must have a target")
	}
	for _, t := range targets {
		if _, _, err := net.SplitHostPort(t); err != nil {
			return fmt.Errorf("devstack: proxy target %q must be host:port: %w", t, err)
		}
	}
	return nil
}

// Addr returns the proxy's own address, host:port.
func (p *Proxy) Addr() string { return p.addr }

// Target lets new connections go to other servers and drops the old ones, also
// those that are still being made: the proxy is an address of a service that
// moves. Of several targets each connection goes to the first that accepts it,
// and each begins to ask at another one, in turn. A Cut, a Stall, a delay and a
// limit stay as they are. A target must be host:port; there must be one.
func (p *Proxy) Target(addrs ...string) error {
	if err := checkTargets(addrs...); err != nil {
		return err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.targets, p.next = slices.Clone(addrs), 0
	p.dropConns()
	return nil
}

// Drop breaks all connections, losing what was on its way, and goes on: new ones
// are taken at once, as when a firewall forgets its connections.
func (p *Proxy) Drop() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.dropConns()
}

// Cut drops all connections, losing what was on its way, and refuses new ones,
// as when the server's process has died.
func (p *Proxy) Cut() { p.change(true) }

// Stall keeps connections open and accepts new ones but forwards nothing in
// either direction, as when a network swallows packets. Up to 1 MiB per
// connection and direction waits in the proxy, then the sender is held up. That
// one side has gone is not passed on either. After a Cut it accepts connections
// again.
func (p *Proxy) Stall() { p.change(false, Up, Down) }

// HalfOpen stalls one direction and lets the other flow, as when packets get
// lost on one way only: of [Up], a client that hears the server but is not
// heard; of [Down], a client that is heard, as its commands are executed, but
// learns of nothing. New
// connections, which need both ways, wait. It is a Stall otherwise, and replaces
// one.
func (p *Proxy) HalfOpen(d Direction) { p.change(false, d) }

// Delay forwards everything that arrives from now on d later, in each direction:
// a round trip takes 2d longer. Throughput is bounded by 1 MiB per d, connection
// and direction. Zero or less means no delay. It does not end Cut or Stall.
func (p *Proxy) Delay(d time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.delay = max(d, 0)
}

// Limit bounds one direction of each connection to some bytes per second, from
// 50 on exactly, below as 50. A sender is held up when 1 MiB waits: limited
// [Down], the client is a slow consumer. Zero or less means no limit. It does
// not end Cut or Stall.
func (p *Proxy) Limit(d Direction, bytesPerSecond int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.rate[d] = max(bytesPerSecond, 0)
}

// Heal ends Cut, Stall, HalfOpen, Delay and Limit. What waited during a Stall is
// forwarded; what was delayed already keeps its delay.
func (p *Proxy) Heal() {
	p.Delay(0)
	p.Limit(Up, 0)
	p.Limit(Down, 0)
	p.change(false)
}

// Close drops all connections and ends the proxy. It waits for its goroutines.
// Calls after the first do nothing.
func (p *Proxy) Close() {
	p.cancel()
	p.change(true)
	p.wg.Wait()
	if p.ports != nil {
		_ = p.ports.close() // of a listener of our own: it can only be closed already
	}
}

// change sets what passes, and makes it hold.
func (p *Proxy) change(cut bool, stalled ...Direction) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.cut = cut || p.life.Err() != nil
	p.stalled = [2]bool{slices.Contains(stalled, Up), slices.Contains(stalled, Down)}
	close(p.changed)
	p.changed = make(chan struct{})
	if p.cut {
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
	p.dropConns()
}

// dropConns breaks every connection. p.mu is held.
func (p *Proxy) dropConns() {
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
		done := p.cut || p.listener != nil || p.listen() == nil
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
	c.targets = slices.Concat(p.targets[p.next:], p.targets[:p.next])
	p.next = (p.next + 1) % len(p.targets)
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
	if !p.flowing(c, Up) || !p.flowing(c, Down) {
		return
	}
	server, err := c.dial()
	if err != nil {
		return // the client sees its connection reset
	}
	if !c.attach(server) {
		return
	}
	var up, down bool // whether the direction ended in order
	var directions sync.WaitGroup
	directions.Go(func() { up = p.pipe(c, Up, server, c.client) })
	directions.Go(func() { down = p.pipe(c, Down, c.client, server) })
	directions.Wait()
	if up && down {
		c.finish()
	}
}

// chunk is what one read returned, to be written at its time. An empty one says
// that the sender will send no more.
type chunk struct {
	bytes  []byte
	due    time.Time
	broken bool // empty: the sender's connection broke instead of ending in order
	loose  bool // what comes behind it need not wait for its time
}

// pipe forwards one direction until the sender ends it, which is in order, or
// the connection breaks, which ends the other direction too.
func (p *Proxy) pipe(c *proxyConn, d Direction, to, from net.Conn) (inOrder bool) {
	queue := make(chan chunk, proxyQueue) // sent and closed by read
	var reader sync.WaitGroup
	reader.Go(func() { p.read(c, d, from, queue) })
	defer reader.Wait()
	defer func() {
		if !inOrder {
			c.close() // ends read
		}
	}()
	for source := (&line{queue: queue}); ; {
		k, ok := source.take(c)
		if !ok || !p.flowing(c, d) || k.broken {
			return false
		}
		if len(k.bytes) == 0 {
			return closeWrite(to) == nil
		}
		if !p.pass(c, d, to, k.bytes) {
			// That the receiver is gone is news of the other direction.
			p.flowing(c, d.back())
			return false
		}
	}
}

// pass writes a chunk, after its breakpoint if there is one.
func (p *Proxy) pass(c *proxyConn, d Direction, to net.Conn, b []byte) bool {
	if k := p.breakpoint.Load(); k != nil {
		if !k.enter(c, Chunk{Proxy: p, Direction: d, Bytes: b}) {
			return false
		}
		defer k.leave()
	}
	return p.write(c, d, to, b)
}

// write writes as fast as the limit allows.
func (p *Proxy) write(c *proxyConn, d Direction, to net.Conn, b []byte) bool {
	for len(b) > 0 {
		p.mu.Lock()
		rate := p.rate[d]
		p.mu.Unlock()
		n := len(b)
		if rate > 0 {
			n = min(n, max(1, rate/rateSteps))
		}
		if _, err := to.Write(b[:n]); err != nil {
			return false
		}
		b = b[n:]
		if rate > 0 && !c.sleep(time.Second/rateSteps) {
			return false
		}
	}
	return true
}

// read puts what arrives into the queue.
func (p *Proxy) read(c *proxyConn, d Direction, from net.Conn, queue chan<- chunk) {
	defer close(queue)
	send := func(k chunk, later time.Duration) bool {
		p.mu.Lock()
		k.due = time.Now().Add(p.delay + later)
		p.mu.Unlock()
		select {
		case queue <- k:
			return true
		case <-c.life.Done():
			return false
		}
	}
	var frames *frames
	if p.meddle != nil {
		frames = p.meddle.frames(d)
	}
	b := make([]byte, proxyChunk)
	for {
		n, err := from.Read(b)
		if n == 0 {
			if frames != nil && len(frames.rest) > 0 && !send(chunk{bytes: frames.rest}, 0) {
				return
			}
			send(chunk{broken: err != nil && !errors.Is(err, io.EOF)}, 0)
			return
		}
		got := slices.Clone(b[:n])
		switch {
		case frames != nil:
			if !frames.take(got, send) {
				return
			}
		case !send(chunk{bytes: got}, 0):
			return
		}
	}
}

// flowing waits until the direction is not stalled. It returns false when the
// connection has ended.
func (p *Proxy) flowing(c *proxyConn, d Direction) bool {
	for {
		p.mu.Lock()
		stalled, changed := p.stalled[d], p.changed
		p.mu.Unlock()
		if c.life.Err() != nil {
			return false
		}
		if !stalled {
			return true
		}
		select {
		case <-changed:
		case <-c.life.Done():
			return false
		}
	}
}

// line is the writer's end of a queue: it takes each chunk when it is due, in
// order but for loose ones, which are overtaken.
type line struct {
	queue  <-chan chunk
	head   chunk // received and not due yet
	waits  bool  // head is one
	loose  []chunk
	closed bool
}

// looseChunks bounds how many chunks of a direction can be overtaken at a time;
// then the next waits until the earliest is due.
const looseChunks = 4096

// take returns the next chunk when it is due; false when the connection has
// ended.
func (l *line) take(c *proxyConn) (chunk, bool) {
	for {
		queue := l.queue
		if l.waits || l.closed || len(l.loose) >= looseChunks {
			queue = nil
		}
		if queue != nil && len(l.loose) == 0 { // the common case
			select {
			case k, ok := <-queue:
				l.put(k, ok)
			case <-c.life.Done():
				return chunk{}, false
			}
			if l.waits && !time.Now().Before(l.head.due) {
				l.waits = false
				return l.head, true
			}
			continue
		}
		if l.closed && !l.waits && len(l.loose) == 0 {
			return chunk{}, false
		}
		first := l.first()
		timer := time.NewTimer(time.Until(first))
		select {
		case k, ok := <-queue:
			l.put(k, ok)
		case <-timer.C:
		case <-c.life.Done():
			timer.Stop()
			return chunk{}, false
		}
		timer.Stop()
		if k, ok := l.due(); ok {
			return k, true
		}
	}
}

// put takes what came from the queue.
func (l *line) put(k chunk, ok bool) {
	switch {
	case !ok:
		l.closed = true
	case k.loose:
		l.loose = append(l.loose, k)
	default:
		l.head, l.waits = k, true
	}
}

// first is when the earliest of the waiting chunks is due. The end of the
// stream waits for all loose chunks before it.
func (l *line) first() time.Time {
	var at time.Time
	if l.waits && (len(l.head.bytes) > 0 || len(l.loose) == 0) {
		at = l.head.due
	}
	for _, k := range l.loose {
		if at.IsZero() || k.due.Before(at) {
			at = k.due
		}
	}
	return at
}

// due takes one chunk that is due.
func (l *line) due() (chunk, bool) {
	now := time.Now()
	first := -1
	for i, k := range l.loose {
		if !now.Before(k.due) && (first < 0 || k.due.Before(l.loose[first].due)) {
			first = i
		}
	}
	if first >= 0 {
		k := l.loose[first]
		l.loose = slices.Delete(l.loose, first, first+1)
		return k, true
	}
	if l.waits && (len(l.head.bytes) > 0 || len(l.loose) == 0) && !now.Before(l.head.due) {
		l.waits = false
		return l.head, true
	}
	return chunk{}, false
}

// proxyConn is one client's connection and its counterpart to the target.
type proxyConn struct {
	client net.Conn
	life   context.Context // of this connection
	cancel context.CancelFunc

	targets []string // in the order in which they are asked; set by add

	mu     sync.Mutex
	server net.Conn // nil before attach
}

// dial connects to the first target that accepts.
func (c *proxyConn) dial() (net.Conn, error) {
	dialer := net.Dialer{Timeout: proxyDial}
	var errs []error
	for _, target := range c.targets {
		server, err := dialer.DialContext(c.life, "tcp", target)
		if err == nil {
			return server, nil
		}
		errs = append(errs, err)
	}
	return nil, errors.Join(errs...)
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
