package check

import (
	"cmp"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"
)

// Config bounds a [Checker]. The zero value is good.
type Config struct {
	// MaxBudget is the largest freshness budget that any read asks for. 0 = 1 s.
	MaxBudget time.Duration
	// Slack is how much longer than MaxBudget commits are remembered one by one. It must cover the
	// longest time that a request takes. 0 = 15 s.
	Slack time.Duration
	// MaxProducts bounds the declared products; Declare fails beyond. 0 = 1,000,000.
	MaxProducts int
	// Keep is how many violations are kept in full; all are counted. 0 = 20.
	Keep int
}

func (c Config) maxBudget() time.Duration { return cmp.Or(c.MaxBudget, time.Second) }
func (c Config) slack() time.Duration     { return cmp.Or(c.Slack, 15*time.Second) }
func (c Config) maxProducts() int         { return cmp.Or(c.MaxProducts, 1_000_000) }
func (c Config) keep() int                { return cmp.Or(c.Keep, 20) }

func (c Config) validate() error {
	var errs []error
	if c.MaxBudget < 0 {
		errs = append(errs, fmt.Errorf("MaxBudget is %v: want 0 (for 1s) or more", c.MaxBudget))
	}
	if c.Slack < 0 {
		errs = append(errs, fmt.Errorf("Slack is %v: want 0 (for 15s) or more", c.Slack))
	}
	if c.MaxProducts < 0 {
		errs = append(errs, fmt.Errorf("MaxProducts is %d: want 0 (for 1,000,000) or more", c.MaxProducts))
	}
	if c.Keep < 0 {
		errs = append(errs, fmt.Errorf("Keep is %d: want 0 (for 20) or more", c.Keep))
	}
	return errors.Join(errs...)
}

// Read is one answer to one read, as its client saw it.
type Read struct {
	ID       int64         // of the product
	Revision int64         // answered; 0 = the product was answered to be absent
	Fresh    bool          // the label: FRESH, else STALE
	List     bool          // the product stood in a list: another key, so I3 does not apply
	Budget   time.Duration // asked for
	Replica  string        // that answered; "" = not known, I3 is not judged
	// Wrote is the revision of a write of this product whose session token the read carried; Saw is
	// the highest revision among the earlier answers whose tokens it carried. 0 = none.
	Wrote, Saw int64
	// Invoked is when the client sent the request, Returned when it had the whole answer.
	Invoked, Returned time.Duration
}

// Answer is what one replica answered, with budget 0, after the run.
type Answer struct {
	ID       int64
	Replica  string
	Revision int64 // 0 = absent
	// AtLeast is the revision in Postgres before the replica was asked, AtMost that afterwards.
	AtLeast, AtMost int64
}

// Checker judges answers. All methods are safe for concurrent use.
type Checker struct {
	config    Config
	shards    [64]shard
	declared  atomic.Int64
	tally     tally
	staleness *staleness
}

// shard holds the products whose id ends in the same six bits.
type shard struct {
	mu       sync.Mutex
	declared map[int64]int64    // id -> revision before the run
	products map[int64]*product // id -> what is known; only of products worth it
}

// New returns a checker that knows no product yet.
func New(c Config) (*Checker, error) {
	if err := c.validate(); err != nil {
		return nil, fmt.Errorf("check: %w", err)
	}
	k := &Checker{config: c, staleness: newStaleness()}
	k.tally.keep = c.keep()
	for i := range k.shards {
		k.shards[i].declared = make(map[int64]int64)
		k.shards[i].products = make(map[int64]*product)
	}
	return k, nil
}

// Declare says that the product exists, with this revision (1 or more), before the run. Products not
// declared do not exist. Declare all before the first Begin or Observe.
func (c *Checker) Declare(id, revision int64) error {
	if revision < 1 {
		return fmt.Errorf("check: product %d has revision %d: want 1 or more", id, revision)
	}
	s := c.shard(id)
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, known := s.declared[id]; !known && c.declared.Add(1) > int64(c.config.maxProducts()) {
		c.declared.Add(-1)
		return fmt.Errorf("check: over %d products: raise MaxProducts or use fewer", c.config.maxProducts())
	}
	s.declared[id] = revision
	return nil
}

func (c *Checker) shard(id int64) *shard { return &c.shards[uint64(id)%uint64(len(c.shards))] }

// product is what is known of id, made if need be. The lock is held.
func (s *shard) product(id int64) *product {
	p := s.products[id]
	if p == nil {
		first, exists := s.declared[id]
		p = &product{id: id, declared: first, exists: exists, base: first}
		s.products[id] = p
	}
	return p
}

// Begin says that an update of the product is about to be sent. When the revision it will commit is
// known already (an UPDATE has returned it and its COMMIT is about to be sent), pass it; else 0. End
// the write with exactly one of its methods.
func (c *Checker) Begin(id, revision int64, sent time.Duration) *Write {
	w := &Write{checker: c, id: id, revision: revision, sent: sent}
	s := c.shard(id)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.product(id).begin(w)
	c.tally.writes.Add(1)
	return w
}

// Write is an update under way. Use it from one goroutine; of its methods, the first called counts.
type Write struct {
	checker  *Checker
	id       int64
	revision int64 // 0 = not known before the commit
	sent     time.Duration
	ended    bool
}

