package node_test

import (
	"bytes"
	"context"
	crand "crypto/rand"
	"encoding/base64"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/freshet-cache/freshet/cluster"
	"github.com/freshet-cache/freshet/node"
)

// noise is text of the size that does not compress.
func noise(size int) string {
	b := make([]byte, size*3/4)
	_, _ = crand.Read(b) // it does not fail
	return base64.StdEncoding.EncodeToString(b)
}

// Values of many MiB are served; what no tier takes is not kept, counted, and no error.
func TestLargeValues(t *testing.T) {
	s := newSite(t)
	s.exec(`insert into things (id, name, kind) values ('fits', $1, ''), ('in-l2', $2, ''), ('nowhere', $3, '')`, noise(256<<10), noise(1200<<10), noise(8<<20))
	r := s.openAll(2, func(c *node.Config, _ *node.CacheConfig[Thing]) {
		c.Redis.MaxValue, c.Redis.LeaseWait = 2<<20, patient
	})
	l2 := s.rawL2()
	for _, c := range []struct {
		id         string
		size       int
		inL1, inL2 bool
	}{
		{"fits", 256 << 10, true, true},
		{"in-l2", 1200 << 10, false, true},
		{"nowhere", 8 << 20, false, false},
	} {
		t.Run(c.id, func(t *testing.T) {
			fillErrors := r[0].of().FillErrors
			var e node.Entry[Thing]
			for range 2 {
				if e = s.get(r[0], c.id); len(e.Value.Name) != c.size || !e.Fresh {
					t.Fatalf("%d bytes, %v", len(e.Value.Name), e.Fresh)
				}
			}
			if got := e.Tier == node.TierL1; got != c.inL1 {
				t.Errorf("in L1: %v", got)
			}
			if c.inL2 {
				s.inL2(l2, c.id)
				if e := s.get(r[1], c.id); e.Tier != node.TierL2 || len(e.Value.Name) != c.size {
					t.Errorf("another replica has it from %v", e.Tier)
				}
				return
			}
			if _, err := l2.Get(t.Context(), s.key(c.id)); err == nil {
				t.Error("it is in L2")
			}
			s.until("the failed fill is counted", func() bool { return r[0].of().FillErrors > fillErrors })
			s.get(r[1], c.id) // a lease that nobody gave back would make it wait and cut through
		})
	}
	for i, r := range r {
		if n := r.of(); n.CutThrough > 0 || n.Errors > 0 {
			t.Errorf("replica %d: %+v", i, n)
		}
		for _, state := range r.shardStates() {
			if state != "closed" {
				t.Errorf("replica %d: a shard is %s", i, state)
			}
		}
	}
}

