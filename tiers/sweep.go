package tiers

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/redis/rueidis"

	"github.com/freshet-cache/freshet/cluster"
)

// Sweep is one way through the keys of all primaries, by cursor.
type Sweep struct {
	// Match is a glob, as of SCAN: keys that do not match are not looked at; empty = all are.
	Match string
	// Rate bounds the keys that the primaries go through in a second, all together, those included that do
	// not match; 1 to [MaxSweepRate], 0 = [DefaultSweepRate].
	Rate int
	// Take returns those of the keys that are to go. An error ends the sweep. Required.
	Take func(ctx context.Context, keys []string) ([]string, error)
	// Progress is told of each step; it must not take long. nil = nobody is.
	Progress func(SweepProgress)
}

// SweepProgress is how far a sweep has come at one primary.
type SweepProgress struct {
	Primary string // host:port
	// Keys were at the primary when the sweep came to it, and about so many it has gone through by now.
	Keys, Scanned int64
	// Matched were given to Take, and Removed are those that it took. One may be counted twice.
	Matched, Removed int64
	Done             bool
	// Err is why the last step failed, which is tried again; nil = it did not.
	Err error
}

// Bounds of [Sweep.Rate].
const (
	DefaultSweepRate = 10_000
	MaxSweepRate     = 1_000_000
)

const (
	// A step of a sweep goes through so many keys at most; Redis serves nobody else meanwhile. A slower
	// sweep takes smaller steps, about sweepSteps in a second.
	maxSweepStep, sweepSteps = 500, 20
	// sweepRetry is how long it waits after a step that failed.
	sweepRetry = 200 * time.Millisecond
	// sweepPatience is for how long a primary may fail before the sweep goes on without it: a failover
	// takes less.
	sweepPatience = 20 * time.Second
	// maxSweepWalks bounds how often a sweep goes to a primary, for slots that keep moving.
	maxSweepWalks = 1000
)

// Sweep goes through the keys of every primary and removes those that Take returns, until it is done or
// ctx ends. Each step is a call like any other, under the shard's breaker and within Timeout; a step that
// fails is tried again. It follows the topology: what another primary has come to serve meanwhile is swept
// there, from its beginning. It does not promise to find a key that was written, or moved between primaries,
// while it ran. Keys may be given to Take twice. The error says which primaries could not be swept.
func (l *L2) Sweep(ctx context.Context, s Sweep) error {
	if s.Take == nil {
		return errors.New("tiers: Sweep.Take is nil; want what is to go")
	}
	if s.Rate < 0 || s.Rate > MaxSweepRate {
		return fmt.Errorf("tiers: Sweep.Rate is %d; want 1 to %d keys per second, or 0 for the default", s.Rate, MaxSweepRate)
	}
	s.Rate = cmp.Or(s.Rate, DefaultSweepRate)
	w := sweeper{l2: l, sweep: s, failed: map[*shard]error{}}
	return w.run(ctx)
}

// sweeper is a sweep under way.
type sweeper struct {
	l2     *L2
	sweep  Sweep
	swept  [cluster.Slots]bool // slot -> a primary has been swept that served it all the time
	failed map[*shard]error    // given up
}

func (w *sweeper) run(ctx context.Context) error {
	for since, walks := time.Now(), 0; walks < maxSweepWalks; {
		t := w.l2.topology.Load()
		if len(t.shards) == 0 && time.Since(since) < sweepPatience && ctx.Err() == nil {
			pause(ctx, sweepRetry)
			continue
		}
		next := w.next(t)
		if next == nil {
			break
		}
		walks++
		if err := w.walk(ctx, t, next); err != nil {
			return err
		}
	}
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("tiers: sweep: %w", context.Cause(ctx))
	}
	return w.leftOut()
}

// errMoving is why a primary was left out that did not fail.
var errMoving = errors.New("its slots keep moving")

