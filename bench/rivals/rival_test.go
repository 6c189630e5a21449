package main

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/freshet-cache/freshet/coherence"
	"github.com/freshet-cache/freshet/internal/devstack/stacktest"
	"github.com/freshet-cache/freshet/internal/verify"
)

const (
	keys   = 24
	groups = 4
)

// site is a system under test with replicas in this process.
type site struct {
	rival
	app string
	dsn string
	db  *sql.DB // as another service would write
	ops uint64
}

// sites counts them: each has a database and keys of its own.
var sites atomic.Uint32

func newSite(t *testing.T, r rival) *site {
	t.Helper()
	s := &site{rival: r, app: fmt.Sprintf("rivals%d", sites.Add(1)), ops: 1000}
	var err error
	if s.dsn, err = stacktest.Stack().Postgres.CreateDatabase(t.Context(), s.app); err != nil {
		t.Fatal(err)
	}
	pool, err := coherence.OpenPool(coherence.PoolConfig{DSN: s.dsn})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { pool.Close() })
	s.db = pool.DB
	if r.name == freshet {
		if err := coherence.Migrate(t.Context(), s.db); err != nil {
			t.Fatal(err)
		}
	}
	if err := verify.CreateSchema(t.Context(), s.db, keys, groups, r.name == freshet); err != nil {
		t.Fatal(err)
	}
	return s
}

// replica is a subject with the test it belongs to.
type replica struct {
	t *testing.T
	s *site
	verify.Subject
}

// replica opens one more. change may be nil.
func (s *site) replica(t *testing.T, change func(*verify.Endpoints)) replica {
	t.Helper()
	at := verify.Endpoints{
		Replica: sites.Add(1), App: s.app, Postgres: s.dsn, Redis: stacktest.Stack().Redis.Addrs(), NATS: stacktest.Stack().NATS.URL(),
	}
	if change != nil {
		change(&at)
	}
	subject, err := s.open(t.Context(), at)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := subject.Close(); err != nil {
			t.Errorf("close: %v", err)
		}
	})
	return replica{t, s, subject}
}

// want is what all reads here ask for.
var want = verify.Want{Budget: time.Second}

// get is the op of a row in an answer that is given as FRESH; 0 = it is not there. Freshet may say for a while that it
// cannot know, on a machine that is busy with other things.
func (r replica) get(key uint64) uint64 {
	r.t.Helper()
	a, err := proven(r.t.Context(), func(ctx context.Context) (verify.Answer, bool, error) {
		a, err := r.Get(ctx, key, want)
		return a, a.Fresh, err
	})
	if err != nil || a.Absent != (a.Op == 0) {
		r.t.Fatalf("Get %d: %+v, %v", key, a, err)
	}
	return a.Op
}

// proven asks until there is an answer that is given as FRESH, for ten seconds.
func proven[V any](ctx context.Context, ask func(context.Context) (V, bool, error)) (V, error) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		a, fresh, err := ask(ctx)
		if err == nil && fresh {
			return a, nil
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return a, errors.Join(err, context.Cause(ctx))
		}
	}
}

// list is the rows of a category as text, by key: "1:1 5:5".
func (r replica) list(group uint64) string {
	r.t.Helper()
	a, err := proven(r.t.Context(), func(ctx context.Context) (verify.ListAnswer, bool, error) {
		a, err := r.List(ctx, group, want)
		return a, a.Fresh, err
	})
	if err != nil {
		r.t.Fatalf("List %d: %+v, %v", group, a, err)
	}
	return text(a.Rows)
}

func text(rows []verify.ListRow) string {
	slices.SortFunc(rows, func(a, b verify.ListRow) int { return int(a.Key) - int(b.Key) })
	var b strings.Builder
	for _, r := range rows {
		fmt.Fprintf(&b, "%d:%d ", r.Key, r.Op)
	}
	return strings.TrimSpace(b.String())
}

