package node_test

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	client "github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/freshet-cache/freshet/internal/devstack/stacktest"
	"github.com/freshet-cache/freshet/node"
)

// stock is what the tests of later puts cache: a count with its audit.
type stock struct {
	ID string `json:"id"`
	N  int64  `json:"n"`
}

const (
	stockQuery = `select id, n from stock where id = any($1)`
	stockPut   = `
insert into stock (id, n) select v.id, v.n from jsonb_to_recordset($2::jsonb) v (id text, n bigint) where v.id = any($1::text[])
on conflict (id) do update set n = excluded.n`
	stockRemove = `delete from stock where id = any($1)`
)

// makeStock makes a table whose every change leaves a row in an audit, in the order of the changes of a row. It
// refuses negative numbers.
func (s *site) makeStock() {
	s.t.Helper()
	s.exec(`create table stock (id text primary key, n bigint not null check (n >= 0))`)
	s.exec(`create table audit (at bigint generated always as identity, id text not null, n bigint)`)
	s.exec(`
create function audit() returns trigger language plpgsql as $$ begin
    insert into audit (id, n) values (coalesce(new.id, old.id), new.n);
    return null;
end $$`)
	s.exec(`create trigger audit after insert or update or delete on stock for each row execute function audit()`)
}

// keeper is a replica with its cache of stock.
type keeper struct {
	*node.Node
	stock *node.Cache[stock]
}

func stockCache() node.CacheConfig[stock] {
	return node.CacheConfig[stock]{
		Namespace: "stock", Source: node.SQL[stock](stockQuery), Store: node.SQLStore[stock](stockPut, stockRemove), WriteBehind: true,
	}
}

func (s *site) keeper(change func(*node.Config, *node.CacheConfig[stock])) *keeper {
	s.t.Helper()
	c := s.config()
	cache := stockCache()
	if change != nil {
		change(&c, &cache)
	}
	n, err := node.Open(s.t.Context(), c)
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() {
		if err := n.Close(); err != nil {
			s.t.Errorf("close: %v", err)
		}
	})
	k := &keeper{Node: n}
	if k.stock, err = node.NewCache(n, cache); err != nil {
		s.t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(s.t.Context(), time.Minute)
	defer cancel()
	if err := n.Ready(ctx); err != nil {
		s.t.Fatal(err)
	}
	return k
}

func (k *keeper) later(t *testing.T, id string, n int64) node.Token {
	t.Helper()
	token, err := k.stock.PutLater(t.Context(), id, stock{id, n})
	if err != nil {
		t.Fatalf("put later: %v", err)
	}
	return token
}

// committed waits until the replica answers the number, FRESH.
func (s *site) committed(k *keeper, id string, n int64) {
	s.t.Helper()
	s.until(fmt.Sprintf("%s is %d in Postgres", id, n), func() bool {
		e, err := k.stock.Lookup(s.t.Context(), id)
		return err == nil && e.Fresh && e.Value.N == n
	})
}

// puts are what the replica knows of its stock.
func (k *keeper) puts() node.NamespaceStats {
	for _, s := range k.Stats().Namespaces {
		if s.Namespace == "stock" {
			return s
		}
	}
	return node.NamespaceStats{}
}

// counter puts ascending numbers under keys of its own, and remembers what it must find.
type counter struct {
	keys  []string
	acked map[string]int64
	tried map[string]int64
	puts  int // acknowledged
}

func newCounter(name string, keys int) *counter {
	c := &counter{acked: map[string]int64{}, tried: map[string]int64{}}
	for n := range keys {
		c.keys = append(c.keys, fmt.Sprintf("%s-%d", name, n))
	}
	return c
}

// put puts the next number under one of the keys.
func (c *counter) put(ctx context.Context, k *keeper) (id string, token node.Token, err error) {
	id = c.keys[rand.IntN(len(c.keys))]
	c.tried[id]++
	if token, err = k.stock.PutLater(ctx, id, stock{id, c.tried[id]}); err == nil {
		c.acked[id] = c.tried[id]
		c.puts++
	}
	return id, token, err
}

