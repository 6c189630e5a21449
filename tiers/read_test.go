package tiers

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/freshet-cache/freshet/cluster"
	"github.com/freshet-cache/freshet/coherence"
	"github.com/freshet-cache/freshet/coherence/logtest"
)

// desk is a cache over a log and a source in memory, on virtual time. The source keeps, like Postgres,
// one number per id, which commits change.
type desk struct {
	t       *testing.T
	log     *logtest.Memory
	tracker *coherence.Tracker
	cache   *Cache[int]

	mu     sync.Mutex
	values map[string]int // id -> value
	loads  int
	// pause, if set, is called by a load after it has read and before it returns.
	pause func()
	fail  error
}

func newDesk(t testing.TB, log *logtest.Memory) *desk {
	t.Helper()
	d := &desk{log: log, values: map[string]int{"a": 1, "b": 2}}
	quiet := slog.New(slog.DiscardHandler)
	d.tracker = coherence.NewTracker(coherence.TrackerConfig{Log: log, Boot: 1, Logger: quiet})
	d.cache = d.newCache(t, func(*Shared, *Config[int]) {})
	if _, err := d.tracker.Barrier(t.Context()); err != nil {
		t.Fatal(err)
	}
	return d
}

// keyOf is the key of an id: "k:id" in the first generation.
func keyOf(g cluster.Generation, id string) (string, error) {
	if g == cluster.FirstGeneration() {
		return "k:" + id, nil
	}
	return "k" + g.String() + ":" + id, nil
}

// newCache makes a cache over the desk's log and source, or what is put in their place.
func (d *desk) newCache(t testing.TB, change func(*Shared, *Config[int])) *Cache[int] {
	t.Helper()
	shared := Shared{Tracker: d.tracker, Bulkhead: NewBulkhead(4, 8), Own: &OwnWrites{}, Logger: slog.New(slog.DiscardHandler)}
	config := Config[int]{
		Namespace: "n", View: "detail", Source: d, Key: keyOf,
	}
	change(&shared, &config)
	c, err := NewCache(shared, config)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// reopen puts another cache in place of the desk's.
func (d *desk) reopen(change func(*Shared, *Config[int])) {
	d.t.Helper()
	d.cache.Close()
	d.cache = d.newCache(d.t, change)
}

func (d *desk) close() {
	d.cache.Close()
	_ = d.tracker.Close() // the log in memory closes without an error
}

// Load implements [Source].
func (d *desk) Load(_ context.Context, ids []string) (Batch[int], error) {
	d.mu.Lock()
	batch := Batch[int]{Snapshot: d.log.Snapshot(), Values: map[string]int{}}
	for _, id := range ids {
		if v, ok := d.values[id]; ok {
			batch.Values[id] = v
		}
	}
	d.loads++
	pause, fail := d.pause, d.fail
	d.mu.Unlock()
	if pause != nil {
		pause()
	}
	return batch, fail
}

// write commits a change as another service would: nobody tells the tracker.
func (d *desk) write(id string, value int) (xid uint64) {
	return d.commit(id, value, coherence.Entity("n", id))
}

// commit changes a value in a transaction that says what it is about.
func (d *desk) commit(id string, value int, scopes ...coherence.Scope) (xid uint64) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.values[id] = value
	return d.log.Commit(scopes...)
}

// goDown makes the log and the source fail.
func (d *desk) goDown() {
	refused := errors.New("connection refused")
	d.log.Fail(refused)
	d.mu.Lock()
	defer d.mu.Unlock()
	d.fail = refused
}

// ownWrite commits a change as Node.Write does.
func (d *desk) ownWrite(id string, value int) {
	xid := d.write(id, value)
	scopes := []coherence.ScopeHash{coherence.Entity("n", id).Hash()}
	d.cache.Own.Wrote(d.tracker.Now(), scopes, false)
	d.tracker.Observe(coherence.Wrote{Timeline: d.log.Snapshot().Timeline, XID: xid, Scopes: scopes})
}

func (d *desk) read(id string, want Want) Result[int] {
	d.t.Helper()
	r, err := d.cache.Lookup(d.t.Context(), id, want)
	if err != nil {
		d.t.Fatalf("read %s: %v", id, err)
	}
	return r
}

// onDesk runs a test in a bubble of virtual time.
func onDesk(t *testing.T, test func(d *desk)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		d := newDesk(t, logtest.NewMemory())
		d.t = t
		defer d.close()
		test(d)
	})
}