// leftOut is the error of a sweep that has come to its end: who serves slots that were not swept.
func (w *sweeper) leftOut() error {
	t := w.l2.topology.Load()
	var out []*shard // nil = nobody
	var problems []error
	for slot := range uint16(cluster.Slots) {
		s := t.shard(slot)
		if w.swept[slot] || slices.Contains(out, s) {
			continue
		}
		out = append(out, s)
		if s == nil {
			problems = append(problems, fmt.Errorf("tiers: sweep: %w", t.noShard()))
		} else {
			problems = append(problems, fmt.Errorf("tiers: sweep: %s is left out: %w", s.address, cmp.Or(w.failed[s], errMoving)))
		}
	}
	return errors.Join(problems...)
}

// next is a primary that serves a slot which has not been swept; nil = there is none.
func (w *sweeper) next(t *topology) *shard {
	for slot := range uint16(cluster.Slots) {
		if s := t.shard(slot); !w.swept[slot] && s != nil && w.failed[s] == nil {
			return s
		}
	}
	return nil
}

// walk goes through one primary. An error ends the sweep.
func (w *sweeper) walk(ctx context.Context, before *topology, s *shard) error {
	p := SweepProgress{Primary: s.address}
	step := max(1, min(maxSweepStep, w.sweep.Rate/sweepSteps))
	var cursor uint64
	var failing time.Time // since when; zero = it is not
	for !p.Done {
		if ctx.Err() != nil {
			return fmt.Errorf("tiers: sweep: %w", context.Cause(ctx))
		}
		keys, next, err := w.scan(ctx, s, cursor, step, &p)
		if err == nil && len(keys) > 0 {
			taken, err2 := w.sweep.Take(ctx, keys)
			if err2 != nil {
				return fmt.Errorf("tiers: sweep: %w", err2)
			}
			if err = w.l2.Unlink(ctx, taken...); err == nil {
				p.Removed += int64(len(taken))
			}
		}
		p.Err = err
		wait := time.Duration(step) * time.Second / time.Duration(w.sweep.Rate)
		if err == nil {
			cursor, failing = next, time.Time{}
			p.Done = next == 0
		} else if wait = max(wait, sweepRetry); failing.IsZero() {
			failing = time.Now()
		}
		if w.sweep.Progress != nil {
			w.sweep.Progress(p)
		}
		if err != nil && w.l2.topology.Load().at(s.address) != s {
			return nil // it is no primary any more: the others are swept
		}
		if err != nil && time.Since(failing) > sweepPatience {
			w.failed[s] = err
			return nil
		}
		if !p.Done {
			pause(ctx, wait)
		}
	}
	after := w.l2.topology.Load()
	for slot := range uint16(cluster.Slots) {
		if before.shard(slot) == s && after.shard(slot) == s {
			w.swept[slot] = true
		}
	}
	return nil
}

// scan does one step at the primary: about so many keys from the cursor on.
func (w *sweeper) scan(ctx context.Context, s *shard, cursor uint64, count int, p *SweepProgress) (keys []string, next uint64, err error) {
	step := request{shard: s, build: func(b rueidis.Builder) rueidis.Completed {
		scan := b.Scan().Cursor(cursor)
		if w.sweep.Match == "" {
			return scan.Count(int64(count)).Build()
		}
		return scan.Match(w.sweep.Match).Count(int64(count)).Build()
	}}
	size := request{shard: s, build: func(b rueidis.Builder) rueidis.Completed { return b.Dbsize().Build() }}
	d := w.l2.deadlines.start(ctx, w.l2.config.timeout())
	defer w.l2.deadlines.end(d)
	if err := s.send(d, []*request{&step, &size}); err != nil { //nolint:contextcheck // d is the context
		return nil, 0, err
	}
	if err := step.failure(); err != nil {
		return nil, 0, err
	}
	entry, err := step.reply.AsScanEntry()
	if err != nil {
		return nil, 0, fmt.Errorf("tiers: L2: SCAN: %w", err)
	}
	if cursor == 0 && p.Keys == 0 {
		p.Keys, _ = size.reply.AsInt64()
	}
	p.Scanned += int64(count)
	p.Matched += int64(len(entry.Elements))
	return entry.Elements, entry.Cursor, nil
}
