package node_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/lib/pq"

	"github.com/freshet-cache/freshet/cluster"
	"github.com/freshet-cache/freshet/internal/devstack/stacktest"
	"github.com/freshet-cache/freshet/node"
)

// verified is a replica with caches of every kind: by a statement, by a function, and of a query's results, which
// also reads a table that nobody watches.
type verified struct {
	*replica
	funcs    *node.Cache[Thing]
	labelled *node.QueryCache[[]string]
	errors   *lines
}

// lines are what is logged as an error.
type lines struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (l *lines) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(b)
}

func (l *lines) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
}

func (s *site) openVerified(count int) []*verified {
	s.t.Helper()
	s.exec(`create table labels (thing text primary key, label text not null)`)
	s.exec(`insert into labels select id, 'label of ' || id from things`)
	var logs []*lines
	replicas := s.openAll(count, func(c *node.Config, _ *node.CacheConfig[Thing]) {
		logs = append(logs, &lines{})
		c.Logger = slog.New(slog.NewTextHandler(logs[len(logs)-1], &slog.HandlerOptions{Level: slog.LevelError}))
		c.Postgres.WatchInterval = 50 * time.Millisecond
	})
	all := make([]*verified, count)
	for i, r := range replicas {
		v := &verified{replica: r, errors: logs[i]}
		var err1, err2 error
		v.funcs, err1 = node.NewCache(r.Node, node.CacheConfig[Thing]{
			Namespace: "thing", View: "func",
			Source: node.Func(func(ctx context.Context, ids []string) (map[string]Thing, error) {
				var things []Thing
				if err := s.db.SelectContext(ctx, &things, thingQuery, pq.StringArray(ids)); err != nil {
					return nil, err
				}
				found := map[string]Thing{}
				for _, t := range things {
					found[t.ID] = t
				}
				return found, nil
			}),
		})
		v.labelled, err2 = node.NewQueryCache(r.Node, node.QueryConfig[[]string]{
			Namespace: "thing", View: "labelled",
			Query: func(p cluster.Params) (string, []any, error) {
				return `select coalesce(json_agg(t.revision || l.label order by t.id), '[]')
				          from things t join labels l on l.thing = t.id where t.kind = $1`, []any{p["kind"]}, nil
			},
			Tags: func(p cluster.Params, _ []string) []string { return []string{"kind:" + p["kind"]} },
		})
		if err := errors.Join(err1, err2); err != nil {
			s.t.Fatal(err)
		}
		all[i] = v
	}
	return all
}

// fill reads everything.
func (v *verified) fill(t *testing.T) {
	t.Helper()
	var ids []string
	for n := range 210 { // ten are absent
		ids = append(ids, thing(n+1))
	}
	var kinds []cluster.Params
	for n := range 10 {
		kinds = append(kinds, cluster.Params{"kind": fmt.Sprintf("kind-%d", n)})
	}
	_, err1 := v.things.GetMany(t.Context(), ids)
	_, err2 := v.funcs.GetMany(t.Context(), ids)
	_, err3 := v.labelled.GetMany(t.Context(), kinds)
	if err := errors.Join(err1, err2, err3); err != nil {
		t.Fatal(err)
	}
}

// sample takes one that is to fail for no entry.
func (v *verified) sample(t *testing.T, entries int) node.VerifyReport {
	t.Helper()
	r, err := v.VerifySample(t.Context(), entries)
	if err != nil || r.Failed > 0 {
		t.Fatalf("%+v, %v", r, err)
	}
	return r
}

// found are the views and ids of mismatches.
func found(all []node.Mismatch) []string {
	var names []string
	for _, m := range all {
		names = append(names, m.View+" "+m.ID)
	}
	slices.Sort(names)
	return names
}

