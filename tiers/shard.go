package tiers

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/redis/rueidis"
	"github.com/sony/gobreaker/v2"

	"github.com/freshet-cache/freshet/coherence"
	"github.com/freshet-cache/freshet/internal/spans"
)

const (
	// connectTimeout bounds each of dialing, TLS and the Redis handshake. Connecting happens in the
	// background, so it may take longer than a call.
	connectTimeout = time.Second
	// An unreachable node is tried again after minBackoff, then twice as long each time up to
	// maxBackoff, each give or take a quarter.
	minBackoff, maxBackoff = 20 * time.Millisecond, time.Second
	// A connection that is quiet for pingAfter must answer a PING within pingTimeout, or is ended: so
	// ends one whose node hangs.
	pingAfter, pingTimeout = time.Second, 500 * time.Millisecond
	// maxOutstanding bounds the calls of one connection that Redis has not answered, those included whose
	// callers have given up. It is below rueidis' ring of 2^ringScale, in which a call would otherwise
	// wait for a place without regard for its deadline. The call above it is refused.
	ringScale, maxOutstanding = 11, 2000
)

// shard is one primary of the cluster: the connection to it, kept up by run, and its counters.
type shard struct {
	id, address string
	config      *L2Config
	log         *slog.Logger

	link   atomic.Pointer[link] // nil while there is no connection; set by run
	cancel context.CancelFunc   // ends run
	full   chan struct{}        // capacity 1: send refused a call for want of answers; run receives

	requests, failures, refused atomic.Uint64
	errors                      [Classes]atomic.Uint64
	took                        coherence.Histogram
	spans                       *spans.Tracer

	// Errors that every call gets while the shard is down, made once.
	errNoConnection, errOpen, errFull, errLate error
}

func newShard(id, address string, c *L2Config, t *spans.Tracer) *shard {
	because := func(cause string) error { return fmt.Errorf("%w: shard %s: %s", ErrUnavailable, address, cause) }
	return &shard{
		id: id, address: address, config: c, full: make(chan struct{}, 1), log: c.logger().With("shard", address), spans: t,
		errNoConnection: because("no connection"),
		errOpen:         because("its breaker is open"),
		errFull:         because("too many calls without an answer"),
		errLate:         because("no answer within " + c.timeout().String()),
	}
}

// link is the lifetime of one connection. rueidis would dial again in the middle of a call; here a lost
// connection is the end of its client, and run makes the next in the background.
type link struct {
	client  rueidis.Client
	breaker *breaker

	// Redis answers in order. abandoned counts the calls given up without an answer, and answered how
	// many of those had been given up before some call started that got one: they are answered too.
	inFlight, abandoned, answered atomic.Int64
}

// run keeps a connection up until ctx ends.
func (s *shard) run(ctx context.Context) {
	backoff, warned := minBackoff, false
	b := newBreaker(s)
	for ctx.Err() == nil {
		client, w, err := connect(ctx, s.address, s.config)
		if err != nil {
			if !warned && ctx.Err() == nil {
				warned = true
				s.log.Warn("redis shard cannot be reached; trying on", "err", err)
			}
			pause(ctx, spread(backoff))
			backoff = min(2*backoff, maxBackoff)
			continue
		}
		s.log.Info("redis shard connected")
		if !b.hung.Load() {
			b = newBreaker(s)
		}
		l, since := &link{client: client, breaker: b}, time.Now()
		s.link.Store(l)
		for up := true; up; {
			select {
			case <-s.full:
				l.catchUp(ctx)
			case <-w.lost:
				up = false
			case <-ctx.Done():
				up = false
			}
		}
		s.link.Store(nil)
		disconnect(client, w, s.config.timeout())
		if ctx.Err() == nil {
			s.log.Warn("redis shard lost its connection")
		}
		// A connection that never lasts is a failure, too.
		if warned = false; time.Since(since) > maxBackoff {
			backoff = minBackoff
		} else {
			pause(ctx, spread(backoff))
			backoff = min(2*backoff, maxBackoff)
		}
	}
}

