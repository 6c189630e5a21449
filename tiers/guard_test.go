package tiers

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"github.com/freshet-cache/freshet/cluster"
	"github.com/freshet-cache/freshet/coherence"
	"github.com/freshet-cache/freshet/coherence/logtest"
)

// The tests of this file each watch over one guard of the guarantee: see internal/mutants.

// pass lets the virtual time of a test's bubble go by.
func pass(d time.Duration) {
	time.Sleep(d) //nolint:forbidigo // inside testing/synctest
}

// sourceFunc is a source that is a function.
type sourceFunc func(ids []string) Batch[int]

// Load implements [Source].
func (f sourceFunc) Load(_ context.Context, ids []string) (Batch[int], error) { return f(ids), nil }

// I1: what a function has read before a commit does not pass for what is there after it.
func TestI1SlowFunction(t *testing.T) {
	onDesk(t, func(d *desk) {
		reading, goOn := make(chan struct{}), make(chan struct{})
		pause := sync.OnceFunc(func() { close(reading); <-goOn })
		d.reopen(func(_ *Shared, c *Config[int]) {
			c.Source = FuncSource[int]{Tracker: d.tracker, Func: func(ctx context.Context, ids []string) (map[string]int, error) {
				batch, err := d.Load(ctx, ids)
				pause()
				return batch.Values, err
			}}
		})
		first := make(chan Result[int])
		go func() { first <- d.read("a", second) }()
		<-reading
		d.write("a", 10)
		close(goOn)
		<-first // began before the commit: either value is right
		pass(time.Millisecond)
		if r := d.read("a", Want{}); r.Value != 10 {
			d.t.Errorf("after the change: %+v", r)
		}
	})
}

// I2, I3: a function may read what was committed after it began: nothing older is served after it, here
// or to the reader's session elsewhere.
func TestI3FunctionReadsLate(t *testing.T) {
	onDesk(t, func(d *desk) {
		old := d.header("a")
		d.reopen(func(_ *Shared, c *Config[int]) {
			c.Source = FuncSource[int]{Tracker: d.tracker, Func: func(ctx context.Context, ids []string) (map[string]int, error) {
				d.write("a", 10)
				batch, err := d.Load(ctx, ids)
				return batch.Values, err
			}}
		})
		r := d.read("a", second)
		if r.Value != 10 || !r.Fresh {
			d.t.Fatalf("%+v", r)
		}
		if d.arrives("a", old) {
			d.t.Error("an entry from before the change is taken after the change was answered")
		}
		if r.Token().SeenBy(old.Snapshot) {
			d.t.Error("the reader's token does not cover what it has read")
		}
	})
}

// I1: what was read without any proof of its age is not answered, however old an answer may be.
func TestI1LoadFromAStandby(t *testing.T) {
	onDesk(t, func(d *desk) {
		d.reopen(func(_ *Shared, c *Config[int]) {
			c.Source = sourceFunc(func([]string) Batch[int] { return Batch[int]{Values: map[string]int{"a": 1}} })
		})
		r, err := d.cache.Lookup(d.t.Context(), "a", Want{Budget: time.Second, MaxStale: time.Hour})
		if !errors.Is(err, ErrUncertain) {
			d.t.Errorf("%+v, %v; want ErrUncertain", r, err)
		}
	})
}

// header is that of a valid entry of the id, loaded now.
func (d *desk) header(id string) Header {
	return Header{
		Codec: JSON, Key: KeySum("k:" + id), Fingerprint: d.cache.coder.fingerprint, Generation: cluster.FirstGeneration().Packed(),
		Snapshot: d.log.Snapshot(), LoadedAt: time.Now(), Soft: time.Hour, Hard: time.Hour,
	}
}

// arrives reports whether an entry with the header is taken when it comes from L2.
func (d *desk) arrives(id string, h Header) bool {
	d.t.Helper()
	return d.arrivesAs(id, h, "7")
}

// arrivesAs is arrives with a value.
func (d *desk) arrivesAs(id string, h Header, payload string) bool {
	d.t.Helper()
	b, err := d.cache.packing.EncodeEntry(nil, h, []byte(payload))
	if err != nil {
		d.t.Fatal(err)
	}
	f := &flight[int]{id: id, generation: cluster.FirstGeneration(), key: "k:" + id, done: make(chan struct{})}
	return d.cache.landEntry(f, b, TierL2)
}