// audited compares Postgres with what the counters were told: each key has its last number that was acknowledged, or
// a later one whose put had no answer; and no number came twice or after a later one.
func (s *site) audited(counters ...*counter) {
	s.t.Helper()
	var changes []struct {
		ID string
		N  sql.NullInt64
	}
	if err := s.db.Select(&changes, `select id, n from audit order by at`); err != nil {
		s.t.Fatal(err)
	}
	last := map[string]int64{}
	for _, c := range changes {
		if c.N.Int64 <= last[c.ID] {
			s.t.Errorf("%s became %d after %d", c.ID, c.N.Int64, last[c.ID])
		}
		last[c.ID] = c.N.Int64
	}
	var puts int
	for _, c := range counters {
		puts += c.puts
		for _, id := range c.keys {
			if got := last[id]; got < c.acked[id] || got > c.tried[id] {
				s.t.Errorf("%s is %d in Postgres, want the last acknowledged, %d, up to the last tried, %d", id, got, c.acked[id], c.tried[id])
			}
		}
	}
	s.t.Logf("%d puts were acknowledged, and became %d changes", puts, len(changes))
}

// drained waits until nothing is pending.
func (s *site) drained(keepers ...*keeper) {
	s.t.Helper()
	for _, k := range keepers {
		s.until("nothing is pending", func() bool { return k.puts().PutsPending == 0 })
	}
}

// Later puts under load: in the order of each key, in batches, seen by every replica, by the bearer of the token at
// once, never going back; while a replica leaves, NATS restarts, and Postgres is away until puts are refused.
func TestRow19WriteBehind(t *testing.T) {
	stack := stacktest.Stack()
	s := newSite(t)
	s.makeStock()
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 40*time.Second)
		defer cancel()
		if err := errors.Join(stack.Postgres.Start(ctx), stack.NATS.Start()); err != nil {
			t.Error(err)
		}
	})
	const room = 400
	bounds := func(c *node.Config, _ *node.CacheConfig[stock]) {
		c.WriteBehind = node.WriteBehind{MaxPending: room, AckWait: 500 * time.Millisecond, MaxRetry: 100 * time.Millisecond, Timeout: patient}
		c.MaxStale = time.Hour
	}
	k := []*keeper{s.keeper(bounds), s.keeper(bounds), s.keeper(bounds)}
	ctx, end := context.WithCancel(t.Context())
	defer end()
	var load sync.WaitGroup
	var refused, answered, pending atomic.Int64
	counters := []*counter{newCounter("a", 5), newCounter("b", 5), newCounter("c", 5)}
	var reads [3]atomic.Int64
	for i, c := range counters {
		load.Go(func() { // writes on one replica, and reads with the token on another
			for ctx.Err() == nil {
				id, token, err := c.put(ctx, k[i%2])
				switch {
				case ctx.Err() != nil:
				case errors.Is(err, node.ErrOverloaded):
					refused.Add(1)
					wait(ctx, 10*time.Millisecond)
				case err != nil:
					t.Errorf("put later: %v", err)
				default:
					answered.Add(1)
					for _, of := range []*keeper{k[i%2], k[1-i%2]} {
						e, err := of.stock.Lookup(ctx, id, node.AtLeast(token))
						if ctx.Err() == nil && err == nil && e.Value.N < c.acked[id] {
							t.Errorf("%s is %d with the token of %d: %+v", id, e.Value.N, c.acked[id], e)
						}
						if e.Pending {
							pending.Add(1)
						}
					}
				}
				wait(ctx, time.Millisecond)
			}
		})
	}
	for i := range k { // no replica goes back
		load.Go(func() {
			last := map[string]int64{}
			for ctx.Err() == nil {
				for _, c := range counters {
					several, err := k[i].stock.GetMany(ctx, c.keys)
					if err != nil {
						continue // Postgres is away, or the replica has left
					}
					for _, id := range c.keys {
						e := several[id]
						if e.Value.N < last[id] {
							t.Errorf("replica %d: %s went back from %d to %d: %+v", i, id, last[id], e.Value.N, e)
						}
						if e.Pending && e.Fresh {
							t.Errorf("an answer is pending and FRESH: %+v", e)
						}
						last[id] = e.Value.N
						reads[i].Add(1)
					}
				}
				wait(ctx, 2*time.Millisecond)
			}
		})
	}
	more := func() {
		goal := answered.Load() + 300
		s.until("puts go on", func() bool { return answered.Load() >= goal })
	}
	more()
	if err := k[2].Close(); err != nil { // it drains
		t.Error(err)
	}
	more()
	if err := errors.Join(stack.NATS.Stop(), stack.NATS.Start()); err != nil {
		t.Fatal(err)
	}
	more()
	if err := stack.Postgres.Stop(); err != nil {
		t.Fatal(err)
	}
	s.until("the stream is full", func() bool { return refused.Load() > 0 })
	if n := k[0].puts(); n.PutsPending == 0 || n.PutsPending > room {
		t.Errorf("%d keys are pending, want some", n.PutsPending)
	}
	if err := stack.Postgres.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	more()
	end()
	load.Wait()
	s.drained(k[:2]...)
	s.audited(counters...)
	if pending.Load() == 0 {
		t.Error("no answer was pending")
	}
	for i, k := range k[:2] {
		for _, c := range counters {
			for _, id := range c.keys {
				e, err := k.stock.Lookup(t.Context(), id, node.Within(0))
				if err != nil || e.Pending || !e.Fresh || e.Value.N < c.acked[id] {
					t.Errorf("replica %d after the run: %s: %+v, %v", i, id, e, err)
				}
			}
		}
	}
	n := k[0].puts()
	t.Logf("%d puts, %d refused, %d answers pending; of the first: %d applied, %d superseded, %d retries",
		answered.Load(), refused.Load(), pending.Load(), n.PutsApplied, n.PutsSuperseded, n.PutRetries)
	if n.PutRetries == 0 {
		t.Error("no flush had to be tried again while Postgres was away")
	}
}