var second = Want{Budget: time.Second}

// I1: whatever changes, and whenever it is read, a FRESH answer reflects every commit older than the
// budget, and a STALE one every commit older than its age.
func TestI1LabelsOnVirtualTime(t *testing.T) {
	for _, budget := range []time.Duration{0, 50 * time.Millisecond, time.Second} {
		t.Run(budget.String(), func(t *testing.T) {
			onDesk(t, func(d *desk) {
				t := d.t
				committed := map[int]time.Time{1: time.Now()} // value -> when it was committed
				current := 1
				for step := range 400 {
					if step%7 == 0 {
						current++
						committed[current] = time.Now()
						d.write("a", current)
					}
					switch step {
					case 100:
						d.log.Fail(errors.New("connection refused"))
						d.mu.Lock()
						d.fail = errors.New("connection refused")
						d.mu.Unlock()
					case 250:
						d.log.Fail(nil)
						d.mu.Lock()
						d.fail = nil
						d.mu.Unlock()
					}
					began := time.Now()
					r, err := d.cache.Lookup(t.Context(), "a", Want{Budget: budget, MaxStale: 3 * time.Second})
					switch {
					case errors.Is(err, ErrUncertain), err != nil && d.tracker.Failing():
					case err != nil:
						t.Fatal(err)
					default:
						bound := budget
						if !r.Fresh {
							bound = r.Age
						}
						for value := r.Value + 1; value <= current; value++ {
							if committed[value].Before(began.Add(-bound)) {
								t.Fatalf("step %d: %+v does not reflect value %d, committed %v before", step, r, value, began.Sub(committed[value]))
							}
						}
					}
					if step < 100 || step > 300 {
						if err != nil || !r.Fresh {
							t.Fatalf("step %d: %+v, %v without a fault", step, r, err)
						}
					}
					time.Sleep(13 * time.Millisecond) //nolint:forbidigo // virtual time
				}
			})
		})
	}
}

// A slow loader cannot poison L1: its snapshot does not see the later change.
func TestSlowLoaderKeepsNothingOld(t *testing.T) {
	onDesk(t, func(d *desk) {
		t := d.t
		reading, goOn := make(chan struct{}), make(chan struct{})
		d.pause = sync.OnceFunc(func() { close(reading); <-goOn })
		first := make(chan Result[int])
		go func() { first <- d.read("a", second) }()
		<-reading
		d.write("a", 10)
		time.Sleep(time.Second) //nolint:forbidigo // virtual time
		close(goOn)
		<-first // began before the commit: either value is right
		if r := d.read("a", second); r.Value != 10 {
			t.Errorf("after the change: %+v", r)
		}
	})
}

// I2: a read that joins a flight which began before the reader's own write does not get its answer.
func TestI2JoinedFlight(t *testing.T) {
	onDesk(t, func(d *desk) {
		t := d.t
		reading, goOn := make(chan struct{}), make(chan struct{})
		d.pause = sync.OnceFunc(func() { close(reading); <-goOn })
		first := make(chan Result[int])
		go func() { first <- d.read("a", second) }()
		<-reading
		d.ownWrite("a", 10)
		joined := make(chan Result[int])
		go func() { joined <- d.read("a", second) }()
		synctest.Wait() // it waits in the old flight
		close(goOn)
		if r := <-joined; r.Value != 10 || !r.Fresh {
			t.Errorf("the writer reads %+v", r)
		}
		<-first
	})
}

// I3: a node that has served a value newer than its last poll does not serve an older one after it.
func TestI3NoteOfANewerValue(t *testing.T) {
	onDesk(t, func(d *desk) {
		t := d.t
		old := d.log.Snapshot()
		d.write("a", 10) // no poll has seen it
		if r := d.read("a", second); r.Value != 10 {
			t.Fatalf("the load brought %+v", r)
		}
		scopes := d.cache.scopesOf("a", nil)
		if d.tracker.Valid(scopes[viewScope], scopes, old) {
			t.Error("a value from before the one that was served is still taken for valid")
		}
	})
}