// catchUp waits until Redis has answered what was abandoned, or the connection ends: while calls are
// refused, none of them can find that out.
func (l *link) catchUp(ctx context.Context) {
	before := l.abandoned.Load()
	if l.client.Do(ctx, l.client.B().Ping().Build()).Error() == nil {
		raise(&l.answered, before)
	}
}

// breaker is gobreaker's, and what its rule needs besides counts.
//
// A new connection gets a new one, closed: the node has just answered the Redis handshake, and recovery
// need not wait for a breaker's time. Only if the last thing heard of the node was silence, the breaker
// stays: else one that answers handshakes and nothing more would never trip it.
type breaker struct {
	*gobreaker.TwoStepCircuitBreaker[struct{}]
	since        time.Time
	failingSince atomic.Int64 // the first failure behind the last success, in nanoseconds after since; 0 = none
	hung         atomic.Bool  // the last call that counts had no answer in time
}

// newBreaker makes one that trips after 5 failures in a row that took two Timeouts from the first to
// the last: that is a shard that hangs, and each caller lost at most one Timeout. Without the second
// condition one hiccup of a Timeout's length would be enough, in which five callers fail at once. It
// also trips when half of at least 100 calls of the last 10 seconds failed: a shared cache that bad is
// worse than none. After a second it lets three calls try, and closes if they get answers: a trial that
// fails costs three callers one Timeout.
func newBreaker(s *shard) *breaker {
	b := &breaker{since: time.Now()}
	b.TwoStepCircuitBreaker = gobreaker.NewTwoStepCircuitBreaker[struct{}](gobreaker.Settings{
		Name:         s.address,
		MaxRequests:  3,
		Interval:     10 * time.Second,
		BucketPeriod: time.Second,
		Timeout:      time.Second,
		ReadyToTrip: func(c gobreaker.Counts) bool {
			hangs := c.ConsecutiveFailures >= 5 && b.failingFor() >= 2*s.config.timeout()
			return hangs || (c.Requests >= 100 && 2*c.TotalFailures >= c.Requests)
		},
		IsSuccessful: healthy,
		IsExcluded:   func(err error) bool { return errors.Is(err, errCallerGone) },
		OnStateChange: func(_ string, from, to gobreaker.State) {
			s.log.Warn("redis shard breaker", "from", from.String(), "to", to.String())
		},
	})
	return b
}

// note keeps what came of a call. It is called before gobreaker is told, which then asks failingFor.
func (b *breaker) note(good, silent bool) {
	if b.hung.Load() != silent {
		b.hung.Store(silent)
	}
	if good {
		b.failingSince.Store(0)
	} else {
		b.failingSince.CompareAndSwap(0, max(1, int64(time.Since(b.since))))
	}
}

// failingFor is how long nothing but failures has come.
func (b *breaker) failingFor() time.Duration {
	if first := b.failingSince.Load(); first > 0 {
		return time.Since(b.since) - time.Duration(first)
	}
	return 0
}

// errCallerGone: the caller cancelled, or its own deadline came first. It says nothing of the shard.
var errCallerGone = errors.New("the caller gave up")

// healthy reports whether the node that answered err can serve. A nil reply, a redirection, a refused
// write (OOM) or a wrong type are answers of a node in order.
func healthy(err error) bool {
	if err == nil || rueidis.IsRedisNil(err) {
		return true
	}
	reply, ok := rueidis.IsRedisErr(err)
	if !ok {
		return false
	}
	for _, unable := range [...]string{"LOADING", "CLUSTERDOWN", "MASTERDOWN", "BUSY ", "NOAUTH", "READONLY"} {
		if strings.HasPrefix(reply.Error(), unable) {
			return false
		}
	}
	return true
}

func wrongType(err error) bool {
	reply, ok := rueidis.IsRedisErr(err)
	return ok && strings.HasPrefix(reply.Error(), "WRONGTYPE")
}

