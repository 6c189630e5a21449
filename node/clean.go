package node

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/lib/pq"

	"github.com/freshet-cache/freshet/cluster"
	"github.com/freshet-cache/freshet/tiers"
)

// Clean says which entries [Node.Clean] removes from Redis. The zero Clean is about all of the application's.
type Clean struct {
	// Namespace of the entries; "" = all namespaces. Prefix, Pattern and Invalidate need one.
	Namespace string
	// Prefix: only entities whose ids begin so. "" = whatever their ids.
	Prefix string
	// Pattern: only entities whose ids match: * stands for any characters, ? for one, and \ takes the
	// character behind it as it is. At most eight asterisks; not together with Prefix. "" = whatever their
	// ids. With neither, the results of queries are cleaned, too.
	Pattern string
	// OldGenerations: only entries of other generations than the present one, also of those that could be
	// rolled back to.
	OldGenerations bool
	// Invalidate says of each entity found that it has changed, so that no replica goes on using it, from L1
	// above all. What only some L1 holds is not found: tags and namespaces reach that. Without Prefix and
	// Pattern it is one change of the whole namespace.
	Invalidate bool
	// Rate bounds the keys that the primaries go through in a second, all together: 1 to 1,000,000, 0 =
	// 10,000.
	Rate int
	// Progress is told of each step, from the goroutine of the call; it must not take long. nil = nobody is.
	Progress func(CleanProgress)
}

// CleanProgress is how far a clean-up has come at one primary.
type CleanProgress = tiers.SweepProgress

// Cleaned is what a clean-up has done.
type Cleaned struct {
	// Scanned keys the primaries have gone through, about; Removed are gone.
	Scanned, Removed int64
	// Invalidated are the ids that were said to have changed; one may be counted twice.
	Invalidated int64
}

// sweeper is the shared tier as clean-up needs it. [*tiers.L2] is the real one.
type sweeper interface {
	Sweep(ctx context.Context, s tiers.Sweep) error
}

// Clean goes through the keys of every primary by cursor and removes the entries that c names, at a bounded
// rate, until it is done, fails or ctx ends. It saves space: nothing depends on it, and without Invalidate
// nothing becomes fresher by it. A primary that fails is tried again for 20 s, and one that takes its place is
// cleaned instead. What is written while it runs may remain. With an error, the result says what was done until
// then.
func (n *Node) Clean(ctx context.Context, c Clean) (Cleaned, error) {
	w, err := n.cleaning(c)
	if err != nil {
		return Cleaned{}, err
	}
	return w.clean(ctx)
}

// cleaning prepares what c says.
func (n *Node) cleaning(c Clean) (*cleaning, error) {
	pattern, err := c.pattern()
	if err == nil && n.sweeper == nil {
		err = errors.New("Config.Redis names no cluster: there is nothing to clean")
	}
	if err != nil {
		return nil, fmt.Errorf("node: clean: %w", err)
	}
	w := &cleaning{node: n, match: n.keys.Matching(c.Namespace, pattern), rate: c.Rate, progress: c.Progress, follow: c.OldGenerations}
	w.picks = func(p cluster.KeyParts) bool {
		return (c.Namespace == "" || p.Namespace == c.Namespace) &&
			(pattern == cluster.Pattern{} || (p.ID != "" && pattern.Match(p.ID))) &&
			(!c.OldGenerations || p.Generation != n.Generation(p.Namespace))
	}
	switch {
	case !c.Invalidate:
	case pattern == cluster.Pattern{}:
		w.whole = c.Namespace
	default:
		w.invalidate = c.Namespace
	}
	return w, nil
}

// pattern checks c and returns that of its ids.
func (c Clean) pattern() (cluster.Pattern, error) {
	var problems []error
	if c.Namespace != "" {
		problems = append(problems, cluster.CheckNamespace(c.Namespace))
	} else if c.Prefix != "" || c.Pattern != "" || c.Invalidate {
		problems = append(problems, errors.New("Clean.Namespace is empty; want that of the entities with Prefix, Pattern and Invalidate"))
	}
	if c.Prefix != "" && c.Pattern != "" {
		problems = append(problems, errors.New("Clean.Prefix and Clean.Pattern are both set; want one of them"))
	}
	if c.Rate < 0 || c.Rate > tiers.MaxSweepRate {
		problems = append(problems, fmt.Errorf("Clean.Rate is %d; want 1 to %d keys per second, or 0 for the default", c.Rate, tiers.MaxSweepRate))
	}
	var p cluster.Pattern
	var err error
	switch {
	case c.Prefix != "":
		p, err = cluster.PrefixPattern(c.Prefix)
	case c.Pattern != "":
		p, err = cluster.ParsePattern(c.Pattern)
	}
	return p, errors.Join(append(problems, err)...)
}

// cleaning is a clean-up under way.
type cleaning struct {
	node       *Node
	match      string // glob of the keys
	picks      func(cluster.KeyParts) bool
	invalidate string // namespace whose ids found are said to have changed; "" = none
	whole      string // namespace that is said to have changed as a whole, before; "" = none
	follow     bool   // it needs to know the present generations
	rate       int
	progress   func(CleanProgress)

	done Cleaned
	last CleanProgress // of the present primary
}

