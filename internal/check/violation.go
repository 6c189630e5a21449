package check

import (
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// Invariant is the promise that was broken; see the package comment for what each says.
type Invariant string

// The invariants judged here.
const (
	I1   Invariant = "I1"   // no FRESH answer older than its budget
	I2   Invariant = "I2"   // a session reads its own writes
	I3   Invariant = "I3"   // FRESH answers never go backwards
	I4   Invariant = "I4"   // no phantom
	I5   Invariant = "I5"   // replicas converge to Postgres
	Lost Invariant = "lost" // an acknowledged write is gone from Postgres
)

// Violation is one broken promise in full. Times are since the run began, in nanoseconds in JSON.
type Violation struct {
	Invariant Invariant     `json:"invariant"`
	ID        int64         `json:"id"`
	Replica   string        `json:"replica,omitempty"`
	Revision  int64         `json:"revision"` // answered; 0 = absent
	Expected  int64         `json:"expected"` // I4: the highest possible; otherwise the lowest allowed
	Fresh     bool          `json:"fresh"`
	List      bool          `json:"list,omitempty"`
	Budget    time.Duration `json:"budget_ns"`
	Invoked   time.Duration `json:"invoked_ns"`
	Returned  time.Duration `json:"returned_ns"`
	Commit    int64         `json:"commit,omitempty"` // revision that the answer should have shown
	Acked     time.Duration `json:"acked_ns,omitempty"`
	Detail    string        `json:"detail"`
}

// String is one line for an operator.
func (v Violation) String() string {
	where := "Postgres"
	if v.Replica != "" {
		where = "replica " + v.Replica
	}
	return fmt.Sprintf("%s: product %d at %s: revision %d where %d was due: %s", v.Invariant, v.ID, where, v.Revision, v.Expected, v.Detail)
}

// tally counts what the checker saw and found.
type tally struct {
	reads, fresh                    atomic.Uint64
	writes, acked, aborted, unknown atomic.Uint64
	early, foreign, swept           atomic.Uint64

	mu      sync.Mutex
	counts  map[Invariant]uint64
	excused uint64
	keep    int         // bound of kept
	kept    []Violation // the first found
}

// violate counts v against p, whose shard is locked.
func (t *tally) violate(p *product, v Violation) {
	if v.Invariant == I4 {
		p.phantoms++
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.counts == nil {
		t.counts = make(map[Invariant]uint64)
	}
	t.counts[v.Invariant]++
	if len(t.kept) < t.keep {
		t.kept = append(t.kept, v)
	}
}

// excuse withdraws the I4 verdicts of p, whose shard is locked.
func (t *tally) excuse(p *product) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if p.phantoms == 0 {
		return
	}
	t.counts[I4] -= p.phantoms
	t.excused += p.phantoms
	p.phantoms = 0
	t.kept = slices.DeleteFunc(t.kept, func(v Violation) bool { return v.Invariant == I4 && v.ID == p.id })
}
