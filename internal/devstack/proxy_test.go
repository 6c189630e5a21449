package devstack_test

import (
	"bytes"
	"database/sql"
	"errors"
	"io"
	"net"
	"net/url"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/freshet-cache/freshet/internal/devstack"
	"github.com/freshet-cache/freshet/internal/devstack/stacktest"
)

// echo runs a server that sends everything back, and ends its side when the
// client has ended its own.
func echo(t *testing.T) (addr string) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var conns sync.WaitGroup
	conns.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			conns.Go(func() {
				defer c.Close()
				_, _ = io.Copy(c, c) // ends with the connection
			})
		}
	})
	t.Cleanup(func() {
		l.Close()
		conns.Wait()
	})
	return l.Addr().String()
}

func proxy(t *testing.T, target string) *devstack.Proxy {
	t.Helper()
	p, err := devstack.NewProxy(target)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.Close)
	return p
}

func dial(t *testing.T, addr string) net.Conn {
	t.Helper()
	c, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// ask sends a byte and waits for it to come back.
func ask(t *testing.T, c net.Conn, limit time.Duration) error {
	t.Helper()
	if err := c.SetDeadline(time.Now().Add(limit)); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Write([]byte{'?'}); err != nil {
		return err
	}
	_, err := io.ReadFull(c, make([]byte, 1))
	return err
}

func timedOut(err error) bool {
	var e net.Error
	return errors.As(err, &e) && e.Timeout()
}

func TestProxyForwardsEverythingAndTheEnd(t *testing.T) {
	p := proxy(t, echo(t))
	c := dial(t, p.Addr())
	sent := bytes.Repeat([]byte("freshet "), 1<<20) // 8 MiB, more than all buffers
	var writer sync.WaitGroup
	writer.Go(func() {
		if _, err := c.Write(sent); err != nil {
			t.Error(err)
		}
		if err := c.(*net.TCPConn).CloseWrite(); err != nil {
			t.Error(err)
		}
	})
	got, err := io.ReadAll(c)
	writer.Wait()
	if err != nil || !bytes.Equal(got, sent) {
		t.Errorf("%d bytes came back (%v), want the %d that were sent", len(got), err, len(sent))
	}
}

func TestProxyCutDropsAndRefuses(t *testing.T) {
	p := proxy(t, echo(t))
	c := dial(t, p.Addr())
	if err := ask(t, c, time.Minute); err != nil {
		t.Fatal(err)
	}
	p.Cut()
	if err := ask(t, c, time.Minute); err == nil || timedOut(err) {
		t.Errorf("on a cut connection: %v, want it broken", err)
	}
	if _, err := net.Dial("tcp", p.Addr()); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("new connection while cut: %v, want it refused", err)
	}
	p.Heal()
	if err := ask(t, dial(t, p.Addr()), time.Minute); err != nil {
		t.Errorf("after Heal: %v", err)
	}
}

func TestProxyStallHoldsBytesUntilHeal(t *testing.T) {
	p := proxy(t, echo(t))
	old := dial(t, p.Addr())
	if err := ask(t, old, time.Minute); err != nil {
		t.Fatal(err)
	}
	for _, before := range []func(){func() {}, p.Cut} { // a stall may follow a cut
		before()
		p.Stall()
		c := dial(t, p.Addr())
		if err := ask(t, c, short); !timedOut(err) {
			t.Errorf("new connection while stalled: %v, want a timeout", err)
		}
		p.Heal()
		if err := c.SetDeadline(time.Now().Add(time.Minute)); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(c, make([]byte, 1)); err != nil {
			t.Errorf("what was sent while stalled did not come back: %v", err)
		}
	}
}

func TestProxyStallHoldsExistingConnections(t *testing.T) {
	p := proxy(t, echo(t))
	c := dial(t, p.Addr())
	if err := ask(t, c, time.Minute); err != nil {
		t.Fatal(err)
	}
	p.Stall()
	if err := ask(t, c, short); !timedOut(err) {
		t.Errorf("while stalled: %v, want a timeout", err)
	}
	p.Cut()
	if err := ask(t, c, time.Minute); err == nil || timedOut(err) {
		t.Errorf("cut while stalled: %v, want it broken", err)
	}
}

