package devstack

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"sync"
	"time"

	"github.com/nats-io/nats-server/v2/server"
)

// Bounds of what JetStream keeps.
const (
	natsMemory = 256 << 20 // bytes
	natsStore  = 1 << 30   // bytes
)

// NATS is a NATS server with JetStream inside this process. It listens on a TCP
// port like any other.
type NATS struct {
	site *site

	mu     sync.Mutex
	server *server.Server // nil while stopped

	pending  int64         // bytes that wait for one client; 0 = the server's default
	deadline time.Duration // of a write to a client; 0 = the server's default
}

func newNATS(s *site) *NATS { return &NATS{site: s} }

// URL returns the server's address, nats://127.0.0.1:port. It stays the same for
// the life of the stack.
func (n *NATS) URL() string { return "nats://" + n.Addr() }

// Addr returns the server's address as host:port.
func (n *NATS) Addr() string { return n.site.ports.addr(natsPort) }

// LimitPending restarts the server with other bounds for what waits for a client
// that reads slowly: so many bytes, but never less than
// the 1 MiB of the longest message, and so long in one write, until it is cut off
// as a slow consumer. Zero or less means the server's own: 64 MiB and 10 s. All
// clients lose their connections. A stopped server is started.
func (n *NATS) LimitPending(bytes int64, write time.Duration) error {
	n.mu.Lock()
	n.pending, n.deadline = max(bytes, 0), max(write, 0)
	n.mu.Unlock()
	return errors.Join(n.Stop(), n.Start())
}

// SlowConsumers returns how many clients the server has cut off as slow since it
// was started; 0 when it is stopped.
func (n *NATS) SlowConsumers() int64 {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.server == nil {
		return 0
	}
	return n.server.NumSlowConsumers()
}

// Stop shuts the server down and returns when it is gone. Its clients lose their
// connections; what JetStream holds in files is kept. Stopping a stopped server
// does nothing.
func (n *NATS) Stop() error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.server != nil {
		n.server.Shutdown()
		n.server.WaitForShutdown()
		n.server = nil
	}
	return nil
}

// Start starts a stopped server on the same port and JetStream folder and
// returns when it accepts connections, at most 30 s later. Starting a running
// server does nothing.
func (n *NATS) Start() error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if err := context.Cause(n.site.life); err != nil {
		return err
	}
	if n.server != nil {
		return nil
	}
	pending := n.pending
	if pending > 0 {
		pending = max(pending, server.MAX_PAYLOAD_SIZE)
	}
	s, err := server.NewServer(&server.Options{
		ServerName:         "freshet-devstack",
		Host:               loopback,
		Port:               n.site.ports.port(natsPort),
		JetStream:          true,
		StoreDir:           filepath.Join(n.site.folder, "nats"),
		JetStreamMaxMemory: natsMemory,
		JetStreamMaxStore:  natsStore,
		NoSigs:             true,
		MaxPending:         pending,
		WriteDeadline:      n.deadline,
		LogFile:            filepath.Join(n.site.folder, "nats.log"),
	})
	if err != nil {
		return fmt.Errorf("devstack: nats: %w", err)
	}
	s.ConfigureLogger()
	s.Start()
	if !s.ReadyForConnections(readyLimit) {
		s.Shutdown()
		s.WaitForShutdown()
		return errors.New("devstack: nats did not start; is its port taken?")
	}
	n.server = s
	return nil
}
