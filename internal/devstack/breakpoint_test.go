package devstack_test

import (
	"bytes"
	"errors"
	"io"
	"net"
	"testing"
	"time"

	"github.com/freshet-cache/freshet/internal/devstack"
)

func breakAt(t *testing.T, k int, counts func(devstack.Chunk) bool, proxies ...*devstack.Proxy) *devstack.Breakpoint {
	t.Helper()
	b, err := devstack.Break(k, counts, proxies...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(b.Deliver)
	return b
}

func held(t *testing.T, b *devstack.Breakpoint) devstack.Chunk {
	t.Helper()
	select {
	case <-b.Held():
	case <-time.After(time.Minute):
		t.Fatalf("nothing was held; %d chunks passed", b.Passed())
	}
	return b.Chunk()
}

func send(t *testing.T, c net.Conn, text string) {
	t.Helper()
	if _, err := c.Write([]byte(text)); err != nil {
		t.Fatal(err)
	}
}

func receive(t *testing.T, c net.Conn, want string) {
	t.Helper()
	if err := c.SetReadDeadline(time.Now().Add(10 * time.Second)); err != nil {
		t.Fatal(err)
	}
	got := make([]byte, len(want))
	if _, err := io.ReadFull(c, got); err != nil || string(got) != want {
		t.Fatalf("received %q (%v), want %q", got, err, want)
	}
}

// TestBreakpointHoldsEachChunkInTurn walks through three questions and answers
// over two proxies, whose chunks are numbered together.
func TestBreakpointHoldsEachChunkInTurn(t *testing.T) {
	addr := echo(t)
	for k := 1; k <= 6; k++ {
		one, two := proxy(t, addr), proxy(t, addr)
		conns := []net.Conn{dial(t, one.Addr()), dial(t, two.Addr()), dial(t, one.Addr())}
		b := breakAt(t, k, nil, one, two)
		done := make(chan struct{})
		go func() {
			defer close(done)
			for _, c := range conns {
				if err := ask(t, c, time.Minute); err != nil {
					t.Error(err)
				}
			}
		}()
		chunk := held(t, b)
		wantProxy, wantDirection := one, devstack.Direction((k-1)%2)
		if k == 3 || k == 4 {
			wantProxy = two
		}
		if chunk.Proxy != wantProxy || chunk.Direction != wantDirection || string(chunk.Bytes) != "?" {
			t.Errorf("chunk %d goes %v with %q, want %v with ?, and through the right proxy", k, chunk.Direction, chunk.Bytes, wantDirection)
		}
		if b.Passed() != k {
			t.Errorf("%d chunks passed, want %d", b.Passed(), k)
		}
		b.Deliver()
		<-done
	}
}

func TestBreakpointHoldsTheWholeConnectionOnly(t *testing.T) {
	p := proxy(t, echo(t))
	c, other := dial(t, p.Addr()), dial(t, p.Addr())
	b := breakAt(t, 1, nil, p)
	send(t, c, "1")
	held(t, b)
	send(t, c, "2")
	if err := c.SetReadDeadline(time.Now().Add(short)); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Read(make([]byte, 1)); !timedOut(err) {
		t.Errorf("while held: %v, want a timeout", err)
	}
	if err := ask(t, other, time.Minute); err != nil {
		t.Errorf("on another connection: %v", err)
	}
	if _, err := devstack.Break(1, nil, p); !errors.Is(err, devstack.ErrBreakpoint) {
		t.Errorf("second breakpoint: %v, want ErrBreakpoint", err)
	}
	b.Deliver()
	b.Drop() // comes too late
	receive(t, c, "12")
}

func TestBreakpointDropsWithTheConnection(t *testing.T) {
	got := make(chan string, 1)
	p := proxy(t, sink(t, got))
	c := dial(t, p.Addr())
	seen := make(chan string, 3)
	b := breakAt(t, 2, func(k devstack.Chunk) bool {
		seen <- string(k.Bytes)
		return !bytes.Equal(k.Bytes, []byte("#"))
	}, p)
	for _, text := range []string{"1", "#", "2"} {
		send(t, c, text)
		if chunk := <-seen; chunk != text { // each is a chunk of its own
			t.Fatalf("the proxy took %q, want %q", chunk, text)
		}
	}
	if chunk := held(t, b); !bytes.Equal(chunk.Bytes, []byte("2")) {
		t.Errorf("held %q", chunk.Bytes)
	}
	b.Drop()
	if text := <-got; text != "1#" {
		t.Errorf("the server got %q, want nothing of the chunk that was dropped", text)
	}
	if err := ask(t, c, time.Minute); err == nil || timedOut(err) {
		t.Errorf("on the connection: %v, want it broken", err)
	}
	if err := ask(t, dial(t, proxy(t, echo(t)).Addr()), time.Minute); err != nil {
		t.Error(err)
	}
}

// TestBreakpointDeliversForADeadSender is a process that was killed behind its
// last write: what the kernel has taken arrives.
func TestBreakpointDeliversForADeadSender(t *testing.T) {
	got := make(chan string, 1)
	p := proxy(t, sink(t, got))
	c := dial(t, p.Addr())
	b := breakAt(t, 1, nil, p)
	send(t, c, "last words")
	held(t, b)
	if err := c.(*net.TCPConn).SetLinger(0); err != nil { // a reset, as of a process with unread answers
		t.Fatal(err)
	}
	c.Close()
	b.Deliver()
	if text := <-got; text != "last words" {
		t.Errorf("the server got %q", text)
	}
}

// sink runs a server that sends what each connection has brought when it ends.
func sink(t *testing.T, got chan<- string) (addr string) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		c, err := l.Accept()
		if err != nil {
			return
		}
		defer c.Close()
		text, _ := io.ReadAll(c) // ends broken, perhaps
		got <- string(text)
	}()
	t.Cleanup(func() {
		l.Close()
		<-done
	})
	return l.Addr().String()
}

func TestBreakpointThatIsNeverReachedEnds(t *testing.T) {
	p := proxy(t, echo(t))
	c := dial(t, p.Addr())
	b := breakAt(t, 3, nil, p)
	if err := ask(t, c, time.Minute); err != nil {
		t.Fatal(err)
	}
	if b.Passed() != 2 {
		t.Errorf("%d chunks passed, want 2", b.Passed())
	}
	b.Drop()
	if err := ask(t, c, time.Minute); err != nil {
		t.Errorf("after Drop of nothing: %v", err)
	}
	select {
	case <-b.Held():
		t.Error("a chunk was held after the end")
	default:
	}
	if _, err := devstack.Break(0, nil, p); err == nil {
		t.Error("a breakpoint at chunk 0")
	}
}

func TestBreakpointEndsWithItsProxy(t *testing.T) {
	p := proxy(t, echo(t))
	c := dial(t, p.Addr())
	b := breakAt(t, 1, nil, p)
	send(t, c, "1")
	held(t, b)
	p.Close() // waits for the goroutine that holds it
}