// wait waits, but no longer than the context.
func wait(ctx context.Context, d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
	}
}

// A put that Postgres refuses does not hold up the others of its batch, and becomes a dead letter, which can be
// listed, written after all, unless a later put of its key is there, and dropped.
func TestRow19DeadLetters(t *testing.T) {
	s := newSite(t)
	s.makeStock()
	quick := func(c *node.Config, _ *node.CacheConfig[stock]) {
		c.WriteBehind = node.WriteBehind{MaxAttempts: 2, MinRetry: 10 * time.Millisecond, FlushEvery: 200 * time.Millisecond}
	}
	k := s.keeper(quick)
	other := s.keeper(func(c *node.Config, cache *node.CacheConfig[stock]) {
		quick(c, cache)
		c.WriteBehind.Flushers = -1
	})
	// One batch, since the first waits for others.
	k.later(t, "good", 1)
	k.later(t, "bad", 2)
	token := k.later(t, "bad", -1)
	k.later(t, "worse", -2)
	k.later(t, "fine", 3)
	if e, err := other.stock.Lookup(t.Context(), "bad", node.AtLeast(token)); err != nil || !e.Pending || e.Value.N != -1 {
		t.Errorf("a pending value that Postgres will refuse: %+v, %v", e, err)
	}
	for id, n := range map[string]int64{"good": 1, "fine": 3, "bad": 2} { // of bad the put before
		s.committed(k, id, n)
		s.committed(other, id, n)
	}
	s.drained(k, other)
	if _, err := other.stock.Get(t.Context(), "worse"); !errors.Is(err, node.ErrNotFound) {
		t.Errorf("a put that was refused is read: %v", err)
	}
	letters, err := other.DeadLetters(t.Context(), 0, 0)
	if err != nil || len(letters) != 2 {
		t.Fatalf("dead letters: %+v, %v", letters, err)
	}
	of := map[string]node.DeadLetter{}
	for _, l := range letters {
		of[l.ID] = l
	}
	if l := of["bad"]; l.Namespace != "stock" || l.Value == nil || !strings.Contains(*l.Value, "-1") || !strings.Contains(l.Error, "check") || l.Attempts != 2 {
		t.Errorf("a dead letter: %+v", l)
	}
	if more, err := other.DeadLetters(t.Context(), letters[1].Letter, 0); err != nil || len(more) != 0 {
		t.Errorf("dead letters after the last: %+v, %v", more, err)
	}
	if n := k.puts(); n.PutsDead != 2 {
		t.Errorf("%d puts died, want 2", n.PutsDead)
	}

	// Refused again, it stays.
	if err := k.RetryDeadLetter(t.Context(), of["bad"].Letter, of["worse"].Letter); !errors.Is(err, node.ErrRefused) || !strings.Contains(err.Error(), "check") {
		t.Errorf("a retry that is refused: %v", err)
	}
	if letters, err = k.DeadLetters(t.Context(), 0, 0); err != nil || len(letters) != 2 || letters[0].Attempts != 3 {
		t.Errorf("dead letters: %+v, %v", letters, err)
	}
	// When the table takes it, it is written, but not over a later put.
	s.exec(`alter table stock drop constraint stock_n_check`)
	k.later(t, "bad", 7)
	s.committed(k, "bad", 7)
	if err := other.RetryDeadLetter(t.Context(), of["bad"].Letter, of["worse"].Letter); err != nil {
		t.Errorf("retry: %v", err)
	}
	s.committed(k, "worse", -2)
	s.committed(k, "bad", 7)
	if letters, err = k.DeadLetters(t.Context(), 0, 0); err != nil || len(letters) != 0 {
		t.Errorf("dead letters: %+v, %v", letters, err)
	}
	if err := k.RetryDeadLetter(t.Context(), of["bad"].Letter); !errors.Is(err, node.ErrNoLetter) {
		t.Errorf("a retry of what is none: %v", err)
	}

	s.exec(`alter table stock add check (n <> 13)`)
	k.later(t, "unlucky", 13)
	s.until("it is dead", func() bool {
		letters, err = k.DeadLetters(t.Context(), 0, 0)
		return err == nil && len(letters) == 1
	})
	if n, err := k.DropDeadLetter(t.Context(), letters[0].Letter, 1000); n != 1 || err != nil {
		t.Errorf("dropped %d letters, %v", n, err)
	}
	if letters, err = k.DeadLetters(t.Context(), 0, 0); err != nil || len(letters) != 0 {
		t.Errorf("dead letters: %+v, %v", letters, err)
	}
}