// Thousands of entries of every kind are compared with Postgres while it is written to on all sides, and none is
// taken for wrong. Then three things are made wrong in ways that no watch notices: each is found by the next sample,
// told without its id, and mended on all replicas.
func TestVerifySample(t *testing.T) {
	s := newSite(t)
	replicas := s.openVerified(2)
	f := s.traffic([]*replica{replicas[0].replica, replicas[1].replica}, trafficConfig{keys: 40, writers: 4})
	var work sync.WaitGroup
	for _, v := range replicas {
		work.Go(func() {
			for checked := 0; checked < 1200 && t.Context().Err() == nil; {
				v.fill(t)
				r := v.sample(t, 300)
				if len(r.Mismatches) > 0 {
					t.Errorf("under writes: %+v", r.Mismatches)
					return
				}
				checked += r.Checked
			}
		})
	}
	work.Wait()
	f.stop()
	f.noneFailed()
	var moved uint64
	for _, v := range replicas {
		for _, n := range v.Stats().Namespaces {
			moved += n.VerifyMoved
			if n.Verified == 0 || n.Mismatched > 0 || n.VerifyFailed > 0 {
				t.Errorf("%s: %d verified, %d mismatched, %d failed", n.View, n.Verified, n.Mismatched, n.VerifyFailed)
			}
		}
		v.fill(t)
	}
	t.Logf("%d entries changed while they were compared", moved)

	v := replicas[0]
	// A row of the log is lost; and what a query reads besides is not watched.
	tx := s.db.MustBeginTx(t.Context(), nil)
	tx.MustExecContext(t.Context(), `update things set name = 'odd' where id = 'thing-7'`)
	tx.MustExecContext(t.Context(), `delete from things where id = 'thing-8'`)
	tx.MustExecContext(t.Context(), `delete from freshet.log where xid = pg_current_xact_id()`)
	tx.MustExecContext(t.Context(), `update labels set label = 'odd' where thing = 'thing-9'`)
	if err := tx.Commit(); err != nil {
		t.Fatal(err)
	}
	for _, v := range replicas {
		if e := s.get(v.replica, "thing-7", node.Within(0)); e.Value.Name == "odd" || !e.Fresh {
			t.Fatalf("nothing is wrong yet: %+v", e)
		}
	}
	r := v.sample(t, node.MaxVerify)
	want := []string{"detail thing-7", "detail thing-8", "func thing-7", "func thing-8", "labelled ?kind=kind-8", "labelled ?kind=kind-9"}
	if got := found(r.Mismatches); !slices.Equal(got, want) || r.Checked != 430-len(want) {
		t.Errorf("%q found, %d others checked; want %q", got, r.Checked, want)
	}
	if kept := v.Mismatches(); len(kept) != len(want) || kept[0] != r.Mismatches[len(want)-1] {
		t.Errorf("kept are %+v", kept)
	}
	for _, m := range r.Mismatches {
		if m.Namespace != "thing" || m.Held.Snapshot == m.Loaded.Snapshot || m.Held.Version == m.Loaded.Version || m.Loaded.Absent != (m.ID == "thing-8") {
			t.Errorf("%+v", m)
		}
	}
	if text := v.errors.String(); strings.Count(text, "not what the source has") != len(want) || strings.Contains(text, "thing-") || strings.Contains(text, "kind-") {
		t.Errorf("logged: %s", text)
	}
	for i, v := range replicas {
		s.until("it is mended everywhere", func() bool {
			e, err := v.things.Lookup(t.Context(), "thing-7")
			labels, err2 := v.labelled.Get(t.Context(), cluster.Params{"kind": "kind-9"})
			_, err3 := v.things.Get(t.Context(), "thing-8")
			return err == nil && e.Value.Name == "odd" && err2 == nil && strings.Contains(strings.Join(labels, " "), "odd") && errors.Is(err3, node.ErrNotFound)
		})
		v.fill(t)
		if r := v.sample(t, node.MaxVerify); len(r.Mismatches) > 0 || r.Checked == 0 {
			t.Errorf("afterwards replica %d: %+v", i, r)
		}
	}

	// What its writer wants to count later is no mismatch until then.
	for i, strategy := range []node.Strategy{node.After(time.Hour), node.Batch("later")} {
		_, err := v.Write(t.Context(), func(tx *node.Tx) error {
			if _, err := tx.ExecContext(t.Context(), `update labels set label = 'later' || $1 where thing = 'thing-10'`, fmt.Sprint(i)); err != nil {
				return err
			}
			return tx.InvalidateTag([]string{"kind:kind-0"}, strategy)
		})
		if err != nil {
			t.Fatal(err)
		}
		if r := v.sample(t, node.MaxVerify); r.Moved != 1 || len(r.Mismatches) > 0 {
			t.Errorf("a change that is scheduled: %+v", r)
		}
	}
	// Nor is what is in doubt.
	s.exec(`alter table things disable trigger user`)
	s.until("the disabled watch is noticed", func() bool { return len(v.Stats().WatchDrift) > 0 })
	s.exec(`update things set name = 'unheard'`)
	if r := v.sample(t, node.MaxVerify); r.Checked+r.Moved+len(r.Mismatches) > 0 || r.Skipped < 400 {
		t.Errorf("in doubt: %d checked, %d moved, %d skipped, %q", r.Checked, r.Moved, r.Skipped, found(r.Mismatches))
	}
	// While Postgres does not answer, nothing is said of any entry, within the caller's time.
	postgres := stacktest.Stack().Postgres
	if err := postgres.Pause(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := postgres.Resume(); err != nil {
			t.Error(err)
		}
	}()
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	if r, err := v.VerifySample(ctx, node.MaxVerify); !errors.Is(err, context.DeadlineExceeded) || r.Failed == 0 || r.Checked+r.Moved+r.Skipped+len(r.Mismatches) > 0 {
		t.Errorf("without Postgres: %+v, %v", r, err)
	}
}
