package tiers

import (
	"context"
	"errors"
	"maps"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/freshet-cache/freshet/coherence"
)

// shelf is a shared tier of one process.
type shelf struct {
	mu     sync.Mutex
	values map[string][]byte // key -> entry
}

func (s *shelf) Get(_ context.Context, key string) ([]byte, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if b, ok := s.values[key]; ok {
		return b, nil
	}
	return nil, ErrMiss
}

func (s *shelf) GetMany(ctx context.Context, keys []string) []Reply {
	replies := make([]Reply, len(keys))
	for i, key := range keys {
		replies[i].Bytes, replies[i].Err = s.Get(ctx, key)
	}
	return replies
}

func (s *shelf) LeaseMany(ctx context.Context, leases []LeaseRequest) []LeaseReply {
	replies := make([]LeaseReply, len(leases))
	for i, lease := range leases {
		value, _ := s.Get(ctx, lease.Key)
		replies[i] = LeaseReply{Held: true, Value: value}
	}
	return replies
}

func (s *shelf) SetMany(_ context.Context, fillings []Filling) []error {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, f := range fillings {
		s.values[f.Key] = f.Bytes
	}
	return make([]error, len(fillings))
}

func (s *shelf) Unlink(_ context.Context, keys ...string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, key := range keys {
		delete(s.values, key)
	}
	return nil
}

func (s *shelf) Release(context.Context, string, string) error { return nil }
func (s *shelf) Available(string) bool                         { return true }

func (s *shelf) keys() map[string][]byte {
	s.mu.Lock()
	defer s.mu.Unlock()
	return maps.Clone(s.values)
}

// onShelf runs a test on a desk with a shared tier.
func onShelf(t *testing.T, test func(d *desk, s *shelf)) {
	t.Helper()
	onDesk(t, func(d *desk) {
		s := &shelf{values: map[string][]byte{}}
		d.reopen(func(shared *Shared, _ *Config[int]) { shared.L2 = s })
		test(d, s)
	})
}

// poll makes the tracker know all that has committed.
func (d *desk) poll() {
	d.t.Helper()
	if _, err := d.tracker.Barrier(d.t.Context()); err != nil {
		d.t.Fatal(err)
	}
}

// from reads the id and wants it from the tier.
func (d *desk) from(tier Tier, id string, value int) {
	d.t.Helper()
	r := d.read(id, second)
	if r.Tier != tier || r.Value != value || !r.Fresh {
		d.t.Errorf("%s is %d from %v, FRESH %t; want %d from %v", id, r.Value, r.Tier, r.Fresh, value, tier)
	}
	synctest.Wait() // a flight fills L2 when its readers have their answer
}

// What was loaded under another generation is not used, in L1 and in L2, as soon as a poll has told of it:
// that of the namespace or that of all.
func TestI1NewGeneration(t *testing.T) {
	onShelf(t, func(d *desk, _ *shelf) {
		d.from(TierSource, "a", 1)
		d.from(TierL1, "a", 1)
		for i, namespace := range []string{"n", ""} {
			d.log.SetGeneration(namespace, 2)
			if _, ok := d.cache.Hit("a", time.Second); !ok {
				d.t.Error("no hit although nobody has heard of another generation")
			}
			d.poll()
			if _, ok := d.cache.Hit("a", time.Second); ok {
				d.t.Errorf("a hit of the generation before, %d", i)
			}
			d.from(TierSource, "a", 1)
			d.from(TierL1, "a", 1)
		}
		d.log.SetGeneration("other", 2)
		d.poll()
		d.from(TierL1, "a", 1)
	})
}

// A generation that comes back brings its entries with it, but none that has changed or was invalidated
// meanwhile.
func TestI1RollBack(t *testing.T) {
	onShelf(t, func(d *desk, s *shelf) {
		d.from(TierSource, "a", 1)
		d.from(TierSource, "b", 2)
		d.log.SetGeneration("n", 2)
		d.poll()
		d.from(TierSource, "a", 1)
		d.write("b", 3)
		d.poll()
		d.from(TierSource, "b", 3)
		if keys := s.keys(); len(keys) != 4 {
			d.t.Errorf("%d entries in L2, want one per id and generation", len(keys))
		}
		d.log.SetGeneration("n", 1)
		d.poll()
		d.from(TierL2, "a", 1) // L1 has one entry of an id
		d.from(TierL1, "a", 1)
		d.from(TierSource, "b", 3)
		d.log.SetGeneration("n", 2)
		d.poll()
		d.from(TierL2, "a", 1)
		d.from(TierL2, "b", 3)
	})
}

// An entry in L1 that no other has replaced is used again when its generation comes back.
func TestGenerationComesBackToL1(t *testing.T) {
	onDesk(t, func(d *desk) {
		d.from(TierSource, "a", 1)
		d.log.SetGeneration("n", 2)
		d.poll()
		d.log.SetGeneration("n", 1)
		d.poll()
		d.from(TierL1, "a", 1)
	})
}

// What a load brings that began under another generation answers who was waiting, and is kept nowhere.
func TestI1LoadAcrossGenerations(t *testing.T) {
	onShelf(t, func(d *desk, s *shelf) {
		d.pause = func() {
			d.mu.Lock()
			d.pause = nil
			d.mu.Unlock()
			d.log.SetGeneration("n", 2)
			d.poll()
		}
		d.from(TierSource, "a", 1)
		if keys := s.keys(); len(keys) != 0 {
			d.t.Errorf("in L2 is %v", keys)
		}
		if d.cache.Stats().L1.Entries != 0 {
			d.t.Error("it is in L1")
		}
		d.from(TierSource, "a", 1)
		d.from(TierL1, "a", 1)
	})
}

// Nobody is given an entry of a generation that was given up, not even as STALE.
func TestStaleIsOfThePresentGeneration(t *testing.T) {
	onDesk(t, func(d *desk) {
		d.from(TierSource, "a", 1)
		d.log.SetGeneration("n", 2)
		d.poll()
		d.goDown()
		pass(2 * time.Second)
		r, err := d.cache.Lookup(d.t.Context(), "a", Want{Budget: time.Second, MaxStale: time.Hour})
		if !errors.Is(err, ErrUncertain) {
			d.t.Errorf("%+v, %v; want ErrUncertain", r, err)
		}
	})
}

// An entry in L1 of another generation does not keep out that of the present one, however much newer it is.
func TestGenerationsDoNotShadow(t *testing.T) {
	l := newL1[int](10, 1<<20)
	at := func(xmax uint64) coherence.Snapshot { return coherence.Snapshot{Timeline: 1, Xmin: xmax, Xmax: xmax} }
	newer, older := &item[int]{snapshot: at(20)}, &item[int]{snapshot: at(10)}
	newer.generation.Namespace = 2
	if !l.put("a", newer) || !l.put("a", older) {
		t.Error("an entry of another generation keeps one out")
	}
	older.generation = newer.generation
	if !l.put("a", newer) || l.put("a", older) {
		t.Error("an older entry of the same generation replaces a newer")
	}
}

// I8: several values as of one moment are of the generation of that moment, also when the poll that says so
// brings another one.
func TestI8Generation(t *testing.T) {
	onLedger(t, func(l *ledger) {
		l.both(together)
		l.log.SetGeneration("n", 2)
		l.both(Want{Consistent: true})
		if l.loads != 2 {
			l.t.Errorf("%d loads: what was read before the generation changed is answered after it", l.loads)
		}
		l.both(together)
		if l.loads != 2 {
			l.t.Errorf("%d loads", l.loads)
		}
	})
}
