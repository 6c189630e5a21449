package tiers

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"io"
	"net"
	"net/http/httptest"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/freshet-cache/freshet/internal/devstack"
	"github.com/freshet-cache/freshet/internal/devstack/stacktest"
)

// A replica that reaches every node through a proxy of its own can be cut off from Redis alone: the
// addresses that the nodes announce are mapped as those of the configuration are.
func TestL2Dial(t *testing.T) {
	ready(t)
	proxies := map[string]*devstack.Proxy{} // node's address -> the way to it
	for _, n := range stacktest.Stack().Redis.Nodes() {
		p, err := devstack.NewProxy(n.Addr())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(p.Close)
		proxies[n.Addr()] = p
	}
	var strange atomic.Pointer[string]
	c := l2Config(patient)
	c.Dial = func(ctx context.Context, network, address string) (net.Conn, error) {
		p := proxies[address]
		if p == nil {
			strange.Store(&address)
			return nil, net.UnknownNetworkError(address)
		}
		return (&net.Dialer{}).DialContext(ctx, network, p.Addr())
	}
	l, err := OpenL2(c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(l.Close)
	until(t, "every shard is connected", func() bool { return allClosed(l) })
	direct := openL2(t, patient)
	var keys []string
	for _, s := range l.Shards() {
		key := keyOn(l, s.Name)
		mustSet(t, l, key, "v")
		keys = append(keys, key)
	}
	reachable := func(l *L2) (n int) {
		for _, key := range keys {
			if b, err := l.Get(t.Context(), key); err == nil && string(b) == "v" && l.Available(key) {
				n++
			}
		}
		return n
	}
	for _, p := range proxies {
		p.Cut()
	}
	until(t, "no shard is reached", func() bool { return reachable(l) == 0 && l.Shards()[0].State == "open" })
	if n := reachable(direct); n != len(keys) {
		t.Errorf("another replica reaches %d of %d shards", n, len(keys))
	}
	for _, p := range proxies {
		p.Heal()
	}
	until(t, "every shard is reached again", func() bool { return reachable(l) == len(keys) })
	if address := strange.Load(); address != nil {
		t.Errorf("dialed %s, which no node announces", *address)
	}
}

// TLS goes on top of what Dial brings, and checks the name that was dialed.
func TestL2DialTLS(t *testing.T) {
	ready(t)
	server := httptest.NewUnstartedServer(nil)
	server.StartTLS() // for its certificate, which is of 127.0.0.1
	defer server.Close()
	roots := x509.NewCertPool()
	roots.AddCert(server.Certificate())

	var ways sync.WaitGroup
	defer ways.Wait()
	c := l2Config(patient)
	c.TLS = &tls.Config{RootCAs: roots}
	c.Dial = func(ctx context.Context, network, address string) (net.Conn, error) {
		redis, err := (&net.Dialer{}).DialContext(ctx, network, address)
		if err != nil {
			return nil, err
		}
		near, far := net.Pipe()
		secure := tls.Server(far, &tls.Config{Certificates: server.TLS.Certificates})
		pass := func(to, from net.Conn) {
			_, _ = io.Copy(to, from) // until either end is closed
			_, _ = redis.Close(), far.Close()
		}
		ways.Go(func() { pass(redis, secure) })
		ways.Go(func() { pass(secure, redis) })
		return near, nil
	}
	l, err := OpenL2(c)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	until(t, "every shard is connected", func() bool { return allClosed(l) })
	key := keyOn(l, l.Shards()[1].Name)
	mustSet(t, l, key, "v")
	if b, err := get(t, l, key); err != nil || string(b) != "v" {
		t.Errorf("%q, %v", b, err)
	}

	ctx := t.Context()
	address := stacktest.Stack().Redis.Addrs()[0]
	conn, err := c.Dial(ctx, "tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := overTLS(ctx, conn, "localhost:1", c.TLS); err == nil {
		t.Error("the certificate of another name is taken")
	}
}
