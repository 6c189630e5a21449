package coherence_test

import (
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/freshet-cache/freshet/cluster"
	"github.com/freshet-cache/freshet/coherence"
	"github.com/freshet-cache/freshet/internal/devstack"
	"github.com/freshet-cache/freshet/internal/devstack/stacktest"
)

// heard collects the hints of a bus.
type heard struct {
	hints chan coherence.Hint
}

func (h heard) next(t *testing.T) coherence.Hint {
	t.Helper()
	select {
	case hint := <-h.hints:
		return hint
	case <-time.After(10 * time.Second):
		t.Fatal("no hint came")
	}
	return coherence.Hint{}
}

// connect makes a connection that the test closes.
func connect(t *testing.T, url string, options ...nats.Option) *nats.Conn {
	t.Helper()
	options = append([]nats.Option{nats.MaxReconnects(-1), nats.ReconnectWait(20 * time.Millisecond), nats.RetryOnFailedConnect(true)}, options...)
	conn, err := nats.Connect(url, options...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(conn.Close)
	return conn
}

// openBus opens a bus that the test closes, and collects what it hears.
func openBus(t *testing.T, conn *nats.Conn, boot uint64) (*coherence.Bus, heard) {
	t.Helper()
	h := heard{make(chan coherence.Hint, 100_000)}
	bus, err := coherence.OpenBus(cluster.NATS(conn), appOf(t), boot, func(hint coherence.Hint) { h.hints <- hint })
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := bus.Close(); err != nil {
			t.Error(err)
		}
	})
	return bus, h
}

// appOf gives each test subjects of its own.
func appOf(t *testing.T) string {
	t.Helper()
	return t.Name()
}

// flush makes sure that the server has taken the connection's subscriptions and messages.
func flush(t *testing.T, conns ...*nats.Conn) {
	t.Helper()
	for _, conn := range conns {
		if err := conn.FlushTimeout(10 * time.Second); err != nil {
			t.Fatal(err)
		}
	}
}

func TestBusDelivers(t *testing.T) {
	url := stacktest.Stack().NATS.URL()
	a, b := connect(t, url), connect(t, url)
	busA, heardA := openBus(t, a, 1)
	_, heardB := openBus(t, b, 2)
	flush(t, a, b)

	if err := busA.Publish(7, 100, []coherence.ScopeHash{1, 2}); err != nil {
		t.Fatal(err)
	}
	want := coherence.Hint{Boot: 1, Seq: 1, Timeline: 7, XID: 100, Scopes: []coherence.ScopeHash{1, 2}}
	for _, h := range []heard{heardA, heardB} {
		if got := h.next(t); fmt.Sprint(got) != fmt.Sprint(want) {
			t.Errorf("heard %+v, want %+v", got, want)
		}
	}

	// A large change comes as several hints, and none is lost or out of order.
	var scopes []coherence.ScopeHash
	for i := range 2*coherence.MaxHintScopes + 1 {
		scopes = append(scopes, coherence.ScopeHash(i))
	}
	if err := busA.Publish(7, 101, scopes); err != nil {
		t.Fatal(err)
	}
	var got []coherence.ScopeHash
	for seq := uint64(2); seq <= 4; seq++ {
		h := heardB.next(t)
		if h.Seq != seq || h.XID != 101 {
			t.Errorf("heard number %d of %d, want %d of 101", h.Seq, h.XID, seq)
		}
		got = append(got, h.Scopes...)
	}
	if !slices.Equal(got, scopes) || busA.Published() != 4 {
		t.Errorf("heard %d scopes of %d, published %d", len(got), len(scopes), busA.Published())
	}

	// What is not a hint is counted and passed over.
	for _, junk := range [][]byte{nil, []byte("x"), []byte("Fh\x02"), make([]byte, 100)} {
		if err := a.Publish("freshet."+appOf(t)+".hint", junk); err != nil {
			t.Fatal(err)
		}
	}
	if n := busA.Echoes().Count(); n == 0 || n > 4 {
		t.Errorf("%d of 4 hints came back to who sent them", n)
	}
	busB, heardC := openBus(t, b, 3)
	flush(t, a, b)
	if err := busB.Publish(7, 102, []coherence.ScopeHash{9}); err != nil {
		t.Fatal(err)
	}
	heardC.next(t)
	for heardA.next(t).XID != 102 { // after its own of before
	}
	if busA.Malformed() != 4 {
		t.Errorf("%d malformed messages, want 4", busA.Malformed())
	}
}