// I4: an entry in L2 of another key, type, generation or codec is not taken for the one that was asked for.
func TestI4EntriesOfOthers(t *testing.T) {
	onDesk(t, func(d *desk) {
		for name, change := range map[string]func(*Header){
			"another key":        func(h *Header) { h.Key = KeySum("k:b") },
			"another type":       func(h *Header) { h.Fingerprint++ },
			"another generation": func(h *Header) { h.Generation++ },
			"another codec":      func(h *Header) { h.Codec = CBOR },
		} {
			h := d.header("a")
			change(&h)
			if d.arrives("a", h) {
				d.t.Errorf("an entry of %s is taken", name)
			}
		}
		if !d.arrives("a", d.header("a")) {
			d.t.Error("the right entry is refused")
		}
	})
}

// I5: an entry in L2 from before a change is refused, and does not come into L1.
func TestI5OldEntry(t *testing.T) {
	onDesk(t, func(d *desk) {
		old := d.header("a")
		d.ownWrite("a", 10)
		if d.arrives("a", old) {
			d.t.Error("an entry from before the change is taken")
		}
		if it, _ := d.cache.l1.get("a"); it != nil {
			d.t.Errorf("L1 has %d", it.value)
		}
	})
}

// I1: a change of a tag is a change of what carries it.
func TestI1Tags(t *testing.T) {
	onDesk(t, func(d *desk) {
		d.reopen(func(_ *Shared, c *Config[int]) { c.Tags = func(string, int) []string { return []string{"tag"} } })
		d.read("a", second)
		d.commit("a", 10, coherence.Tag("tag"))
		pass(time.Millisecond)
		if r := d.read("a", Want{}); r.Value != 10 {
			d.t.Errorf("after the tag's change: %+v", r)
		}
	})
}

// I1: an entry in L2 answers to the tags under which it was stored, whatever this build would give it.
func TestI1TagsOfAnEntry(t *testing.T) {
	onDesk(t, func(d *desk) {
		d.reopen(func(_ *Shared, c *Config[int]) { c.Tags = func(string, int) []string { return []string{"new"} } })
		for _, tag := range []string{"old", "new"} {
			h := d.header("a")
			h.Tags = hashTags([]string{"old"})
			d.log.Commit(coherence.Tag(tag))
			if _, err := d.tracker.Barrier(d.t.Context()); err != nil {
				d.t.Fatal(err)
			}
			if d.arrives("a", h) {
				d.t.Errorf("an entry is taken after a change of its tag %q", tag)
			}
		}
	})
}

// I1: what was not there and has been inserted is there.
func TestI1NegativeEntry(t *testing.T) {
	onDesk(t, func(d *desk) {
		if r := d.read("c", second); !r.Absent {
			d.t.Fatalf("before the insert: %+v", r)
		}
		d.write("c", 3)
		if _, err := d.tracker.Barrier(d.t.Context()); err != nil {
			d.t.Fatal(err)
		}
		if r := d.read("c", second); r.Absent || r.Value != 3 {
			d.t.Errorf("after the insert: %+v", r)
		}
	})
}

// I4: what a load has read of a history that Postgres has lost meanwhile is not served.
func TestI4LoadOfALostHistory(t *testing.T) {
	onDesk(t, func(d *desk) {
		reading, goOn := make(chan struct{}), make(chan struct{})
		d.pause = sync.OnceFunc(func() { close(reading); <-goOn })
		d.write("a", 10)
		answer := make(chan Result[int])
		go func() { answer <- d.read("a", second) }()
		<-reading
		d.log.Crash() // and comes up without the last commit
		d.commit("a", 1)
		if _, err := d.tracker.Barrier(d.t.Context()); err != nil {
			d.t.Fatal(err)
		}
		close(goOn)
		if r := <-answer; r.Value != 1 || !r.Fresh {
			d.t.Errorf("served after the crash: %+v", r)
		}
	})
}

// I2: a read is not behind its token, whoever wrote it.
func TestI2Token(t *testing.T) {
	onDesk(t, func(d *desk) {
		for value := 10; value < 12; value++ {
			d.read("a", second)
			want := Want{Budget: time.Second, Token: coherence.TokenOfWrite(d.log.Snapshot().Timeline, d.write("a", value))}
			if value == 10 {
				if r := d.read("a", want); r.Value != value {
					d.t.Errorf("with the token of %d: %+v", value, r)
				}
				continue
			}
			r, err := d.cache.LookupMany(d.t.Context(), []string{"a", "b"}, want)
			if err != nil || r[0].Value != value {
				d.t.Errorf("many with the token of %d: %+v, %v", value, r, err)
			}
		}
	})
}

