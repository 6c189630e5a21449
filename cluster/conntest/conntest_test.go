package conntest_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/freshet-cache/freshet/cluster"
	"github.com/freshet-cache/freshet/cluster/conntest"
	"github.com/freshet-cache/freshet/internal/devstack"
	"github.com/freshet-cache/freshet/internal/devstack/stacktest"
)

func TestMain(m *testing.M) { stacktest.Main(m, devstack.Options{NATS: true}) }

// natsMember reaches the server through a proxy of its own.
type natsMember struct {
	cluster.Conn
	t        *testing.T
	nats     *nats.Conn
	proxy    *devstack.Proxy
	down, up chan struct{}
}

func (m *natsMember) Cut() {
	m.proxy.Cut()
	m.await(m.down)
}

func (m *natsMember) Heal() {
	m.proxy.Heal()
	m.await(m.up)
}

func (m *natsMember) await(signal <-chan struct{}) {
	m.t.Helper()
	select {
	case <-signal:
	case <-time.After(20 * time.Second):
		m.t.Fatal("the connection does not change")
	}
}

func (m *natsMember) Close() {
	m.nats.Close()
	m.proxy.Close()
}

func TestNATS(t *testing.T) {
	conntest.Exercise(t, func(t *testing.T) conntest.Member {
		t.Helper()
		proxy, err := devstack.NewProxy(strings.TrimPrefix(stacktest.Stack().NATS.URL(), "nats://"))
		if err != nil {
			t.Fatal(err)
		}
		m := &natsMember{t: t, proxy: proxy, down: make(chan struct{}, 10), up: make(chan struct{}, 10)}
		m.nats, err = nats.Connect("nats://"+proxy.Addr(), nats.MaxReconnects(-1), nats.ReconnectWait(20*time.Millisecond), nats.ReconnectBufSize(-1),
			nats.DisconnectErrHandler(func(*nats.Conn, error) { m.down <- struct{}{} }),
			nats.ReconnectHandler(func(*nats.Conn) { m.up <- struct{}{} }),
			nats.ErrorHandler(func(*nats.Conn, *nats.Subscription, error) {}))
		if err != nil {
			t.Fatal(err)
		}
		m.Conn = cluster.NATS(m.nats)
		return m
	})
}

func TestHub(t *testing.T) {
	hub := conntest.NewHub(1)
	defer hub.Close()
	conntest.Exercise(t, func(*testing.T) conntest.Member { return hub.Connect(nil) })
}

// pass lets virtual time pass.
func pass(d time.Duration) { <-time.After(d) }

// heard is what came of n numbered messages from one member to another.
func heard(t *testing.T, hub *conntest.Hub, n int) []string {
	t.Helper()
	from, to := hub.Connect(nil), hub.Connect(nil)
	var got []string
	if _, err := to.Subscribe("s", cluster.Queue{}, func(m cluster.Message) { got = append(got, string(m.Data)) }); err != nil {
		t.Fatal(err)
	}
	for i := range n {
		if err := from.Publish("s", fmt.Appendf(nil, "%04d", i)); err != nil {
			t.Fatal(err)
		}
	}
	pass(time.Hour)
	synctest.Wait()
	return got
}

func TestHubFaults(t *testing.T) {
	const n = 1000
	for name, c := range map[string]struct {
		faults  conntest.Faults
		min     int
		max     int
		ordered bool
	}{
		"None":      {conntest.Faults{}, n, n, true},
		"Drop":      {conntest.Faults{Drop: 0.3}, n / 2, n * 9 / 10, true},
		"All":       {conntest.Faults{Drop: 1}, 0, 0, true},
		"Duplicate": {conntest.Faults{Duplicate: 0.3}, n * 11 / 10, n * 3 / 2, true},
		"Delay":     {conntest.Faults{Delay: time.Minute}, n, n, false},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				hub := conntest.NewHub(7)
				defer hub.Close()
				hub.Set(c.faults)
				got := heard(t, hub, n)
				if len(got) < c.min || len(got) > c.max || slices.IsSorted(got) != c.ordered {
					t.Errorf("%d of %d messages arrived, in order: %t", len(got), n, slices.IsSorted(got))
				}
			})
		})
	}
}

// A muted member does not know that nothing comes through; one that was cut off is told when it is back,
// as is one that does not keep up.
func TestHubPartitions(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hub := conntest.NewHub(1)
		defer hub.Close()
		missed := 0
		a, b := hub.Connect(func() { missed++ }), hub.Connect(nil)
		var got []string
		release := make(chan struct{})
		subscribe := func(c *conntest.Conn) cluster.Subscription {
			s, err := c.Subscribe("s", cluster.Queue{Bytes: 2}, func(m cluster.Message) {
				<-release
				got = append(got, string(m.Data))
			})
			if err != nil {
				t.Fatal(err)
			}
			return s
		}
		publish := func(c *conntest.Conn, text string) {
			if err := c.Publish("s", []byte(text)); err != nil {
				t.Fatal(err)
			}
			synctest.Wait()
		}
		s := subscribe(a)
		close(release)
		a.Mute()
		publish(a, "1")
		publish(b, "2")
		if began := time.Now(); a.Flush(time.Second) == nil || time.Since(began) != time.Second {
			t.Error("what nobody gets is flushed")
		}
		a.Heal()
		publish(b, "3")
		if !slices.Equal(got, []string{"3"}) || missed != 0 {
			t.Errorf("heard %q, told of loss %d times", got, missed)
		}
		a.Cut()
		a.Heal()
		if missed != 1 {
			t.Errorf("told of loss %d times after a cut", missed)
		}
		got, release = nil, make(chan struct{})
		for _, text := range []string{"4", "5", "6", "7"} { // one is being delivered, two bytes may wait
			publish(b, text)
		}
		close(release)
		synctest.Wait()
		if !slices.Equal(got, []string{"4", "5", "6"}) || missed != 2 || s.Dropped() != 1 {
			t.Errorf("heard %q, told of loss %d times, %d dropped", got, missed, s.Dropped())
		}
	})
}

// Close leaves nothing behind: the bubble would not end with a goroutine in it.
func TestHubClose(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hub := conntest.NewHub(1)
		hub.Set(conntest.Faults{Delay: time.Hour})
		a := hub.Connect(nil)
		if _, err := a.Subscribe("s", cluster.Queue{}, func(cluster.Message) { t.Error("delivered after the end") }); err != nil {
			t.Fatal(err)
		}
		if err := a.Publish("s", nil); err != nil {
			t.Fatal(err)
		}
		hub.Close()
		hub.Close()
		if err := hub.Connect(nil).Publish("s", nil); err == nil {
			t.Error("a closed hub connects")
		}
		pass(2 * time.Hour)
	})
}
