package main

import (
	"bytes"
	"io"
	"net"
	"net/url"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/freshet-cache/freshet/internal/verify"
)

// gate stands between one replica and Postgres and holds back, when told to, the answer to a load of a row: the server
// has read the row and the replica does not know it yet.
type gate struct {
	target string
	listen net.Listener
	closed chan struct{}
	ended  sync.WaitGroup

	mu    sync.Mutex
	holds []*hold // the next answer is for the first
}

// hold is one answer that is, or is going to be, held back.
type hold struct {
	reached  chan struct{} // closed by the gate when the answer is there
	released chan struct{} // closed by release
}

// wait returns when the answer is held.
func (h *hold) wait(t *testing.T) {
	t.Helper()
	select {
	case <-h.reached:
	case <-time.After(20 * time.Second):
		t.Fatal("no load has begun")
	}
}

func (h *hold) release() { close(h.released) }

// openGate opens one for the server of a DSN and returns the DSN that leads through it.
func openGate(t *testing.T, dsn string) (*gate, string) {
	t.Helper()
	u, err := url.Parse(dsn)
	if err != nil {
		t.Fatal(err)
	}
	g := &gate{target: u.Host, closed: make(chan struct{})}
	if g.listen, err = net.Listen("tcp", "127.0.0.1:0"); err != nil {
		t.Fatal(err)
	}
	u.Host = g.listen.Addr().String()
	g.ended.Go(g.accept)
	t.Cleanup(func() {
		close(g.closed)
		g.listen.Close()
		g.ended.Wait()
	})
	return g, u.String()
}

// next holds the answer to the next load.
func (g *gate) next() *hold {
	h := &hold{reached: make(chan struct{}), released: make(chan struct{})}
	g.mu.Lock()
	defer g.mu.Unlock()
	g.holds = append(g.holds, h)
	return h
}

func (g *gate) take() *hold {
	g.mu.Lock()
	defer g.mu.Unlock()
	if len(g.holds) == 0 {
		return nil
	}
	h := g.holds[0]
	g.holds = g.holds[1:]
	return h
}

func (g *gate) accept() {
	for {
		client, err := g.listen.Accept()
		if err != nil {
			return
		}
		server, err := net.Dial("tcp", g.target)
		if err != nil {
			client.Close()
			continue
		}
		var loads atomic.Bool // the statement that the connection has prepared last reads rows
		ended := func() { client.Close(); server.Close() }
		g.ended.Go(func() {
			defer ended()
			pass(server, client, func(chunk []byte) {
				if chunk[0] == 'P' { // Parse
					loads.Store(bytes.Contains(chunk, []byte(verify.RowQuery)))
				}
			})
		})
		g.ended.Go(func() {
			defer ended()
			pass(client, server, func(chunk []byte) {
				if chunk[0] != '2' || !loads.Load() { // BindComplete: the answer's begin
					return
				}
				if h := g.take(); h != nil {
					close(h.reached)
					select {
					case <-h.released:
					case <-g.closed:
					}
				}
			})
		})
		g.ended.Go(func() {
			<-g.closed
			ended()
		})
	}
}

// pass copies from one connection to the other and shows each chunk before it does.
func pass(to io.Writer, from io.Reader, look func([]byte)) {
	buffer := make([]byte, 64<<10)
	for {
		n, err := from.Read(buffer)
		if n > 0 {
			look(buffer[:n])
			if _, err := to.Write(buffer[:n]); err != nil {
				return
			}
		}
		if err != nil {
			return
		}
	}
}
