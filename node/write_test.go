package node_test

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/jmoiron/sqlx"
	"github.com/lib/pq"

	"github.com/freshet-cache/freshet/coherence"
	"github.com/freshet-cache/freshet/internal/devstack/stacktest"
	"github.com/freshet-cache/freshet/node"
)

// childMode names what this binary does as a child of a test; see child.
const childMode = "FRESHET_NODE_TEST_CHILD"

// child is a replica that dies in the middle of a write, or of a refresh, by SIGKILL.
func child(mode string) error {
	ctx := context.Background()
	if mode == flushing {
		return flushingChild(ctx)
	}
	n, err := node.Open(ctx, node.Config{
		App: os.Getenv("APP"), Postgres: node.PostgresConfig{DSN: os.Getenv("DSN")},
		Redis: node.RedisConfig{Addrs: strings.Split(os.Getenv("REDIS"), ","), Timeout: patient},
		NATS:  node.NATSConfig{URLs: []string{os.Getenv("NATS")}},
	})
	if err != nil {
		return err
	}
	if err := n.Ready(ctx); err != nil {
		return err
	}
	die := func() error { return syscall.Kill(os.Getpid(), syscall.SIGKILL) }
	update := func(tx *sqlx.Tx) error {
		_, err := tx.ExecContext(ctx, `update things set name = 'by a dead replica' where id = 'thing-1'`)
		return err
	}
	switch mode {
	case childBatch:
		return runBatchAndDie(ctx, n, die)
	case "inside":
		_, err = n.Write(ctx, func(tx *node.Tx) error { return errors.Join(update(tx.Tx), die()) })
		return err
	case "committed":
		// What Write does up to the commit, and then no hint, no unlink, nothing.
		tx, err := n.DB().BeginTxx(ctx, nil)
		if err != nil {
			return err
		}
		_, logged := tx.ExecContext(ctx, `select freshet.invalidate('thing', 'thing-1')`)
		if err := errors.Join(update(tx), logged, tx.Commit()); err != nil {
			return err
		}
		return die()
	case "refresh":
		return dieRefreshing(ctx, n, die)
	}
	return fmt.Errorf("no such mode: %q", mode)
}

// kill starts a child of the mode on the site and waits until it has killed itself.
func (s *site) kill(mode string) {
	s.t.Helper()
	self, err := os.Executable()
	if err != nil {
		s.t.Fatal(err)
	}
	stack := stacktest.Stack()
	command := exec.CommandContext(s.t.Context(), self)
	command.Env = append(os.Environ(), childMode+"="+mode, "APP="+s.app, "DSN="+s.dsn,
		"REDIS="+strings.Join(stack.Redis.Addrs(), ","), "NATS="+stack.NATS.URL())
	output, err := command.CombinedOutput()
	var status *exec.ExitError
	if !errors.As(err, &status) || status.Sys().(syscall.WaitStatus).Signal() != syscall.SIGKILL {
		s.t.Fatalf("the child did not die as planned: %v\n%s", err, output)
	}
}

// A replica dies inside its transaction, or between its commit and its hint: the others have what
// Postgres has within two polls.
func TestI5ReplicaKilledInMidWrite(t *testing.T) {
	s := newSite(t)
	r := s.openReady(2)
	for _, c := range []struct{ mode, want string }{
		{"inside", "name 1"},
		{"committed", "by a dead replica"},
	} {
		t.Run(c.mode, func(t *testing.T) {
			for _, r := range r {
				s.get(r, "thing-1")
			}
			s.kill(c.mode)
			dead := time.Now()
			for i, r := range r {
				s.until("the replica has what Postgres has", func() bool { return s.get(r, "thing-1").Value.Name == c.want })
				if took := time.Since(dead); took > twoPolls {
					t.Errorf("replica %d: after %v", i, took)
				}
				if e := s.get(r, "thing-1", node.Within(0)); e.Value.Name != c.want {
					t.Errorf("replica %d: %+v", i, e)
				}
			}
			// Its lock is gone with it.
			if _, err := r[0].Invalidate(t.Context(), "thing", []string{"thing-1"}); err != nil {
				t.Error(err)
			}
		})
	}
}