// I2: when what a token names cannot be had, neither a recent load nor a STALE answer stands in.
func TestI2TokenWithoutPostgres(t *testing.T) {
	onDesk(t, func(d *desk) {
		d.read("a", second)
		token := coherence.TokenOfWrite(d.log.Snapshot().Timeline, d.write("a", 10))
		d.goDown()
		for _, stale := range []time.Duration{0, time.Minute} {
			r, err := d.cache.Lookup(d.t.Context(), "a", Want{Budget: time.Second, MaxStale: stale, Token: token})
			if !errors.Is(err, ErrUncertain) {
				d.t.Errorf("STALE within %v: %+v, %v; want ErrUncertain", stale, r, err)
			}
		}
	})
}

// I2: a STALE answer does not lack what this replica has written.
func TestI2StaleHasOwnWrites(t *testing.T) {
	onDesk(t, func(d *desk) {
		d.read("a", second)
		d.read("b", second)
		d.goDown()
		d.ownWrite("a", 10)
		pass(2 * time.Second)
		want := Want{Budget: time.Second, MaxStale: time.Minute}
		if r, err := d.cache.Lookup(d.t.Context(), "a", want); !errors.Is(err, ErrUncertain) {
			d.t.Errorf("what was written: %+v, %v; want ErrUncertain", r, err)
		}
		if r := d.read("b", want); r.Value != 2 || r.Fresh {
			d.t.Errorf("what was not: %+v, want STALE", r)
		}
	})
}

// A STALE answer is not older than the reader allows, and its age covers every commit that it lacks.
func TestStaleIsBounded(t *testing.T) {
	onDesk(t, func(d *desk) {
		d.read("a", second)
		pass(100 * time.Millisecond)
		d.write("a", 10)
		committed := time.Now()
		pass(50 * time.Millisecond)
		if _, err := d.tracker.Barrier(d.t.Context()); err != nil {
			d.t.Fatal(err)
		}
		d.goDown()
		pass(2 * time.Second)
		want := Want{Budget: time.Second, MaxStale: 5 * time.Second}
		if r := d.read("a", want); r.Fresh || r.Value != 1 || r.Age < time.Since(committed) {
			d.t.Errorf("%v after a commit that it lacks: %+v", time.Since(committed), r)
		}
		pass(5 * time.Second)
		if r, err := d.cache.Lookup(d.t.Context(), "a", want); !errors.Is(err, ErrUncertain) {
			d.t.Errorf("%v after a commit that it lacks: %+v, %v; want ErrUncertain", time.Since(committed), r, err)
		}
	})
}

// A load that outlives its lease does not end that of the load which came after, also of one process.
func TestLeaseIsOfOneLoad(t *testing.T) {
	d := newDesk(t, logtest.NewMemory())
	d.t = t
	defer d.close()
	key := fmt.Sprintf("t:{one load %x}", rand.Uint64())
	l2 := openL2(t, patient)
	// begin starts a read whose load says that it has begun and waits.
	begin := func(lease time.Duration) (c *Cache[int], goOn, done chan struct{}) {
		began, goOn, done := make(chan struct{}), make(chan struct{}), make(chan struct{})
		c = d.newCache(t, func(s *Shared, c *Config[int]) {
			s.L2, s.LeaseTTL, s.LeaseWait = l2, lease, time.Minute
			c.Key = func(cluster.Generation, string) (string, error) { return key, nil }
			c.Source = sourceFunc(func([]string) Batch[int] {
				close(began)
				<-goOn
				return Batch[int]{Snapshot: d.log.Snapshot(), Values: map[string]int{"a": 1}}
			})
		})
		go func() {
			defer close(done)
			if _, err := c.Lookup(t.Context(), "a", second); err != nil {
				t.Error(err)
			}
		}()
		<-began
		return c, goOn, done
	}
	old, oldGoOn, oldDone := begin(20 * time.Millisecond)
	next, nextGoOn, nextDone := begin(time.Minute) // takes the lease when the first's time is over
	close(oldGoOn)
	<-oldDone
	if err := old.Close(); err != nil { // it has filled L2
		t.Error(err)
	}
	r := l2.Lease(t.Context(), LeaseRequest{Key: key, LeaseKey: cluster.Lease(key), Token: "third", TTL: time.Minute})
	if r.Held || r.Err != nil || r.Value == nil {
		t.Errorf("after the first load %+v; want its value, and the lease still held by the second", r)
	}
	close(nextGoOn)
	<-nextDone
	if err := next.Close(); err != nil {
		t.Error(err)
	}
}