// Ids of every byte: two ids never share an entry, and what cannot be an id is refused before it costs
// anything, by an error that says what is right.
func TestNastyIDs(t *testing.T) {
	s := newSite(t)
	r := s.openReady(2)
	l2 := s.rawL2()
	var ids []string
	for b := 1; b < 128; b++ {
		ids = append(ids, "b"+string(rune(b))+"e")
	}
	ids = append(ids, "ä", "日本", "🙂", " ", "  ", "{", "}", "{}", "a}b{c", ":", "a:b", "%", "%7B", "?", "?a=b", "*", "'", `"`, `\`, "$1",
		"NULL", "null", "{a,b}", `{"a"}`, "\u2028", "\u202e", strings.Repeat("x", cluster.MaxIDBytes), strings.Repeat("{", cluster.MaxIDBytes),
		strings.Repeat("\x01", cluster.MaxIDBytes))
	for n, id := range ids {
		s.exec(`insert into things (id, name, kind) values ($1, $2, '')`, id, fmt.Sprintf("value %d", n))
	}
	for _, r := range r {
		got, err := r.things.GetMany(t.Context(), ids)
		if err != nil {
			t.Fatal(err)
		}
		for n, id := range ids {
			if e := got[id]; e.Value.ID != id || e.Value.Name != fmt.Sprintf("value %d", n) {
				t.Errorf("%q: %+v", id, e)
			}
		}
		s.inL2(l2, ids[len(ids)-1])
	}
	if n := r[1].of(); n.L2Hits == 0 || n.Unusable > 0 {
		t.Errorf("the second replica: %+v", n)
	}
	// Each can be written and is seen.
	for _, id := range ids[90:] {
		if _, err := r[0].things.Invalidate(t.Context(), []string{id}); err != nil {
			t.Errorf("invalidate %q: %v", id, err)
		}
	}
	s.exec(`update things set name = 'new ' || name where name like 'value %'`)
	got, err := r[1].things.GetMany(t.Context(), ids, node.Within(0))
	for n, id := range ids {
		if e := got[id]; err != nil || e.Value.Name != fmt.Sprintf("new value %d", n) {
			t.Errorf("%q after a change: %+v, %v", id, e, err)
		}
	}

	loads := r[0].of().Loads
	for _, c := range []struct{ id, want string }{
		{"", "empty"},
		{"a\x00b", "zero"},
		{"\xff\xfe", "UTF-8"},
		{"a\xc3", "UTF-8"},
		{strings.Repeat("x", cluster.MaxIDBytes+1), "512"},
		{strings.Repeat("x", 64<<10), "512"},
	} {
		_, err := r[0].things.Lookup(t.Context(), c.id)
		if !errors.Is(err, node.ErrBadID) || !strings.Contains(err.Error(), c.want) || !strings.Contains(err.Error(), "thing") {
			t.Errorf("%.20q: %v; want ErrBadID that names the namespace and %q", c.id, err, c.want)
		}
		if err != nil && len(err.Error()) > 600 {
			t.Errorf("%.20q: an error of %d bytes", c.id, len(err.Error()))
		}
		got, err := r[0].things.GetMany(t.Context(), []string{"thing-1", c.id})
		if !errors.Is(err, node.ErrBadID) || got["thing-1"].Value.ID != "thing-1" {
			t.Errorf("%.20q among others: %v, %v", c.id, got, err)
		}
	}
	if n := r[0].of().Loads; n > loads+1 {
		t.Errorf("%d loads for bad ids", n-loads)
	}
	if _, err := r[0].things.GetMany(t.Context(), make([]string, node.MaxIDs+1)); !errors.Is(err, node.ErrTooLarge) {
		t.Errorf("too many ids: %v", err)
	}
}

// An entry of more than 64 tags is served and not kept, since no tier could tell when it changes; it is
// counted.
func TestTooManyTags(t *testing.T) {
	s := newSite(t)
	r := s.open(func(_ *node.Config, c *node.CacheConfig[Thing]) {
		c.Tags = func(id string, _ Thing) (names []string) {
			n := 64
			if id == "thing-65" {
				n = 65
			}
			for n := range n {
				names = append(names, fmt.Sprintf("tag:%d", n), fmt.Sprintf("tag:%d", n)) // twice counts once
			}
			return names
		}
	})
	s.ready(r)
	for _, id := range []string{"thing-64", "thing-65"} {
		s.get(r, id)
		e := s.get(r, id)
		if want := id == "thing-64"; (e.Tier == node.TierL1) != want || !e.Fresh || e.Version == 0 {
			t.Errorf("%s: %+v", id, e)
		}
		if n := r.of().FillErrors; (n > 0) != (id == "thing-65") {
			t.Errorf("%s: %d fill errors", id, n)
		}
	}
}

// Entries expire by time, not all at once, and are loaded again; a negative entry has its own time.
func TestExpiry(t *testing.T) {
	s := newSite(t)
	r := s.open(func(_ *node.Config, c *node.CacheConfig[Thing]) {
		c.TTL, c.NegativeTTL = time.Second, 300*time.Millisecond
	})
	s.ready(r)
	var ids []string
	for n := range 50 {
		ids = append(ids, thing(n+1))
	}
	got, err := r.things.GetMany(t.Context(), ids)
	if err != nil {
		t.Fatal(err)
	}
	ttls := map[time.Duration]bool{}
	for _, e := range got {
		ttls[e.TTL.Round(10*time.Millisecond)] = true
		if e.TTL > 1100*time.Millisecond || e.TTL <= 0 {
			t.Errorf("TTL %v, want 1s give or take a tenth", e.TTL)
		}
	}
	if len(ttls) < 4 {
		t.Errorf("the times to live do not vary: %v", ttls)
	}
	e, err := r.things.Lookup(t.Context(), "nothing")
	if !errors.Is(err, node.ErrNotFound) || e.TTL > 330*time.Millisecond {
		t.Errorf("negative entry: %+v, %v", e, err)
	}
	loads := r.of().Loads
	s.until("the entry expires and is loaded again", func() bool { s.get(r, "thing-1"); return r.of().Loads > loads })
	if e := s.get(r, "thing-1"); !e.Fresh || e.TTL <= 0 {
		t.Errorf("loaded again: %+v", e)
	}
}

// What does not exist is kept as such until it is inserted, and so it is after it was deleted.
func TestI1NegativeEntries(t *testing.T) {
	s := newSite(t)
	r := s.openReady(2)
	for round := range 3 {
		for _, r := range r {
			for range 2 {
				if e, err := r.things.Lookup(t.Context(), "to-come", node.Within(0)); !errors.Is(err, node.ErrNotFound) || !e.Fresh {
					t.Fatalf("round %d: %+v, %v", round, e, err)
				}
			}
		}
		if got, err := r[0].things.GetMany(t.Context(), []string{"to-come"}); err != nil || len(got) != 0 {
			t.Errorf("GetMany: %v, %v", got, err)
		}
		s.exec(`insert into things (id, name, kind) values ('to-come', 'there', '')`)
		for _, r := range r {
			if e := s.get(r, "to-come", node.Within(0)); e.Value.Name != "there" {
				t.Errorf("round %d: %+v", round, e)
			}
		}
		s.exec(`delete from things where id = 'to-come'`)
	}
	if r[0].of().Negative == 0 {
		t.Error("negative answers are not counted")
	}
}

// L1 is bounded in entries and bytes at all times, whatever floods it.
func TestL1IsBounded(t *testing.T) {
	s := newSite(t)
	const maxEntries, maxBytes = 500, 2 << 20
	r := s.open(func(c *node.Config, cache *node.CacheConfig[Thing]) {
		c.Redis.Addrs, c.NATS.URLs = nil, nil
		c.Postgres.Queue = 10_000
		cache.MaxEntries, cache.MaxBytes = maxEntries, maxBytes
		cache.Source = node.Func(func(_ context.Context, ids []string) (map[string]Thing, error) {
			things := map[string]Thing{}
			for _, id := range ids {
				things[id] = Thing{ID: id, Name: string(bytes.Repeat([]byte("x"), rand.IntN(1<<rand.IntN(16))))}
			}
			return things, nil
		})
	})
	s.ready(r)
	var most, mostBytes gauge
	var done atomic.Bool
	var flood, watch sync.WaitGroup
	watch.Go(func() {
		tick := time.NewTicker(500 * time.Microsecond)
		defer tick.Stop()
		for !done.Load() {
			n := r.of()
			most.raise(n.L1Entries)
			mostBytes.raise(n.L1Bytes)
			<-tick.C
		}
	})
	for n := range 4 {
		flood.Go(func() {
			for round := range 8 {
				ids := make([]string, 100)
				for i := range ids {
					ids[i] = fmt.Sprintf("%d-%d-%d", n, round, i)
				}
				if got, err := r.things.GetMany(t.Context(), ids); err != nil || len(got) != len(ids) {
					t.Errorf("%d entries, %v", len(got), err)
				}
			}
		})
	}
	flood.Wait()
	done.Store(true)
	watch.Wait()
	t.Logf("at most %d entries, %d bytes", most.load(), mostBytes.load())
	if most.load() > maxEntries || mostBytes.load() > maxBytes {
		t.Errorf("at most %d entries and %d bytes, want %d and %d", most.load(), mostBytes.load(), maxEntries, maxBytes)
	}
	if most.load() < maxEntries/4 || r.of().L1Evictions == 0 {
		t.Error("the flood was none")
	}
}