// A write transaction stays open for the whole test while a hot entity is written again and again:
// reads stay FRESH and are hits between the writes.
func TestI1LongTransaction(t *testing.T) {
	s := newSite(t)
	r := s.openReady(2)
	open, err := s.db.BeginTxx(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer open.Rollback()
	if _, err := open.ExecContext(t.Context(), `update things set name = 'never' where id = 'thing-2'`); err != nil {
		t.Fatal(err)
	}
	f := s.traffic(r, trafficConfig{keys: 1, readers: 1, budgets: []time.Duration{time.Second}})
	const writes = 6
	loadsBefore, reads := sum(r, loads), f.reads.Load()
	for n := range writes {
		// Once per poll interval, by this test as another service.
		polls := r[0].Stats().Polls
		s.until("a poll", func() bool { return r[0].Stats().Polls > polls })
		w := f.checker.Begin(1, 0, f.clock())
		s.exec(`update things set revision = revision + 1 where id = 'thing-1'`)
		w.Acked(int64(n+2), f.clock())
		for _, r := range r {
			s.until("the write is seen", func() bool { return s.get(r, "thing-1").Value.Revision == int64(n+2) })
		}
		if e := s.get(r[0], "thing-2"); e.Value.Name != "name 2" || !e.Fresh {
			t.Errorf("a change that is not committed: %+v", e)
		}
	}
	f.stop()
	f.noneFailed()
	reads = f.reads.Load() - reads
	// One load per write and cluster; some writes are loaded twice when a replica reads between the
	// commit and its poll. thing-2 is one more.
	if n := sum(r, loads) - loadsBefore; n > 3*writes+2 || reads < 20*writes {
		t.Errorf("%d loads for %d writes and %d reads", n, writes, reads)
	}
	if f.fresh.Load() != f.reads.Load() {
		t.Errorf("%d of %d answers are FRESH", f.fresh.Load(), f.reads.Load())
	}
}

// Whatever statement changes a watched table, caches converge within two polls.
func TestI5BulkStatements(t *testing.T) {
	s := newSite(t)
	s.exec(`insert into things (id, name, kind) select 'thing-' || n, 'name ' || n, 'kind-' || n % 10 from generate_series(201, 1500) n`)
	r := s.openReady(2)
	ids := []string{"thing-1", "thing-2", "thing-700", "thing-1500", "moved", "copied"}
	for _, c := range []struct {
		name   string
		change func()
	}{
		{"update of all rows", func() { s.exec(`update things set name = 'bulk ' || id`) }},
		{"new key", func() { s.exec(`update things set id = 'moved' where id = 'thing-2'`) }},
		{"delete and insert", func() {
			tx, err := s.db.BeginTxx(t.Context(), nil)
			if err != nil {
				t.Fatal(err)
			}
			_, err1 := tx.ExecContext(t.Context(), `delete from things where id = 'thing-700'`)
			_, err2 := tx.ExecContext(t.Context(), `insert into things (id, name, kind) values ('thing-700', 'again', 'kind-0')`)
			if err := errors.Join(err1, err2, tx.Commit()); err != nil {
				t.Fatal(err)
			}
		}},
		{"rolled back", func() {
			tx, err := s.db.BeginTxx(t.Context(), nil)
			if err != nil {
				t.Fatal(err)
			}
			_, err = tx.ExecContext(t.Context(), `update things set name = 'never'`)
			if err := errors.Join(err, tx.Rollback()); err != nil {
				t.Fatal(err)
			}
		}},
		{"copy", func() {
			tx, err := s.db.BeginTxx(t.Context(), nil)
			if err != nil {
				t.Fatal(err)
			}
			copied, err := tx.PrepareContext(t.Context(), `copy things (id, name, kind) from stdin`)
			if err != nil {
				t.Fatal(err)
			}
			_, err1 := copied.ExecContext(t.Context(), "copied", "by copy", "kind-0")
			_, err2 := copied.ExecContext(t.Context())
			//nolint:sqlclosecheck // closing ends the copy, before the commit
			if err := errors.Join(err1, err2, copied.Close(), tx.Commit()); err != nil {
				t.Fatal(err)
			}
		}},
		{"truncate", func() { s.exec(`truncate things`) }},
		{"back again", func() { s.exec(`insert into things (id, name, kind) values ('thing-1', 'first', 'kind-1')`) }},
	} {
		for _, r := range r { // all are cached, what does not exist as such
			if _, err := r.things.GetMany(t.Context(), ids); err != nil {
				t.Fatal(err)
			}
		}
		c.change()
		done := time.Now()
		var want []Thing
		if err := s.db.SelectContext(t.Context(), &want, `select * from things where id = any($1)`, pq.StringArray(ids)); err != nil {
			t.Fatal(err)
		}
		for i, r := range r {
			same := func(options ...node.ReadOption) bool {
				got, err := r.things.GetMany(t.Context(), ids, options...)
				if err != nil {
					t.Fatal(err)
				}
				for _, w := range want {
					if got[w.ID].Value != w {
						return false
					}
				}
				return len(got) == len(want)
			}
			if !same(node.Within(0)) {
				t.Errorf("%s: replica %d differs from Postgres with budget 0", c.name, i)
			}
			s.until("the replica has what Postgres has", func() bool { return same() })
			if took := time.Since(done); took > twoPolls {
				t.Errorf("%s: replica %d after %v", c.name, i, took)
			}
		}
	}
}

// I2: STALE or not, no answer lacks a write of this replica, or one whose token the read carries.
func TestI2StaleAnswersHaveOwnWrites(t *testing.T) {
	s := newSite(t)
	postgres := stacktest.Stack().Postgres
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 40*time.Second)
		defer cancel()
		if err := postgres.Start(ctx); err != nil {
			t.Error(err)
		}
	})
	lenient := func(c *node.Config, _ *node.CacheConfig[Thing]) {
		c.MaxStale, c.Budget, c.Postgres.PollInterval = time.Hour, 200*time.Millisecond, 100*time.Millisecond
		c.NATS.URLs = nil // the other replica shall not hear of the write
	}
	r := []*replica{s.open(lenient), s.open(lenient)}
	ids := []string{"thing-1", "thing-2", "thing-12", "thing-3"}
	for _, r := range r {
		s.ready(r)
		for _, id := range ids {
			s.get(r, id)
		}
	}
	// thing-1 itself, and by its tag thing-2 and thing-12.
	var want int64
	token, err := r[0].Write(t.Context(), func(tx *node.Tx) error {
		return errors.Join(tx.InvalidateTag([]string{"kind:kind-2"}), tx.GetContext(t.Context(), &want, nextRevision, "thing-1"))
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := postgres.Kill(); err != nil {
		t.Fatal(err)
	}
	for _, id := range ids[:3] {
		if e, err := r[0].things.Lookup(t.Context(), id, node.Within(0)); err == nil && (id != "thing-1" || e.Value.Revision != want) {
			t.Errorf("%s on the writer: %+v lacks its own write", id, e)
		}
	}
	if e, err := r[0].things.Lookup(t.Context(), "thing-3", node.Within(0)); err != nil || e.Fresh {
		t.Errorf("what was not written may be STALE: %+v, %v", e, err)
	}
	if e, err := r[1].things.Lookup(t.Context(), "thing-1", node.Within(0), node.AtLeast(token)); err == nil && e.Value.Revision != want {
		t.Errorf("with the token: %+v", e)
	}
	if e, err := r[1].things.Lookup(t.Context(), "thing-1", node.Within(0)); err != nil || e.Fresh {
		t.Errorf("without the token it may be STALE: %+v, %v", e, err)
	}
	if err := postgres.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	for _, r := range r {
		s.until("the write is seen", func() bool {
			e, err := r.things.Lookup(t.Context(), "thing-1", node.AtLeast(token))
			return err == nil && e.Fresh && e.Value.Revision == want
		})
	}
}

// Tokens come from outside: whatever they say costs at most a poll.
func TestForgedTokensAreHarmless(t *testing.T) {
	s := newSite(t)
	r := s.openReady(1)[0]
	e := s.get(r, "thing-1")
	if text := e.Token.String(); text == "" || len(text) > 2048 {
		t.Errorf("a token of %d bytes", len(text))
	}
	own, err := r.Invalidate(t.Context(), "thing", []string{"thing-1"})
	if err != nil {
		t.Fatal(err)
	}
	timeline := new(int64)
	if err := s.db.Get(timeline, `select freshet.current_timeline()`); err != nil {
		t.Fatal(err)
	}
	ahead := coherence.TokenOfWrite(uint64(*timeline), 1<<62)
	for name, token := range map[string]node.Token{
		"far ahead":        ahead,
		"all ahead":        coherence.TokenOf(coherence.Snapshot{Timeline: uint64(*timeline), Xmin: 1 << 62, Xmax: 1 << 63}),
		"another timeline": coherence.TokenOfWrite(uint64(*timeline)+1, 5),
		"none":             {},
		"own":              own,
		"merged":           own.Merge(ahead),
	} {
		carried, err := node.ParseToken(token.String())
		if err != nil {
			t.Errorf("%s: %v", name, err)
		}
		polls := r.Stats().Polls
		for range 3 {
			if e, err := r.things.Lookup(t.Context(), "thing-1", node.AtLeast(carried)); err != nil || !e.Fresh || e.Value.ID != "thing-1" {
				t.Errorf("%s: %+v, %v", name, e, err)
			}
			if got, err := r.things.GetMany(t.Context(), []string{"thing-1", "thing-2"}, node.AtLeast(carried)); err != nil || len(got) != 2 {
				t.Errorf("%s: %+v, %v", name, got, err)
			}
		}
		if n := r.Stats().Polls - polls; n > 20 {
			t.Errorf("%s: %d polls for 6 reads", name, n)
		}
	}
	for _, text := range []string{
		"x", "!!!", strings.Repeat("A", 2049), strings.Repeat("A", 1<<20), own.String() + "A", own.String()[1:], "\x00",
		base64.RawURLEncoding.EncodeToString(make([]byte, 100)),
	} {
		if _, err := node.ParseToken(text); err == nil {
			t.Errorf("%.20q is taken for a token", text)
		} else if len(err.Error()) > 300 {
			t.Errorf("%.20q: an error of %d bytes", text, len(err.Error()))
		}
	}
	if e := s.get(r, "thing-2"); !e.Fresh {
		t.Errorf("afterwards: %+v", e)
	}
}

// A write that fails, panics or is cancelled changes nothing, holds nothing, and the next one works.
func TestWritesThatFail(t *testing.T) {
	s := newSite(t)
	r := s.openReady(1)[0]
	boom := errors.New("boom")
	if _, err := r.Write(t.Context(), func(tx *node.Tx) error {
		return errors.Join(tx.Invalidate("thing", []string{"thing-1"}), boom)
	}); !errors.Is(err, boom) {
		t.Errorf("a failing write: %v", err)
	}
	func() {
		defer func() {
			if recover() == nil {
				t.Error("the panic of the caller's function is gone")
			}
		}()
		_, _ = r.Write(t.Context(), func(tx *node.Tx) error { panic("in a write") })
	}()
	ctx, cancel := context.WithCancel(t.Context())
	if _, err := r.Write(ctx, func(tx *node.Tx) error {
		_, err := tx.ExecContext(ctx, `update things set name = 'never' where id = 'thing-1'`)
		cancel()
		return err
	}); !errors.Is(err, context.Canceled) {
		t.Errorf("a cancelled write: %v", err)
	}
	for _, c := range []struct {
		name string
		f    func(tx *node.Tx) error
	}{
		{"no namespace", func(tx *node.Tx) error { return tx.Invalidate("", []string{"1"}) }},
		{"no id", func(tx *node.Tx) error { return tx.Invalidate("thing", []string{""}) }},
		{"no tag", func(tx *node.Tx) error { return tx.InvalidateTag([]string{""}) }},
		{"no view", func(tx *node.Tx) error { return tx.Invalidate("thing", []string{"1"}, node.View("")) }},
		{"a zero byte", func(tx *node.Tx) error { return tx.Invalidate("thing", []string{"a\x00b"}) }},
	} {
		if _, err := r.Write(t.Context(), c.f); err == nil {
			t.Errorf("%s: accepted", c.name)
		}
	}
	if token, err := r.Write(t.Context(), func(tx *node.Tx) error { return nil }); err != nil || !token.IsZero() {
		t.Errorf("a write of nothing: %v, %v", token, err)
	}
	if _, err := r.Invalidate(t.Context(), "thing", nil); err != nil {
		t.Errorf("invalidate nothing: %v", err)
	}
	if e := s.get(r, "thing-1", node.Within(0)); e.Value.Name != "name 1" {
		t.Errorf("after failed writes: %+v", e)
	}
	if n := r.DB().Stats().InUse; n != 0 {
		t.Errorf("%d connections are still held", n)
	}
	var want int64
	if _, err := r.Write(t.Context(), func(tx *node.Tx) error {
		return tx.GetContext(t.Context(), &want, nextRevision, "thing-1")
	}); err != nil || s.get(r, "thing-1").Value.Revision != want {
		t.Errorf("the next write: %v", err)
	}
}