// I1: while changes of a namespace may go unlogged, only a load that began after the read is FRESH; nothing is kept, nor
// taken from L2, and a STALE answer is as old as the last moment without doubt. Whatever was cached before the end
// is refused after it.
func TestI1DoubtedNamespace(t *testing.T) {
	onDesk(t, func(d *desk) {
		d.read("a", second)
		d.read("b", second)
		pass(time.Second)
		old := d.header("a")
		since := d.tracker.Now()
		pass(time.Second)
		d.commit("c", 0, coherence.Namespace("other")) // all stamps of namespaces grow
		if _, err := d.tracker.Barrier(d.t.Context()); err != nil {
			d.t.Fatal(err)
		}
		d.read("a", second) // found valid after the last moment without doubt
		d.read("b", second)
		d.values["a"] = 10 // unlogged
		before := d.loads
		d.tracker.Doubt(map[coherence.ScopeHash]coherence.Instant{coherence.Namespace("n").Hash(): since})
		for n := range 3 {
			if v, ok := d.cache.Hit("a", time.Minute); ok {
				d.t.Errorf("a hit in L1: %d", v)
			}
			if r := d.read("a", Want{Budget: time.Minute}); r.Value != 10 || !r.Fresh || r.Tier != TierSource || d.loads != before+n+1 {
				d.t.Errorf("while in doubt: %+v after %d loads, want FRESH from a load of its own", r, d.loads-before)
			}
		}
		if d.arrives("a", old) {
			d.t.Error("an entry is taken from L2")
		}
		d.fail = errors.New("the source is away")
		r := d.read("b", Want{Budget: time.Minute, MaxStale: time.Minute})
		if r.Fresh || r.Age < d.tracker.Now().Sub(since) {
			d.t.Errorf("without the source: %+v, want STALE of more than %v", r, d.tracker.Now().Sub(since))
		}
		d.fail = nil

		d.commit("b", 20, coherence.Namespace("n"))
		if _, err := d.tracker.Barrier(d.t.Context()); err != nil {
			d.t.Fatal(err)
		}
		d.tracker.Doubt(nil)
		for id, want := range map[string]int{"a": 10, "b": 20} {
			if r := d.read(id, Want{Budget: time.Minute}); r.Value != want || !r.Fresh {
				d.t.Errorf("afterwards %s: %+v, want %d", id, r, want)
			}
			if v, ok := d.cache.Hit(id, time.Minute); !ok || v != want {
				d.t.Errorf("afterwards %s is no hit: %d, %v", id, v, ok)
			}
		}
	})
}

// I1: doubts about tags are about every entry with one, and about no other.
func TestI1DoubtedTags(t *testing.T) {
	onDesk(t, func(d *desk) {
		tagged := d.newCache(d.t, func(_ *Shared, c *Config[int]) {
			c.Namespace, c.Tags = "tagged", func(string, int) []string { return []string{"t"} }
		})
		defer tagged.Close()
		for _, doubt := range []coherence.Scope{coherence.Tag("t"), coherence.AnyTag()} {
			d.tracker.Doubt(nil)
			for range 2 {
				if _, err := tagged.Lookup(d.t.Context(), "a", second); err != nil {
					d.t.Fatal(err)
				}
				d.read("a", second)
			}
			d.tracker.Doubt(map[coherence.ScopeHash]coherence.Instant{doubt.Hash(): 0})
			if r, err := tagged.Lookup(d.t.Context(), "a", second); err != nil || r.Tier != TierSource {
				d.t.Errorf("%v: %+v, %v; want a load", doubt, r, err)
			}
			if r := d.read("a", second); r.Tier != TierL1 {
				d.t.Errorf("%v: an entry without a tag: %+v, want it from L1", doubt, r)
			}
		}
	})
}
