package admin_test

import (
	"encoding/json"
	"errors"
	"net/url"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/freshet-cache/freshet/cluster"
	"github.com/freshet-cache/freshet/internal/devstack"
	"github.com/freshet-cache/freshet/internal/devstack/stacktest"
	"github.com/freshet-cache/freshet/node"
)

// why explains an entry on a replica. What it says survives JSON.
func (r *replica) why(view, id string) node.Explanation {
	r.t.Helper()
	e, err := r.Explain(r.t.Context(), "thing", view, id)
	if err != nil {
		r.t.Fatal(err)
	}
	b, err := json.Marshal(e)
	if err != nil {
		r.t.Fatal(err)
	}
	var again node.Explanation
	if err := json.Unmarshal(b, &again); err != nil || !reflect.DeepEqual(again, e) {
		r.t.Errorf("by way of JSON %+v, %v; want %+v", again, err, e)
	}
	if strings.Contains(string(b), "name 1") {
		r.t.Errorf("the explanation tells the value: %s", b)
	}
	return e
}

// says fails the test unless the text has all of the parts.
func says(t *testing.T, text string, parts ...string) {
	t.Helper()
	for _, part := range parts {
		if !strings.Contains(text, part) {
			t.Errorf("%q does not say %q", text, part)
		}
	}
	t.Log(text)
}

func (s *site) get(r *replica, id string, options ...node.ReadOption) node.Entry[Thing] {
	s.t.Helper()
	e, err := r.things.Lookup(s.t.Context(), id, options...)
	if err != nil && !errors.Is(err, node.ErrNotFound) {
		s.t.Fatal(err)
	}
	return e
}

// changed changes a thing as another service would and returns the transaction.
func (s *site) changed(id string) (xid uint64) {
	s.t.Helper()
	if err := s.db.GetContext(s.t.Context(), &xid, `update things set name = name || '.' where id = $1 returning pg_current_xact_id()::text::bigint`, id); err != nil {
		s.t.Fatal(err)
	}
	return xid
}