// redirection is where MOVED or ASK points to.
func redirection(err error) (address string, asking, ok bool) {
	if err == nil {
		return "", false, false
	}
	reply, isReply := rueidis.IsRedisErr(err)
	if !isReply {
		return "", false, false
	}
	if address, ok = reply.IsMoved(); ok {
		return address, false, true
	}
	address, ok = reply.IsAsk()
	return address, ok, ok
}

// resolve completes an address without a host: it means the host that it was heard from.
func (s *shard) resolve(address string) string {
	host, _, _ := net.SplitHostPort(s.address)
	return completeAddress(address, host)
}

func completeAddress(address, host string) string {
	if strings.HasPrefix(address, ":") {
		return net.JoinHostPort(host, address[1:])
	}
	return address
}

// state is the breaker's, or "open" without a connection.
func (s *shard) state() string {
	l := s.link.Load()
	if l == nil {
		return gobreaker.StateOpen.String()
	}
	return l.breaker.State().String()
}

// send sends the requests as one pipeline and puts the replies into them. An error means that none has
// a reply that counts; the error is ready for the caller.
func (s *shard) send(d *deadline, reqs []*request) error {
	var span spans.Span
	if s.spans != nil {
		span = s.spans.Redis(d.caller, commandOf(reqs), len(reqs), s.address)
	}
	class, err := s.try(d, reqs)
	if class != 0 {
		s.errors[class].Add(1)
	}
	span.End(class.String())
	return err
}

// commandOf is the name of all the commands; empty if they differ.
func commandOf(reqs []*request) string {
	for _, r := range reqs[1:] {
		if r.command != reqs[0].command {
			return ""
		}
	}
	return reqs[0].command
}

// try is send, and says which class of failure the call was, an answer that speaks against the node included.
func (s *shard) try(d *deadline, reqs []*request) (ErrorClass, error) {
	l := s.link.Load()
	if l == nil {
		s.refused.Add(1)
		return ClassRefused, s.errNoConnection
	}
	if d.Err() != nil { // an earlier pipeline of the call has used it up
		s.refused.Add(1)
		return ClassTimeout, s.errLate
	}
	before := l.abandoned.Load()
	defer l.inFlight.Add(-1)
	if l.inFlight.Add(1)+before-l.answered.Load() > maxOutstanding {
		s.refused.Add(1)
		select {
		case s.full <- struct{}{}:
		default:
		}
		return ClassOverloaded, s.errFull
	}
	done, err := l.breaker.Allow()
	if err != nil {
		s.refused.Add(1)
		return ClassRefused, s.errOpen
	}
	s.requests.Add(1)

	began := time.Now()
	l.exchange(d, reqs)
	s.took.Observe(time.Since(began))
	answered, verdict := judge(reqs)
	if !answered {
		over := d.Err() != nil
		if over {
			l.abandoned.Add(1)
		}
		if gone := d.callerGone(); gone != nil {
			done(errCallerGone)
			return ClassCanceled, fmt.Errorf("%w: shard %s: %w: %w", ErrUnavailable, s.address, errCallerGone, gone)
		}
		s.failures.Add(1)
		l.breaker.note(false, over)
		done(verdict)
		if over {
			return ClassTimeout, s.errLate
		}
		return ClassConnection, fmt.Errorf("%w: shard %s: %w", ErrUnavailable, s.address, verdict)
	}
	raise(&l.answered, before)
	good := healthy(verdict)
	if !good {
		s.failures.Add(1)
	}
	l.breaker.note(good, false)
	done(verdict)
	if !good {
		return ClassServer, nil
	}
	return 0, nil
}

// exchange sends the requests as one pipeline and stores the replies.
func (l *link) exchange(ctx context.Context, reqs []*request) {
	b := l.client.B()
	if len(reqs) == 1 && !reqs[0].asking {
		reqs[0].reply = l.client.Do(ctx, reqs[0].build(b))
		return
	}
	cmds := make([]rueidis.Completed, 0, len(reqs)+1)
	for _, r := range reqs {
		if r.asking {
			cmds = append(cmds, b.Arbitrary("ASKING").Build())
		}
		cmds = append(cmds, r.build(b))
	}
	results := l.client.DoMulti(ctx, cmds...)
	for _, r := range reqs {
		if r.asking {
			results = results[1:]
		}
		r.reply, results = results[0], results[1:]
	}
}