// write makes a change and returns its op.
func (r replica) write(c verify.Change) uint64 {
	r.t.Helper()
	r.s.ops++
	c.Op, c.Sent = r.s.ops, verify.Now()
	if _, err := r.Write(r.t.Context(), c); err != nil {
		r.t.Fatalf("write %+v: %v", c, err)
	}
	return c.Op
}

// soon waits until a read answers what is right now, for the budget and a little more.
func soon[V comparable](t *testing.T, what string, right V, read func() V) {
	t.Helper()
	if got := within(t.Context(), time.Second, right, read); got != right {
		t.Errorf("%s: %v, want %v", what, got, right)
	}
}

// within reads until the answer is right, and at last once after the budget: what that says counts.
func within[V comparable](ctx context.Context, budget time.Duration, right V, read func() V) V {
	over := time.After(budget)
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for {
		if got := read(); got == right {
			return got
		}
		select {
		case <-tick.C:
		case <-over:
			return read()
		case <-ctx.Done():
			return read()
		}
	}
}

// Without faults, and one call after the other, every system does what a cache of rows and lists is for.
func TestSubjects(t *testing.T) {
	for _, r := range systems() {
		t.Run(r.name, func(t *testing.T) {
			t.Parallel()
			s := newSite(t, r)
			one, two := s.replica(t, nil), s.replica(t, nil)
			all := []replica{one, two}
			for range 2 { // from the source, then from the cache
				for i, r := range all {
					if op := r.get(3); op != 3 {
						t.Errorf("replica %d: row 3 has the op %d, want 3", i, op)
					}
					if op := r.get(99); op != 0 {
						t.Errorf("replica %d: row 99 has the op %d, want none", i, op)
					}
					if list := r.list(2); list != "1:1 5:5 9:9 13:13 17:17 21:21" {
						t.Errorf("replica %d: category 2 is %s", i, list)
					}
					if list := r.list(77); list != "" {
						t.Errorf("replica %d: category 77 is %s, want nothing", i, list)
					}
				}
			}
			check := func(what string, key, op uint64) {
				t.Helper()
				for i, r := range all {
					soon(t, fmt.Sprintf("replica %d, %s, row %d", i, what, key), op, func() uint64 { return r.get(key) })
				}
			}
			lists := func(what string, group uint64, list string) {
				t.Helper()
				for i, r := range all {
					soon(t, fmt.Sprintf("replica %d, %s, category %d", i, what, group), list, func() string { return r.list(group) })
				}
			}
			op := one.write(verify.Change{Kind: verify.Set, Key: 5, Group: 2})
			if got := one.get(5); got != op {
				t.Errorf("the writer reads the op %d, and wrote %d", got, op)
			}
			check("updated", 5, op)
			lists("updated", 2, fmt.Sprintf("1:1 5:%d 9:9 13:13 17:17 21:21", op))

			moved := two.write(verify.Change{Kind: verify.Set, Key: 5, Group: 77})
			check("moved", 5, moved)
			lists("moved away", 2, "1:1 9:9 13:13 17:17 21:21")
			lists("moved to", 77, fmt.Sprintf("5:%d", moved))

			born := two.write(verify.Change{Kind: verify.Set, Key: 99, Group: 77})
			check("inserted", 99, born)
			lists("inserted", 77, fmt.Sprintf("5:%d 99:%d", moved, born))

			one.write(verify.Change{Kind: verify.Remove, Key: 5})
			check("deleted", 5, 0)
			lists("deleted", 77, fmt.Sprintf("99:%d", born))

			renamed := one.write(verify.Change{Kind: verify.Rename, Key: 99, To: 9})
			check("renamed from", 99, 0)
			check("renamed to", 9, renamed)
			lists("renamed from", 77, fmt.Sprintf("9:%d", renamed))
			lists("replaced", 2, "1:1 13:13 17:17 21:21")
		})
	}
}