// A loader that never returns fails its own readers, within the time-out, and nobody else.
func TestLoaderHangs(t *testing.T) {
	onDesk(t, func(d *desk) {
		t := d.t
		d.read("b", second)
		forever := make(chan struct{})
		defer close(forever)
		d.pause = func() { <-forever }
		began := time.Now()
		_, err := d.cache.Lookup(t.Context(), "a", second)
		if !errors.Is(err, context.DeadlineExceeded) || time.Since(began) > 6*time.Second {
			t.Errorf("after %v: %v", time.Since(began), err)
		}
		if r := d.read("b", second); !r.Fresh || r.Tier != TierL1 {
			t.Errorf("another entry: %+v", r)
		}
	})
}

// A loader's panic is an error of its readers, and the next read loads again.
func TestLoaderPanics(t *testing.T) {
	onDesk(t, func(d *desk) {
		t := d.t
		d.pause = func() { panic("out of cheese") }
		if _, err := d.cache.Lookup(t.Context(), "a", second); err == nil {
			t.Error("no error")
		}
		d.pause = nil
		if r := d.read("a", second); r.Value != 1 {
			t.Errorf("afterwards: %+v", r)
		}
	})
}

// The first reader's context is its own: others in the flight get the value.
func TestLoaderSurvivesItsFirstReader(t *testing.T) {
	onDesk(t, func(d *desk) {
		t := d.t
		goOn := make(chan struct{})
		d.pause = func() { <-goOn }
		ctx, leave := context.WithCancelCause(t.Context())
		gone := errors.New("the client went away")
		first := make(chan error)
		go func() { _, err := d.cache.Lookup(ctx, "a", second); first <- err }()
		synctest.Wait()
		other := make(chan Result[int])
		go func() { other <- d.read("a", second) }()
		synctest.Wait()
		leave(gone)
		if err := <-first; !errors.Is(err, gone) {
			t.Errorf("the first reader got %v", err)
		}
		close(goOn)
		if r := <-other; r.Value != 1 || d.loads != 1 {
			t.Errorf("the other got %+v after %d loads", r, d.loads)
		}
	})
}

// I6: reads beyond the bulkhead and its queue are refused, those within are answered.
func TestI6BoundedLoads(t *testing.T) {
	onDesk(t, func(d *desk) {
		t := d.t
		var running, peak atomic.Int64
		goOn := make(chan struct{})
		d.pause = func() {
			for n := running.Add(1); ; {
				if p := peak.Load(); n <= p || peak.CompareAndSwap(p, n) {
					break
				}
			}
			<-goOn
			running.Add(-1)
		}
		errs := make(chan error)
		for i := range 20 {
			go func() { _, err := d.cache.Lookup(t.Context(), fmt.Sprint(i), second); errs <- err }()
		}
		synctest.Wait()
		close(goOn)
		var refused int
		for range 20 {
			if err := <-errs; errors.Is(err, ErrOverloaded) {
				refused++
			} else if err != nil {
				t.Error(err)
			}
		}
		if peak.Load() != 4 || refused != 20-4-8 {
			t.Errorf("%d at once, %d refused; want 4 and 8", peak.Load(), refused)
		}
	})
}

// An entry expires with its TTL, also when nothing changes.
func TestExpiry(t *testing.T) {
	onDesk(t, func(d *desk) {
		t := d.t
		d.read("a", second)
		if _, err := d.cache.Lookup(t.Context(), "none", second); err != nil {
			t.Fatal(err)
		}
		time.Sleep(40 * time.Second) //nolint:forbidigo // virtual time
		before := d.loads
		if r := d.read("a", second); r.Tier != TierL1 {
			t.Errorf("an hour's TTL ended after 40 s: %+v", r)
		}
		if r := d.read("none", second); r.Tier != TierSource || !r.Absent {
			t.Errorf("a negative entry outlived its TTL: %+v", r)
		}
		time.Sleep(70 * time.Minute) //nolint:forbidigo // virtual time
		if r := d.read("a", second); r.Tier != TierSource || d.loads != before+2 {
			t.Errorf("an entry outlived its TTL: %+v", r)
		}
	})
}

// I7: a hit in L1 allocates nothing.
func TestI7HitAllocatesNothing(t *testing.T) {
	d := newDesk(t, logtest.NewMemory())
	d.t = t
	defer d.close()
	d.read("a", Want{Budget: time.Hour})
	ctx := t.Context()
	if n := testing.AllocsPerRun(1000, func() {
		if _, err := d.cache.Lookup(ctx, "a", Want{Budget: time.Hour}); err != nil {
			t.Error(err)
		}
		if _, ok := d.cache.Hit("a", time.Hour); !ok {
			t.Error("no hit")
		}
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}