// judge reports whether Redis has answered all requests. The verdict is an error that speaks against
// the node: why it did not answer, or a reply that it cannot serve.
func judge(reqs []*request) (answered bool, verdict error) {
	for _, r := range reqs {
		if err := r.reply.NonRedisError(); err != nil {
			return false, err
		}
		if err := r.reply.Error(); !healthy(err) {
			verdict = err
		}
	}
	return true, verdict
}

// raise makes the counter at least v.
func raise(counter *atomic.Int64, v int64) {
	for {
		old := counter.Load()
		if old >= v || counter.CompareAndSwap(old, v) {
			return
		}
	}
}

// wire tells when rueidis has closed the connection, which it does as soon as reading or writing fails.
type wire struct {
	net.Conn
	once sync.Once
	lost chan struct{} // closed by the first Close
}

func (w *wire) Close() error {
	w.once.Do(func() { close(w.lost) })
	return w.Conn.Close()
}

var errLost = errors.New("the connection was lost")

// connect makes a client of one node with one connection, and no other ever.
func connect(ctx context.Context, address string, c *L2Config) (rueidis.Client, *wire, error) {
	var w *wire
	stop := func() bool { return true }
	dial := func(_ context.Context, address string, d *net.Dialer, t *tls.Config) (net.Conn, error) {
		if w != nil {
			return nil, errLost
		}
		dialing, cancel := context.WithTimeout(ctx, connectTimeout)
		defer cancel()
		plain := d.DialContext
		if c.Dial != nil {
			plain = c.Dial
		}
		conn, err := plain(dialing, "tcp", address)
		if err == nil && t != nil {
			conn, err = overTLS(dialing, conn, address, t)
		}
		if err != nil {
			return nil, err
		}
		w = &wire{Conn: conn, lost: make(chan struct{})}
		stop = context.AfterFunc(ctx, func() { _ = w.Close() }) // the handshake does not look at ctx
		return w, nil
	}
	client, err := rueidis.NewClient(rueidis.ClientOption{
		InitAddress:       []string{address},
		ForceSingleClient: true,
		Username:          c.Username,
		Password:          c.Password,
		TLSConfig:         c.TLS,
		DialCtxFn:         dial,
		Dialer:            net.Dialer{Timeout: connectTimeout, KeepAlive: pingAfter},
		ConnWriteTimeout:  max(pingTimeout, c.timeout()),
		PipelineMultiplex: -1, // one connection: Redis answers in order
		RingScaleEachConn: ringScale,
		DisableCache:      true, // client-side caching: L1 is under the directory's rule instead
		DisableRetry:      true, // a retry would outlive the caller's interest and hide failures from the breaker
	})
	stop()
	if err != nil {
		if client != nil {
			client.Close()
		}
		return nil, nil, err
	}
	return client, w, nil
}

// overTLS is the connection to address under TLS, like that of a [tls.Dialer]; on an error it is closed.
func overTLS(ctx context.Context, conn net.Conn, address string, t *tls.Config) (net.Conn, error) {
	if t.ServerName == "" && !t.InsecureSkipVerify {
		t = t.Clone()
		t.ServerName, _, _ = net.SplitHostPort(address)
	}
	secure := tls.Client(conn, t)
	if err := secure.HandshakeContext(ctx); err != nil {
		return nil, errors.Join(err, conn.Close())
	}
	return secure, nil
}

// disconnect ends a client; calls in flight get their answers if they come within grace.
func disconnect(client rueidis.Client, w *wire, grace time.Duration) {
	force := time.AfterFunc(grace, func() { _ = w.Close() })
	defer force.Stop()
	client.Close()
}

// pause returns after d, or when ctx ends.
func pause(ctx context.Context, d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
	}
}

// spread is d give or take a quarter.
func spread(d time.Duration) time.Duration {
	return d*3/4 + rand.N(d/2)
}