// Deletions come later, too, in their order; committed values can be asked for meanwhile.
func TestRow19DeleteLater(t *testing.T) {
	s := newSite(t)
	s.makeStock()
	s.exec(`insert into stock values ('a', 1)`)
	k := s.keeper(func(c *node.Config, _ *node.CacheConfig[stock]) { c.WriteBehind.Flushers = -1 })
	k.later(t, "a", 2)
	if _, err := k.stock.DeleteLater(t.Context(), "a"); err != nil {
		t.Fatal(err)
	}
	if e, err := k.stock.Lookup(t.Context(), "a"); !errors.Is(err, node.ErrNotFound) || !e.Pending {
		t.Errorf("a pending deletion: %+v, %v", e, err)
	}
	if several, err := k.stock.GetMany(t.Context(), []string{"a", "b"}); err != nil || len(several) != 0 {
		t.Errorf("a pending deletion of many: %+v, %v", several, err)
	}
	if e, err := k.stock.Lookup(t.Context(), "a", node.Committed()); err != nil || !e.Fresh || e.Pending || e.Value.N != 1 {
		t.Errorf("what is committed: %+v, %v", e, err)
	}
	flushing := s.keeper(nil)
	s.drained(k, flushing)
	if e, err := k.stock.Lookup(t.Context(), "a"); !errors.Is(err, node.ErrNotFound) || e.Pending || !e.Fresh {
		t.Errorf("a deletion: %+v, %v", e, err)
	}
	for _, id := range []string{"", "a\x00b", "\xff"} {
		if _, err := k.stock.PutLater(t.Context(), id, stock{}); !errors.Is(err, node.ErrBadID) {
			t.Errorf("put of %q later: %v", id, err)
		}
	}
	if _, err := k.stock.PutLater(t.Context(), "a", stock{ID: strings.Repeat("a", 1<<20)}); !errors.Is(err, node.ErrTooLarge) {
		t.Errorf("a value that NATS does not take: %v", err)
	}
}

// A stream that is made anew numbers its messages from 1 again: what comes is later than all that was.
func TestRow19StreamMadeAnew(t *testing.T) {
	s := newSite(t)
	s.makeStock()
	k := s.keeper(nil)
	for n := range int64(5) {
		k.later(t, "a", n)
	}
	s.committed(k, "a", 4)
	nc, err := client.Connect(stacktest.Stack().NATS.URL())
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	js, err := jetstream.New(nc)
	if err != nil {
		t.Fatal(err)
	}
	if err := js.DeleteStream(t.Context(), "freshet-"+s.app+"-puts"); err != nil {
		t.Fatal(err)
	}
	s.until("puts are taken again", func() bool {
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		_, err := k.stock.PutLater(ctx, "a", stock{"a", 5})
		return err == nil
	})
	s.committed(k, "a", 5)

	// And one that has lost its end, as after a power cut, goes on with numbers that it has given before.
	s.exec(`update freshet.applied set seq = seq + 100`)
	if err := errors.Join(stacktest.Stack().NATS.Stop(), stacktest.Stack().NATS.Start()); err != nil {
		t.Fatal(err)
	}
	k.later(t, "a", 6)
	s.committed(k, "a", 6)
	var epochs int
	if err := s.db.Get(&epochs, `select count(*) from freshet.queues where app = $1`, s.app); err != nil || epochs != 3 {
		t.Errorf("%d epochs, %v", epochs, err)
	}
}