// clean does it all.
func (w *cleaning) clean(ctx context.Context) (Cleaned, error) {
	if w.whole != "" {
		if _, err := w.node.InvalidateNamespace(ctx, w.whole); err != nil {
			return Cleaned{}, err
		}
	}
	if w.follow {
		w.node.follow(ctx)
	}
	return w.run(ctx)
}

func (w *cleaning) run(ctx context.Context) (Cleaned, error) {
	err := w.node.sweeper.Sweep(ctx, tiers.Sweep{Match: w.match, Rate: w.rate, Take: w.take, Progress: w.advance})
	if err != nil {
		return w.done, fmt.Errorf("node: clean: %w", err)
	}
	return w.done, nil
}

// advance counts what a step has done.
func (w *cleaning) advance(p CleanProgress) {
	if p.Primary != w.last.Primary || p.Scanned < w.last.Scanned || p.Removed < w.last.Removed { // a new way through one
		w.last = CleanProgress{}
	}
	w.done.Scanned += p.Scanned - w.last.Scanned
	w.done.Removed += p.Removed - w.last.Removed
	w.node.counts.cleaned.Add(uint64(p.Removed - w.last.Removed))
	w.last = p
	if w.progress != nil {
		w.progress(p)
	}
}

// take returns which of the keys go. Leases are left to their time.
func (w *cleaning) take(ctx context.Context, keys []string) (taken []string, err error) {
	if w.node.isClosed() {
		return nil, ErrClosed
	}
	var ids []string
	for _, key := range keys {
		p, err := cluster.ParseKey(key)
		if err != nil || p.App != w.node.config.App || p.Lease || !w.picks(p) {
			continue
		}
		taken = append(taken, key)
		if p.ID != "" && !slices.Contains(ids, p.ID) {
			ids = append(ids, p.ID)
		}
	}
	if w.invalidate == "" || len(ids) == 0 {
		return taken, nil
	}
	if _, err := w.node.Invalidate(ctx, w.invalidate, ids); err != nil {
		return nil, err
	}
	w.done.Invalidated += int64(len(ids))
	return taken, nil
}

func (n *Node) isClosed() bool {
	n.mu.RLock()
	defer n.mu.RUnlock()
	return n.closed
}

const (
	// generationsEvery is the time between two looks for generations whose entries can go.
	generationsEvery = time.Minute
	// generationsLease is how long the replica that removes them is waited for, once it falls silent.
	generationsLease = time.Minute
)

// staying says which generations of a namespace keep their entries, of those up to a highest.
type staying struct {
	highest uint32
	numbers []uint32
}

// cleanGenerations is the duty that removes the entries of generations which have not been current for as long
// as the log remembers: what they hold could not be used any more if they came back.
func (n *Node) cleanGenerations(ctx context.Context) error {
	by := fmt.Sprintf("%s %x", n.id, n.boot)
	claim := func() (stay map[string]staying, upto int64, err error) {
		var rows []struct {
			Namespace string        `db:"namespace"`
			Highest   uint32        `db:"highest"`
			Stay      pq.Int64Array `db:"stay"`
			Upto      int64         `db:"upto"`
		}
		err = n.db.SelectContext(ctx, &rows,
			`select * from freshet.claim_generation_cleaning(make_interval(secs => $1), $2, make_interval(secs => $3))`,
			n.config.retention().Seconds(), by, generationsLease.Seconds())
		stay = map[string]staying{}
		for _, r := range rows {
			s := staying{highest: r.Highest}
			for _, number := range r.Stay {
				s.numbers = append(s.numbers, uint32(number))
			}
			stay[r.Namespace], upto = s, r.Upto
		}
		return stay, upto, err
	}
	stay, upto, err := claim()
	if err != nil || len(stay) == 0 {
		return err // nothing to do, or another does it
	}
	gone := func(namespace string, number, present uint32) bool {
		s, ok := stay[namespace]
		return ok && number != present && number <= s.highest && !slices.Contains(s.numbers, number)
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	claimed := time.Now()
	w := cleaning{node: n, match: n.keys.Matching("", cluster.Pattern{}), rate: n.config.Redis.CleanRate}
	w.picks = func(p cluster.KeyParts) bool {
		present := n.Generation(p.Namespace)
		return gone("", p.Generation.Global, present.Global) || gone(p.Namespace, p.Generation.Namespace, present.Namespace)
	}
	w.progress = func(CleanProgress) {
		if time.Since(claimed) < generationsLease/4 {
			return
		}
		claimed = time.Now()
		if still, _, err := claim(); err != nil || len(still) == 0 {
			cancel(errors.Join(errors.New("node: the right to remove old generations is lost"), err))
		}
	}
	done, err := w.run(ctx)
	var end *int64
	if err == nil {
		end = &upto
		n.log.Info("node: entries of old generations are removed", "removed", done.Removed, "scanned", done.Scanned)
	}
	// Also when the node closes: another takes over at once.
	ending, stop := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
	defer stop()
	_, err2 := n.db.ExecContext(ending, `select freshet.end_generation_cleaning($1, $2)`, by, end)
	return errors.Join(err, err2)
}