// Each replica says where an entry is and what it depends on, and why a read of it missed: one that has it, one that has
// not, one that is cut off from Postgres and NATS, one whose shard is out.
func TestExplainReplicas(t *testing.T) {
	s := newSite(t)
	stack := stacktest.Stack()
	database, err := url.Parse(s.dsn)
	if err != nil {
		t.Fatal(err)
	}
	postgres, err1 := devstack.NewProxy(stack.Postgres.Addr())
	nats, err2 := devstack.NewProxy(stack.NATS.Addr())
	redis, err3 := stack.Redis.Proxies()
	if err := errors.Join(err1, err2, err3); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(redis.Close)
	t.Cleanup(nats.Close)
	t.Cleanup(postgres.Close)
	far := func(c *node.Config, cache *node.CacheConfig[Thing]) { // the replica that will be cut off
		c.Postgres = node.PostgresConfig{DSN: stack.Postgres.DSNVia(postgres.Addr(), strings.TrimPrefix(database.Path, "/")), PollTimeout: time.Second, LoadTimeout: patient}
		c.Redis.Addrs, c.Redis.Dial, c.Redis.Timeout = []string{redis.Service().Addr()}, redis.Dial, 500*time.Millisecond
		c.NATS.URLs = []string{"nats://" + nats.Addr()}
		c.MaxStale, c.Budget = time.Hour, time.Second
		cache.RetryAfter = time.Millisecond
	}
	near := func(c *node.Config, _ *node.CacheConfig[Thing]) { c.Budget = patient } // whatever else the machine does
	a, b := s.open("a", near), s.open("b", far)
	s.until("the replicas see each other", func() bool { return len(a.Stats().Members) == 2 && len(b.Stats().Members) == 2 })

	// Nobody has it.
	e := a.why("", "thing-1")
	says(t, e.Why, "NOT ANSWERED BY L1", "L1 does not have it", "L2 does not have it", "the source is asked")
	if e.Label != "none" || e.L1 != nil || e.L2 != "nothing" || e.L2Entry != nil || e.Miss != nil || len(e.Scopes) != 4 || e.View != "detail" {
		t.Errorf("before any read: %+v", e)
	}
	var snapshot string
	if err := s.db.Get(&snapshot, `select pg_current_snapshot()::text`); err != nil {
		t.Fatal(err)
	}
	s.get(a, "thing-1")
	s.until("the entry is in L2", func() bool { return a.why("", "thing-1").L2 == "found" })
	e = a.why("", "thing-1")
	says(t, e.Why, "FRESH", "loaded", "nothing that it depends on has changed", "budget 20.0 s")
	if e.Label != "fresh" || e.L1 == nil || e.L1.Snapshot != snapshot || e.L1.From != "source" || e.L1.Refused != "" || len(e.L1.Tags) != 1 || e.L1.Tags[0] != "kind:kind-1" {
		t.Errorf("in L1: %+v", e.L1)
	}
	if c := e.L2Entry; c == nil || c.Snapshot != snapshot || c.Timeline != e.L1.Timeline || c.Codec != "json" || c.Compression != "none" || c.ExpiresIn < 50*60 {
		t.Errorf("in L2: %+v", c)
	}
	if m := e.Miss; m == nil || m.L1 != "nothing" || m.L2 != "nothing" || m.Lease != "held" || m.Source != "found" || m.Tier != "source" || m.Label != "fresh" {
		t.Errorf("the miss: %+v", m)
	}
	says(t, e.Miss.Why, "L1 did not have it; L2 did not have it; the source had it; answered FRESH from source.")
	if slot := cluster.Slot(e.Key); e.Slot != slot || e.Shard == nil || e.Shard.State != "closed" || e.Generation != "1.1" {
		t.Errorf("key %s in slot %d of %+v, generation %s", e.Key, e.Slot, e.Shard, e.Generation)
	} else if primary, err := stack.Redis.Primary(slot); err != nil || e.Shard.Name != primary.Addr() {
		t.Errorf("shard %s, want %v, %v", e.Shard.Name, primary, err)
	}
	other := b.why("", "thing-1")
	says(t, other.Why, "NOT ANSWERED BY L1", "L2 has an entry that it can use")
	if other.Owner != e.Owner || other.OwnedHere == e.OwnedHere || other.L2 != "found" || other.L1 != nil || other.Replica != "b" {
		t.Errorf("the other replica: %+v", other)
	}
	s.get(b, "thing-1")
	if e := b.why("", "thing-1"); e.L1 == nil || e.L1.From != "l2" || e.Miss.Tier != "l2" || e.Miss.L2 != "found" {
		t.Errorf("from L2: %+v", e)
	}

	// What is not there.
	s.get(a, "nowhere")
	e = a.why("", "nowhere")
	says(t, e.Why, "FRESH", "there is no such thing")
	if !e.L1.Absent || e.Miss.Source != "nothing" || len(e.L1.Tags) != 0 {
		t.Errorf("what is not there: %+v, %+v", e.L1, e.Miss)
	}

	// L2 is emptied: nothing but that changes.
	if err := stack.Redis.Flush(t.Context()); err != nil {
		t.Fatal(err)
	}
	if e := a.why("", "thing-1"); e.L2 != "nothing" || e.Label != "fresh" {
		t.Errorf("without its entry in L2: %+v", e)
	}

	// The shard is out for b alone, which is asked of no one but the owner or the source.
	primary, err := stack.Redis.Primary(e.Slot)
	if err != nil {
		t.Fatal(err)
	}
	for _, proxy := range redis.Of(primary) {
		proxy.Cut()
	}
	s.until("the shard is out", func() bool { return b.why("", "nowhere").L2 == "unavailable" })
	e = b.why("", "nowhere")
	says(t, e.Why, "shard "+primary.Addr()+" is out")
	if e.Shard.Name != primary.Addr() || e.Shard.State != "open" || e.L2Error == "" {
		t.Errorf("with the shard out: %+v, %s", e.Shard, e.L2Error)
	}
	s.get(b, "nowhere")
	if m := b.why("", "nowhere").Miss; m.L2 != "unavailable" || m.Owner == "" || m.Label != "fresh" {
		t.Errorf("the miss with the shard out: %+v", m)
	} else {
		says(t, m.Why, "its shard of L2 was out")
	}
	for _, proxy := range redis.Of(primary) {
		proxy.Heal()
	}
	if e := a.why("", "nowhere"); e.Shard.State != "closed" {
		t.Errorf("for the other replica: %+v", e.Shard)
	}

	// b is cut off from Postgres and from NATS while the thing changes.
	nats.Cut()
	postgres.Stall()
	xid := s.changed("thing-1")
	s.until("a knows of the change", func() bool { return a.why("", "thing-1").Label == "none" })
	e = a.why("", "thing-1")
	says(t, e.Why, "thing:thing-1 changed in transaction", "which this replica heard of")
	if e.L1.Refused != "changed" || e.L1.RefusedBy != "thing:thing-1" || e.L1.Lacks != xid || e.Scopes[0].Scope != "thing:thing-1" || e.Scopes[0].Last != xid || e.Scopes[0].HeardAgo <= 0 {
		t.Errorf("after transaction %d: %+v, %+v", xid, e.L1, e.Scopes)
	}
	s.get(a, "thing-1")
	if m := a.why("", "thing-1").Miss; m.L1 != "changed" || m.Scope != "thing:thing-1" || m.Lacks != xid || m.Label != "fresh" {
		t.Errorf("the miss of a: %+v", m)
	} else {
		says(t, m.Why, "L1 had it from before thing:thing-1 changed in transaction")
	}
	s.until("b cannot prove anything", func() bool {
		e := b.why("", "thing-1")
		return e.Label == "stale" && strings.Contains(e.Why, "polls fail")
	})
	e = b.why("", "thing-1")
	says(t, e.Why, "STALE: the last poll of Postgres is", "the budget is 1.00 s", "A read waits for a poll first", "max stale 1h0m0s")
	if e.PollAge <= e.Budget || e.L1.Refused != "" || e.Scopes[0].Last == xid {
		t.Errorf("cut off: %+v", e)
	}
	if got := s.get(b, "thing-1"); got.Fresh {
		t.Fatalf("cut off, and FRESH: %+v", got)
	}
	m := b.why("", "thing-1").Miss
	says(t, m.Why, "L1 had it, and what was known was too old", "answered STALE from l1.")
	if m.L1 != "unproven" || m.Label != "stale" || m.Tier != "l1" || m.PollAge <= 1 {
		t.Errorf("the miss of b: %+v", m)
	}
	postgres.Heal()
	s.until("b knows of the change", func() bool { return b.why("", "thing-1").L1.Refused == "changed" })
	if e = b.why("", "thing-1"); e.L1.Lacks != xid || e.Label == "fresh" {
		t.Errorf("after the poll: %+v", e)
	}
	s.until("b is FRESH again", func() bool {
		got, err := b.things.Lookup(t.Context(), "thing-1")
		return err == nil && got.Fresh && b.why("", "thing-1").Label == "fresh"
	})
}