func TestProxyStallIsBounded(t *testing.T) {
	p := proxy(t, echo(t))
	c := dial(t, p.Addr())
	p.Stall()
	if err := c.SetWriteDeadline(time.Now().Add(time.Second)); err != nil {
		t.Fatal(err)
	}
	// The kernel's socket buffers, some MiB each, take their share too.
	n, err := c.Write(make([]byte, 64<<20))
	if !timedOut(err) {
		t.Errorf("a stalled proxy took %d bytes (%v), want the sender held up", n, err)
	}
}

func TestProxyDelaysEachDirection(t *testing.T) {
	const delay = 50 * time.Millisecond
	p := proxy(t, echo(t))
	c := dial(t, p.Addr())
	p.Delay(delay)
	began := time.Now()
	if err := ask(t, c, time.Minute); err != nil {
		t.Fatal(err)
	}
	if took := time.Since(began); took < 2*delay {
		t.Errorf("a round trip took %v with %v delay, want twice the delay or more", took, delay)
	}
	p.Delay(time.Hour)
	if err := ask(t, c, short); !timedOut(err) {
		t.Errorf("with an hour's delay: %v, want a timeout", err)
	}
	p.Heal()
	if err := ask(t, dial(t, p.Addr()), time.Minute); err != nil {
		t.Errorf("after Heal: %v", err)
	}
}

func TestProxyOfAnAbsentServerBreaksConnections(t *testing.T) {
	p := proxy(t, "127.0.0.1:1")
	// The connection may break before dialling it has returned.
	c, err := net.Dial("tcp", p.Addr())
	if err == nil {
		defer c.Close()
		err = ask(t, c, time.Minute)
	}
	if err == nil || timedOut(err) {
		t.Errorf("through to nobody: %v, want the connection broken", err)
	}
	if _, err := devstack.NewProxy("nonsense"); err == nil || !strings.Contains(err.Error(), "host:port") {
		t.Errorf("target without a port: %v, want an error that says what is right", err)
	}
}

func TestProxyCloseEndsStalledAndDelayedConnections(t *testing.T) {
	p := proxy(t, echo(t))
	p.Delay(time.Hour)
	delayed := dial(t, p.Addr())
	if err := ask(t, delayed, short); !timedOut(err) {
		t.Fatal(err)
	}
	p.Stall()
	stalled := dial(t, p.Addr())
	p.Close()
	p.Close()
	for _, c := range []net.Conn{delayed, stalled} {
		if err := ask(t, c, time.Minute); err == nil || timedOut(err) {
			t.Errorf("after Close: %v, want the connection broken", err)
		}
	}
	p.Heal()
	if _, err := net.Dial("tcp", p.Addr()); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("new connection after Close: %v, want it refused", err)
	}
}

func TestProxyControlsRunTogether(t *testing.T) {
	p := proxy(t, echo(t))
	var users sync.WaitGroup
	for _, control := range []func(){p.Cut, p.Stall, p.Heal, func() { p.Delay(time.Millisecond) }} {
		users.Go(func() {
			for range 200 {
				control()
			}
		})
	}
	users.Go(func() {
		for range 200 {
			if c, err := net.Dial("tcp", p.Addr()); err == nil {
				_, _ = c.Write([]byte("?")) // cut off, perhaps
				c.Close()
			}
		}
	})
	users.Wait()
	p.Heal()
	if err := ask(t, dial(t, p.Addr()), time.Minute); err != nil {
		t.Errorf("after all that: %v", err)
	}
}

func TestProxyCutsOneClientOffFromPostgres(t *testing.T) {
	direct := database(t, "proxied")
	dsn, err := url.Parse(stacktest.Stack().Postgres.DSN())
	if err != nil {
		t.Fatal(err)
	}
	p := proxy(t, dsn.Host)
	dsn.Host, dsn.Path = p.Addr(), "proxied"
	remote, err := sql.Open("postgres", dsn.String())
	if err != nil {
		t.Fatal(err)
	}
	defer remote.Close()
	if _, err := remote.ExecContext(t.Context(), "insert into t values (1)"); err != nil {
		t.Fatal(err)
	}
	p.Cut()
	if _, err := remote.ExecContext(t.Context(), "insert into t values (2)"); err == nil {
		t.Error("the client that was cut off reached the server")
	}
	if got := rows(t, direct); got != 1 {
		t.Errorf("another client sees %d rows, want 1", got)
	}
	p.Heal()
	if _, err := remote.ExecContext(t.Context(), "insert into t values (3)"); err != nil {
		t.Errorf("after Heal: %v", err)
	}
}