// Hints that could not be sent leave a gap that the others see, and are not sent later.
func TestBusGap(t *testing.T) {
	proxy, err := devstack.NewProxy(stacktest.Stack().NATS.URL()[len("nats://"):])
	if err != nil {
		t.Fatal(err)
	}
	defer proxy.Close()
	down, up := make(chan struct{}, 100), make(chan struct{}, 100)
	a := connect(t, "nats://"+proxy.Addr(),
		nats.DisconnectErrHandler(func(*nats.Conn, error) { down <- struct{}{} }),
		nats.ReconnectHandler(func(*nats.Conn) { up <- struct{}{} }))
	b := connect(t, stacktest.Stack().NATS.URL())
	busA, _ := openBus(t, a, 1)
	_, heardB := openBus(t, b, 2)
	flush(t, a, b)
	if err := busA.Publish(1, 100, []coherence.ScopeHash{1}); err != nil {
		t.Fatal(err)
	}
	heardB.next(t)

	proxy.Cut()
	<-down
	for xid := uint64(101); xid < 104; xid++ {
		if err := busA.Publish(1, xid, []coherence.ScopeHash{1}); !errors.Is(err, nats.ErrDisconnected) {
			t.Errorf("publishing without a connection: %v", err)
		}
	}
	proxy.Heal()
	<-up
	if err := busA.Publish(1, 104, []coherence.ScopeHash{1}); err != nil {
		t.Fatal(err)
	}
	h := heardB.next(t)
	if h.XID != 104 || h.Seq != 5 {
		t.Errorf("heard %+v after the gap, want number 5 of transaction 104", h)
	}

	dir := coherence.NewDirectory(0)
	follower := coherence.NewFollower(2, dir)
	follower.Step(coherence.PollReturned{Result: coherence.PollResult{Snapshot: coherence.Snapshot{Timeline: 1, Xmin: 100, Xmax: 100}, Horizon: coherence.Snapshot{Timeline: 1, Xmin: 1, Xmax: 1}}})
	follower.Step(coherence.HintHeard{Hint: coherence.Hint{Boot: 1, Seq: 1, Timeline: 1, XID: 100, Scopes: h.Scopes}})
	if e := follower.Step(coherence.HintHeard{Hint: h}); e.Missed != 3 || !e.Poll {
		t.Errorf("the gap: %+v, want 3 missed and a poll", e)
	}
}

// A node that cannot keep up loses hints, which NATS drops: the numbers show it.
func TestBusSlowConsumer(t *testing.T) {
	slow := make(chan error, 1000)
	a := connect(t, stacktest.Stack().NATS.URL())
	b := connect(t, stacktest.Stack().NATS.URL(), nats.ErrorHandler(func(_ *nats.Conn, _ *nats.Subscription, err error) {
		select {
		case slow <- err:
		default:
		}
	}))
	busA, _ := openBus(t, a, 1)
	release := make(chan struct{})
	released := sync.OnceFunc(func() { close(release) })
	defer released()
	hints := make(chan coherence.Hint, 50_000)
	bus, err := coherence.OpenBus(cluster.NATS(b), appOf(t), 2, func(h coherence.Hint) {
		<-release
		hints <- h
	})
	if err != nil {
		t.Fatal(err)
	}
	flush(t, a, b)
	const n = 20_000
	for i := range uint64(n) {
		if err := busA.Publish(1, 100+i, []coherence.ScopeHash{1}); err != nil {
			t.Fatal(err)
		}
		if i%1000 == 0 {
			flush(t, a)
		}
	}
	flush(t, a, b)
	if err := <-slow; !errors.Is(err, nats.ErrSlowConsumer) {
		t.Errorf("asynchronous error %v, want a slow consumer", err)
	}
	released()
	// Once it keeps up again, the next hint shows how many were lost.
	follower := coherence.NewFollower(2, coherence.NewDirectory(0))
	var got, missed uint64
	for last := uint64(0); last < n+1; {
		select {
		case h := <-hints:
			got++
			missed += follower.Step(coherence.HintHeard{Hint: h}).Missed
			last = h.Seq
		case <-time.After(50 * time.Millisecond):
			if err := busA.Publish(1, 1, []coherence.ScopeHash{1}); err != nil {
				t.Fatal(err)
			}
		}
	}
	if missed == 0 || got+missed < n {
		t.Errorf("%d hints heard and %d missed of %d", got, missed, busA.Published())
	}
	if err := bus.Close(); err != nil {
		t.Error(err)
	}
}

// Close comes back however the connection is, and twice.
func TestBusClose(t *testing.T) {
	server := stacktest.Stack().NATS
	conns := map[string]*nats.Conn{"up": connect(t, server.URL()), "closed": connect(t, server.URL())}
	down := make(chan struct{}, 1)
	conns["down"] = connect(t, server.URL(), nats.DisconnectErrHandler(func(*nats.Conn, error) {
		select {
		case down <- struct{}{}:
		default:
		}
	}))
	buses := map[string]*coherence.Bus{}
	for name, conn := range conns {
		var err error
		if buses[name], err = coherence.OpenBus(cluster.NATS(conn), appOf(t), 1, func(coherence.Hint) {}); err != nil {
			t.Fatal(err)
		}
		flush(t, conn)
	}
	check := func(name string) {
		t.Helper()
		done := make(chan error, 1)
		go func() { done <- errors.Join(buses[name].Close(), buses[name].Close()) }()
		select {
		case err := <-done:
			if err != nil {
				t.Errorf("%s: %v", name, err)
			}
		case <-time.After(10 * time.Second):
			t.Fatalf("%s: Close hangs", name)
		}
	}
	check("up")
	conns["closed"].Close()
	check("closed")
	if err := buses["closed"].Publish(1, 1, []coherence.ScopeHash{1}); err == nil {
		t.Error("published over a closed connection")
	}
	if err := server.Stop(); err != nil {
		t.Fatal(err)
	}
	<-down
	check("down")
	// A node that starts while NATS is down subscribes all the same.
	never := connect(t, server.URL())
	bus, heardIt := openBus(t, never, 5)
	if err := bus.Publish(1, 1, []coherence.ScopeHash{1}); !errors.Is(err, nats.ErrDisconnected) {
		t.Errorf("publishing without a server: %v", err)
	}
	if err := server.Start(); err != nil {
		t.Fatal(err)
	}
	flush(t, never)
	if err := bus.Publish(1, 2, []coherence.ScopeHash{1}); err != nil {
		t.Error(err)
	}
	if h := heardIt.next(t); h.XID != 2 || h.Seq != 2 {
		t.Errorf("heard %+v, want number 2 of transaction 2", h)
	}
}