// Lists and counts, entries of a generation that was given up, entries that have expired, puts that are not in Postgres
// yet; and what cannot be explained.
func TestExplainCaches(t *testing.T) {
	s := newSite(t)
	a := s.open("a", func(n *node.Config, c *node.CacheConfig[Thing]) {
		n.Budget = patient
		c.TTL, c.MaxStale = 700*time.Millisecond, -1
		c.Store = node.SQLStore[Thing](`insert into things select v.id, v.name, v.kind from jsonb_to_recordset($2::jsonb) v (id text, name text, kind text)
			where v.id = any($1::text[]) on conflict (id) do update set name = excluded.name`, "")
		c.WriteBehind = true
	})
	counts, err := node.NewQueryCache(a.Node, node.QueryConfig[int64]{
		Namespace: "thing", View: "count",
		Query: func(p cluster.Params) (string, []any, error) {
			return `select count(*) from things where kind = $1 and name >= $2`, []any{p["kind"], p["from"]}, nil
		},
		Tags: func(p cluster.Params, _ int64) []string { return []string{"kind:" + p["kind"]} },
	})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := counts.Get(t.Context(), cluster.Params{"kind": "kind-1", "from": "name 1"}); err != nil {
		t.Fatal(err)
	}
	for _, id := range []string{"?from=name+1&kind=kind-1", "kind=kind-1&from=name%201"} {
		e, err := a.Explain(t.Context(), "thing", "count", id)
		if err != nil || e.Label != "fresh" || e.ID != "?from=name+1&kind=kind-1" || len(e.L1.Tags) != 1 || e.L1.Tags[0] != "kind:kind-1" || !strings.Contains(e.Key, "{thing?") {
			t.Errorf("the count of %s: %+v, %v", id, e, err)
		}
	}
	xid := s.changed("thing-11")
	s.until("the count has changed", func() bool { return a.why("count", "kind=kind-1&from=name+1").Label == "none" })
	if e, err := a.Explain(t.Context(), "thing", "count", "kind=kind-1&from=name+1"); err != nil || e.L1.RefusedBy != "tag kind:kind-1" || e.L1.Lacks != xid {
		t.Errorf("after transaction %d: %+v, %v", xid, e, err)
	}

	s.get(a, "thing-2")
	s.until("it expires", func() bool { return a.why("", "thing-2").L1.ExpiresIn <= 0 })
	says(t, a.why("", "thing-2").Why, "in L1 it expired")
	s.get(a, "thing-2")
	if m := a.why("", "thing-2").Miss; m.L1 != "expired" {
		t.Errorf("the miss: %+v", m)
	}
	if _, _, err := a.NextGeneration(t.Context(), "thing", node.GenerationChange{Why: "a test"}); err != nil {
		t.Fatal(err)
	}
	s.until("the generation is known", func() bool { return a.why("", "thing-2").Generation == "1.2" })
	e := a.why("", "thing-2")
	says(t, e.Why, "L1 has it of generation 1.1, which was given up: the present one is 1.2")
	if e.Label != "none" || e.L1.Generation != "1.1" || !strings.Contains(e.Key, ":v1.2:") || e.L2 != "nothing" {
		t.Errorf("of a generation that was given up: %+v", e)
	}

	// A put that cannot be flushed, since its row is locked.
	tx := s.db.MustBegin()
	t.Cleanup(func() { _ = tx.Rollback() })
	tx.MustExec(`select from things where id = 'thing-3' for update`)
	if _, err := a.things.PutLater(t.Context(), "thing-3", Thing{ID: "thing-3", Name: "another", Kind: "kind-3"}); err != nil {
		t.Fatal(err)
	}
	s.until("the put is pending", func() bool { return a.why("", "thing-3").Pending != nil })
	e = a.why("", "thing-3")
	says(t, e.Why, "PENDING: reads are answered with a put of", "Without it: NOT ANSWERED BY L1")
	if e.Label != "pending" || e.Pending.Seq == 0 || e.Pending.Removed || e.Pending.Settled {
		t.Errorf("pending: %+v, %+v", e, e.Pending)
	}
	if err := tx.Rollback(); err != nil {
		t.Fatal(err)
	}
	s.until("the put is flushed", func() bool { return a.why("", "thing-3").Pending == nil })

	for _, c := range []struct {
		namespace, view, id string
		is                  error
		says                string
	}{
		{"product", "", "1", node.ErrNoCache, "product (detail): no such cache: want one of thing (count), thing (detail)"},
		{"thing", "list", "1", node.ErrNoCache, "want one of"},
		{"thing", "", "", node.ErrBadID, "id"},
		{"thing", "", "a\x00", node.ErrBadID, "zero bytes"},
		{"thing", "count", "kind=%zz", node.ErrBadID, "parameters"},
	} {
		if _, err := a.Explain(t.Context(), c.namespace, c.view, c.id); !errors.Is(err, c.is) || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%+v: %v", c, err)
		}
	}
}