// greeter runs a server that sends its name to each connection and stays.
func greeter(t *testing.T, name string) (addr string) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var conns sync.WaitGroup
	conns.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			conns.Go(func() {
				defer c.Close()
				_, _ = io.WriteString(c, name)
				_, _ = io.Copy(io.Discard, c) // ends with the connection
			})
		}
	})
	t.Cleanup(func() {
		l.Close()
		conns.Wait()
	})
	return l.Addr().String()
}

func TestProxyTargetMovesTheService(t *testing.T) {
	p := proxy(t, greeter(t, "a"))
	c := dial(t, p.Addr())
	receive(t, c, "a")
	if err := p.Target(greeter(t, "b")); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Read(make([]byte, 1)); err == nil || timedOut(err) {
		t.Errorf("on the old connection: %v, want it broken", err)
	}
	receive(t, dial(t, p.Addr()), "b")
	// Of several the living, in turn.
	if err := p.Target("127.0.0.1:1", greeter(t, "c"), greeter(t, "c")); err != nil {
		t.Fatal(err)
	}
	for range 6 {
		receive(t, dial(t, p.Addr()), "c")
	}
	if err := p.Target(); err == nil {
		t.Error("a proxy without a target")
	}
}

func TestProxyHalfOpenStopsOneDirection(t *testing.T) {
	for _, d := range []devstack.Direction{devstack.Up, devstack.Down} {
		t.Run(d.String(), func(t *testing.T) {
			server, accepted := listen(t)
			p := proxy(t, server)
			client := dial(t, p.Addr())
			ends := [2]net.Conn{client, <-accepted}
			p.HalfOpen(d)
			send(t, ends[1-d], "flows")
			receive(t, ends[d], "flows")
			send(t, ends[d], "waits")
			if err := ends[1-d].SetReadDeadline(time.Now().Add(short)); err != nil {
				t.Fatal(err)
			}
			if _, err := ends[1-d].Read(make([]byte, 1)); !timedOut(err) {
				t.Errorf("in the stalled direction: %v, want a timeout", err)
			}
			p.Heal()
			receive(t, ends[1-d], "waits")
		})
	}
}

// listen runs a server that hands out its connections.
func listen(t *testing.T) (addr string, accepted <-chan net.Conn) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	conns := make(chan net.Conn, 16)
	go func() {
		defer close(conns)
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			conns <- c
		}
	}()
	t.Cleanup(func() {
		l.Close()
		for c := range conns {
			c.Close()
		}
	})
	return l.Addr().String(), conns
}

func TestProxyStallHidesThatTheServerIsGone(t *testing.T) {
	server, accepted := listen(t)
	p := proxy(t, server)
	c := dial(t, p.Addr())
	far := <-accepted // only what has been passed on can be stalled
	p.HalfOpen(devstack.Down)
	far.Close()
	if err := ask(t, c, short); !timedOut(err) {
		t.Errorf("while half-open: %v, want a timeout", err)
	}
	p.Heal()
	if err := ask(t, c, time.Minute); err == nil || timedOut(err) {
		t.Errorf("after Heal: %v, want the connection ended", err)
	}
}

func TestProxyLimitSlowsOneDirection(t *testing.T) {
	p := proxy(t, echo(t))
	c := dial(t, p.Addr())
	p.Limit(devstack.Down, 10_000)
	sent := bytes.Repeat([]byte("x"), 4_000)
	began := time.Now()
	send(t, c, string(sent))
	receive(t, c, string(sent))
	if took := time.Since(began); took < 350*time.Millisecond {
		t.Errorf("4000 bytes at 10000 a second took %v", took)
	}
	p.Heal()
	if err := ask(t, c, time.Minute); err != nil {
		t.Error(err)
	}
}
