package node_test

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/freshet-cache/freshet/internal/devstack"
	"github.com/freshet-cache/freshet/internal/devstack/stacktest"
	"github.com/freshet-cache/freshet/node"
)

// flushing is the mode of a child that flushes later puts until it is killed.
const flushing = "flushing"

func flushingChild(ctx context.Context) error {
	n, err := node.Open(ctx, node.Config{
		App: os.Getenv("APP"), Postgres: node.PostgresConfig{DSN: os.Getenv("DSN")},
		NATS:        node.NATSConfig{URLs: []string{os.Getenv("NATS")}},
		WriteBehind: node.WriteBehind{AckWait: killAckWait, Batch: 20, FlushEvery: 5 * time.Millisecond},
	})
	if err != nil {
		return err
	}
	if _, err := node.NewCache(n, stockCache()); err != nil {
		return err
	}
	<-ctx.Done()
	return ctx.Err()
}

const (
	// killAckWait is how long the puts of a killed child wait.
	killAckWait = 300 * time.Millisecond
	// killBound bounds the wait for a child to come to its end.
	killBound = time.Minute
)

// killPoint is a moment in a flush: a chunk of bytes to or from a server, which is lost together with the replica.
type killPoint struct {
	name    string
	nats    bool // it passes NATS, else Postgres
	to      devstack.Direction
	holds   string // the chunk has this text
	flushed bool   // and comes after the statement that writes
}

const writes = "insert into stock"

func killPoints() []killPoint {
	return []killPoint{
		{name: "puts delivered", nats: true, to: devstack.Down, holds: "Fw\x01"},
		{name: "claim sent", to: devstack.Up, holds: "insert into freshet.applied"},
		{name: "write sent", to: devstack.Up, holds: writes},
		{name: "commit sent", to: devstack.Up, holds: "COMMIT", flushed: true},
		{name: "committed, no answer", to: devstack.Down, holds: "COMMIT", flushed: true},
		{name: "committed, no hint", nats: true, to: devstack.Up, holds: ".hint ", flushed: true},
		{name: "committed, no ack", nats: true, to: devstack.Up, holds: "$JS.ACK."},
		{name: "acknowledged, no purge", nats: true, to: devstack.Up, holds: "STREAM.PURGE."},
	}
}

// matches counts the chunk that the point is about. It is called for one chunk at a time.
func (p killPoint) matches(nats *devstack.Proxy) func(devstack.Chunk) bool {
	var flushed bool
	return func(c devstack.Chunk) bool {
		onNATS := c.Proxy == nats
		if !onNATS && bytes.Contains(c.Bytes, []byte(writes)) {
			flushed = true
		}
		return onNATS == p.nats && c.Direction == p.to && (flushed || !p.flushed) && bytes.Contains(c.Bytes, []byte(p.holds))
	}
}

// killer has one replica after the other die at a point of its flush.
type killer struct {
	site           *site
	dsn            string
	nats, postgres *devstack.Proxy
}

func (s *site) killer() *killer {
	s.t.Helper()
	stack := stacktest.Stack()
	k := &killer{site: s}
	var err1, err2 error
	k.nats, err1 = devstack.NewProxy(stack.NATS.Addr())
	k.postgres, err2 = devstack.NewProxy(stack.Postgres.Addr())
	if err := errors.Join(err1, err2); err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(k.nats.Close)
	s.t.Cleanup(k.postgres.Close)
	k.dsn = stack.Postgres.DSNVia(k.postgres.Addr(), "node_"+s.app)
	return k
}