// Acked says that the write was acknowledged, with the revision it has, at this time.
func (w *Write) Acked(revision int64, at time.Duration) {
	w.end(func(p *product) {
		w.checker.tally.acked.Add(1)
		if v, twice := p.acked(w, revision, at); twice {
			w.checker.tally.violate(p, v)
		}
		p.prune(at - w.checker.config.maxBudget() - w.checker.config.slack())
	})
}

// Aborted says that the write certainly did not and will not happen.
func (w *Write) Aborted() {
	w.end(func(p *product) {
		w.checker.tally.aborted.Add(1)
		p.aborted(w)
	})
}

// Unknown says that the write may have happened, may still happen, or not. revision is the one it
// would have, 0 if not known.
func (w *Write) Unknown(revision int64) {
	w.end(func(p *product) {
		w.checker.tally.unknown.Add(1)
		p.unknown(w, revision)
	})
}

func (w *Write) end(how func(*product)) {
	s := w.checker.shard(w.id)
	s.mu.Lock()
	defer s.mu.Unlock()
	if w.ended {
		return
	}
	w.ended = true
	p := s.product(w.id)
	p.inflight = without(p.inflight, w)
	how(p)
	for _, r := range p.settled() {
		w.checker.judge(p, r)
	}
}

// Observe takes one answer to its verdict.
func (c *Checker) Observe(r Read) {
	c.tally.reads.Add(1)
	if r.Fresh {
		c.tally.fresh.Add(1)
	}
	s := c.shard(r.ID)
	s.mu.Lock()
	defer s.mu.Unlock()
	p := s.products[r.ID]
	if p == nil {
		if r.Revision == s.declared[r.ID] && r.Wrote == 0 && r.Saw == 0 {
			if r.Fresh && r.Revision > 0 {
				c.staleness.add(0)
			}
			return // the usual case: never written, answered as declared
		}
		p = s.product(r.ID)
	}
	for _, v := range p.order(r) {
		c.tally.violate(p, v)
	}
	if p.unsettled(r) {
		if len(p.waiting) < maxWaiting {
			p.waiting = append(p.waiting, r)
			return
		}
		c.tally.early.Add(1)
	}
	c.judge(p, r)
}

// judge gives the verdicts that need the commits around the answer. The shard's lock is held.
func (c *Checker) judge(p *product, r Read) {
	if v, bad := p.phantom(r); bad {
		c.tally.violate(p, v)
	}
	if !r.Fresh || r.Revision == 0 {
		return
	}
	if v, bad := p.late(r); bad {
		c.tally.violate(p, v)
	}
	c.staleness.add(p.behind(r))
}

// Written calls yield with the id of every product of which a write was begun, in no order, until it
// returns false.
func (c *Checker) Written(yield func(id int64) bool) {
	c.each(func(p *product) bool { return p.written }, yield)
}

// Suspects calls yield with the id of every product that has an I4 verdict against it, in no order,
// until it returns false: those that another writer may explain.
func (c *Checker) Suspects(yield func(id int64) bool) {
	c.each(func(p *product) bool { return p.phantoms > 0 }, yield)
}

// each calls yield without a lock, so that it may use the checker.
func (c *Checker) each(wanted func(*product) bool, yield func(id int64) bool) {
	for i := range c.shards {
		s := &c.shards[i]
		s.mu.Lock()
		var ids []int64
		for id, p := range s.products {
			if wanted(p) {
				ids = append(ids, id)
			}
		}
		s.mu.Unlock()
		for _, id := range ids {
			if !yield(id) {
				return
			}
		}
	}
}

// Final says which revision Postgres holds after the run, 0 = no such product. Call it once for each
// of [Checker.Written] and [Checker.Suspects], after [Checker.Finish].
func (c *Checker) Final(id, revision int64) {
	s := c.shard(id)
	s.mu.Lock()
	defer s.mu.Unlock()
	p := s.product(id)
	if foreign := p.foreign(revision); foreign > 0 {
		c.tally.foreign.Add(uint64(foreign))
		c.tally.excuse(p)
	}
	if v, lost := p.lost(revision); lost {
		c.tally.violate(p, v)
	}
}

// Converged judges an answer after the run: it must be what Postgres holds (I5).
func (c *Checker) Converged(a Answer) {
	c.tally.swept.Add(1)
	if a.AtLeast <= a.Revision && a.Revision <= a.AtMost {
		return
	}
	s := c.shard(a.ID)
	s.mu.Lock()
	defer s.mu.Unlock()
	c.tally.violate(s.product(a.ID), Violation{
		Invariant: I5, ID: a.ID, Replica: a.Replica, Revision: a.Revision, Expected: a.AtLeast,
		Detail: fmt.Sprintf("after the run the replica answered revision %d with budget 0, Postgres has %d", a.Revision, a.AtLeast),
	})
}

// Finish judges the answers that still wait for the outcome of a write. Call it when no more writes
// end; a write that never ended counts as unknown.
func (c *Checker) Finish() {
	for i := range c.shards {
		s := &c.shards[i]
		s.mu.Lock()
		for _, p := range s.products {
			waiting := p.waiting
			p.waiting = nil
			for _, r := range waiting {
				c.judge(p, r)
			}
		}
		s.mu.Unlock()
	}
}