// kill runs a replica until it is at the point, and kills it there.
func (k *killer) kill(ctx context.Context, point killPoint) error {
	at, err := devstack.Break(1, point.matches(k.nats), k.nats, k.postgres)
	if err != nil {
		return err
	}
	defer at.Drop()
	self, err := os.Executable()
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, killBound)
	defer cancel()
	var output bytes.Buffer
	command := exec.CommandContext(ctx, self) // killed by SIGKILL when ctx ends
	command.Env = append(os.Environ(), childMode+"="+flushing, "APP="+k.site.app, "DSN="+k.dsn, "NATS=nats://"+k.nats.Addr(), "GOMAXPROCS=1")
	command.Stdout, command.Stderr = &output, &output
	if err := command.Start(); err != nil {
		return err
	}
	ended := make(chan error, 1)
	go func() { ended <- command.Wait() }()
	select {
	case <-at.Held():
	case err := <-ended:
		return fmt.Errorf("at %q: the child ended: %w\n%s", point.name, err, &output)
	}
	if err := command.Process.Kill(); err != nil {
		return err
	}
	if err := <-ended; err == nil {
		return fmt.Errorf("at %q: the child ended well, and was to be killed", point.name)
	}
	return nil
}

// kills is how many replicas die in TestRow19Kills.
var kills = flag.Int("kills", 16, "how many replicas `TestRow19Kills` kills")

// Replicas are killed at every point of their flushes, one after the other, two at a time, while clients put later and
// read: nothing that was acknowledged is lost, nothing is written twice or out of the order of its key, and
// a read never lacks a put.
func TestRow19Kills(t *testing.T) {
	s := newSite(t)
	s.makeStock()
	client := func(c *node.Config, _ *node.CacheConfig[stock]) {
		c.WriteBehind = node.WriteBehind{AckWait: killAckWait, Batch: 20, FlushEvery: 5 * time.Millisecond, Flushers: -1, Timeout: patient}
	}
	k := []*keeper{s.keeper(client), s.keeper(client)}
	ctx, end := context.WithCancel(t.Context())
	defer end()
	var load sync.WaitGroup
	counters := []*counter{newCounter("a", 8), newCounter("b", 8), newCounter("c", 8)}
	for i, c := range counters {
		load.Go(func() {
			for ctx.Err() == nil {
				id, token, err := c.put(ctx, k[i%2])
				if ctx.Err() != nil {
					return
				}
				if errors.Is(err, node.ErrOverloaded) {
					wait(ctx, 20*time.Millisecond) // the dead keep others waiting
					continue
				}
				if err != nil {
					t.Errorf("put later: %v", err)
					continue
				}
				for _, of := range []*keeper{k[i%2], k[1-i%2]} {
					e, err := of.stock.Lookup(ctx, id, node.AtLeast(token))
					if ctx.Err() == nil && (err != nil || e.Value.N < c.acked[id]) {
						t.Errorf("%s with the token of %d: %+v, %v", id, c.acked[id], e, err)
					}
				}
				wait(ctx, 3*time.Millisecond)
			}
		})
	}
	points := killPoints()
	var next, dead atomic.Int64
	died := make([]atomic.Int64, len(points))
	var killers sync.WaitGroup
	for range 2 {
		k := s.killer()
		killers.Go(func() {
			for n := next.Add(1) - 1; n < int64(*kills) && !t.Failed(); n = next.Add(1) - 1 {
				p := int(n) % len(points)
				if err := k.kill(t.Context(), points[p]); err != nil {
					t.Errorf("kill %d: %v", n, err)
					return
				}
				died[p].Add(1)
				if n := dead.Add(1); n%100 == 0 {
					t.Logf("%d replicas are dead", n)
				}
			}
		})
	}
	killers.Wait()
	end()
	load.Wait()
	last := s.keeper(func(c *node.Config, cache *node.CacheConfig[stock]) {
		client(c, cache)
		c.WriteBehind.Flushers = 1
	})
	s.drained(append(slices.Clone(k), last)...)
	s.audited(counters...)
	var report strings.Builder
	for i, p := range points {
		fmt.Fprintf(&report, ", %d: %s", died[i].Load(), p.name)
	}
	t.Logf("%d replicas were killed%s", dead.Load(), &report)
	if letters, err := last.DeadLetters(t.Context(), 0, 0); err != nil || len(letters) > 0 {
		t.Errorf("dead letters: %+v, %v", letters, err)
	}
}
