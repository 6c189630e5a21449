package coherence_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/freshet-cache/freshet/cluster"
	"github.com/freshet-cache/freshet/coherence"
	"github.com/freshet-cache/freshet/coherence/logtest"
	"github.com/freshet-cache/freshet/internal/devstack/stacktest"
)

// startTracker makes a tracker that the test closes.
func startTracker(t testing.TB, c coherence.TrackerConfig) *coherence.Tracker {
	t.Helper()
	if c.Boot == 0 {
		c.Boot = 1
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	tracker := coherence.NewTracker(c)
	t.Cleanup(func() {
		if err := tracker.Close(); err != nil {
			t.Error(err)
		}
	})
	return tracker
}

// barrier waits for one barrier.
func barrier(t testing.TB, tracker *coherence.Tracker) *coherence.Poll {
	t.Helper()
	p, err := tracker.Barrier(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// barriers calls so many barriers at once and wants all to come back.
func barriers(t testing.TB, tracker *coherence.Tracker, n int) {
	t.Helper()
	var g sync.WaitGroup
	start := make(chan struct{})
	for range n {
		g.Go(func() {
			<-start
			if _, err := tracker.Barrier(t.Context()); err != nil {
				t.Error(err)
			}
		})
	}
	close(start)
	g.Wait()
}

var errAway = errors.New("the log is away")

// failing is a log that is always away.
type failing struct{}

func (failing) Poll(context.Context, coherence.Snapshot, int) (coherence.PollResult, error) {
	return coherence.PollResult{}, errAway
}
func (failing) Renew(context.Context, uint64) error              { return errAway }
func (failing) Trim(context.Context, time.Duration) (int, error) { return 0, errAway }
func (failing) Close() error                                     { return nil }

// pass lets the virtual time of a test's bubble go by.
func pass(d time.Duration) {
	time.Sleep(d) //nolint:forbidigo // inside testing/synctest
}

const interval = 250 * time.Millisecond // the default

// Polls are an interval apart, within a fifth of it, and cost nothing in between.
func TestTrackerInterval(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		log := logtest.NewMemory()
		tracker := startTracker(t, coherence.TrackerConfig{Log: log})
		synctest.Wait()
		if log.Polls() != 1 || tracker.Latest() == nil {
			t.Fatalf("%d polls at the start, latest %v; want one at once", log.Polls(), tracker.Latest())
		}
		shortest, longest := time.Hour, time.Duration(0)
		last, polls := tracker.Now(), 1
		for polls < 500 {
			pass(time.Millisecond)
			synctest.Wait()
			if n := log.Polls(); n != polls {
				if n != polls+1 {
					t.Fatalf("%d polls within a millisecond", n-polls)
				}
				apart := tracker.Now().Sub(last)
				shortest, longest = min(shortest, apart), max(longest, apart)
				last, polls = tracker.Now(), n
			}
		}
		if shortest < interval*4/5 || longest > interval*6/5+time.Millisecond || longest-shortest < interval/4 {
			t.Errorf("polls are %v to %v apart, want %v within a fifth", shortest, longest, interval)
		}
	})
}

// While polls fail they are tried again with pauses that grow, never more than an interval apart, and
// never in a loop however many barriers wait; the first that works counts at once.
func TestTrackerBackoff(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		log := logtest.NewMemory()
		log.Fail(errAway)
		tracker := startTracker(t, coherence.TrackerConfig{Log: log})
		if _, err := tracker.Barrier(t.Context()); !errors.Is(err, errAway) {
			t.Errorf("barrier: %v, want why the poll failed", err)
		}
		if tracker.Latest() != nil || !tracker.Failing() {
			t.Error("something is proven without a poll")
		}
		before, start := log.Polls(), tracker.Now()
		failed := 0
		for tracker.Now().Sub(start) < 10*time.Second {
			wait := tracker.Now()
			if _, err := tracker.Barrier(t.Context()); err == nil {
				t.Fatal("a barrier passed")
			}
			if took := tracker.Now().Sub(wait); took > interval*6/5 {
				t.Errorf("a barrier took %v to fail", took)
			}
			failed++
		}
		if polls := log.Polls() - before; polls > 10*5+6 || polls < 10*3 {
			t.Errorf("%d polls in 10 s of failure, want about %d", polls, 10*4)
		}
		log.Fail(nil)
		barrier(t, tracker)
		if tracker.Failing() || tracker.Latest() == nil {
			t.Error("still failing")
		}
		if s := tracker.Stats(); s.PollErrors < uint64(failed) || s.Polls != 1 {
			t.Errorf("stats %+v after %d failed barriers", s, failed)
		}
	})
}

// Sent is a moment before the poll looked, and the latest poll stays the latest while polls are away.
func TestTrackerSent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		log := logtest.NewMemory()
		log.Delay(30 * time.Millisecond)
		tracker := startTracker(t, coherence.TrackerConfig{Log: log})
		barrier(t, tracker)
		for range 20 {
			called := tracker.Now()
			p := barrier(t, tracker)
			if p.Sent < called || tracker.Now().Sub(p.Sent) != 30*time.Millisecond {
				t.Errorf("barrier called at %v, back at %v, poll sent at %v", called, tracker.Now(), p.Sent)
			}
		}
		last := tracker.Latest()
		log.Fail(errAway)
		pass(time.Minute)
		if tracker.Latest() != last {
			t.Error("the latest poll changed while polls fail")
		}
		if age := tracker.Now().Sub(tracker.Latest().Sent); age < time.Minute {
			t.Errorf("its age is %v", age)
		}
	})
}

// Every caller gets a poll that was sent after its call, and shares it.
func TestTrackerBarrierShares(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		log := logtest.NewMemory()
		log.Delay(10 * time.Millisecond)
		tracker := startTracker(t, coherence.TrackerConfig{Log: log})
		barrier(t, tracker)
		before := log.Polls()
		barriers(t, tracker, 1000)
		if polls := log.Polls() - before; polls > 2 {
			t.Errorf("1000 barriers at once took %d polls", polls)
		}

		// One that comes while a poll is on its way waits for the next.
		first := make(chan struct{})
		go func() { defer close(first); barrier(t, tracker) }()
		synctest.Wait()
		pass(time.Millisecond)
		xid := log.Commit(coherence.Entity("n", "1"))
		if p := barrier(t, tracker); !p.Sees(xid) {
			t.Errorf("a barrier called after the commit of %d got the poll at %s", xid, p)
		}
		<-first

		// One that gives up hurts nobody.
		ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
		defer cancel()
		if _, err := tracker.Barrier(ctx); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("barrier with a deadline: %v", err)
		}
	})
}

// Events that ask for polls get them soon, and never without pause between them.
func TestTrackerHurry(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		log := logtest.NewMemory()
		tracker := startTracker(t, coherence.TrackerConfig{Log: log, Interval: time.Second})
		barrier(t, tracker)
		pass(500 * time.Millisecond)
		synctest.Wait()
		before := log.Polls()
		tracker.Observe(coherence.HintsMissed{})
		synctest.Wait()
		if log.Polls() != before+1 {
			t.Errorf("%d polls at once after a gap, want 1", log.Polls()-before)
		}
		before = log.Polls()
		for range 1000 {
			tracker.Observe(coherence.HintsMissed{})
			pass(time.Millisecond)
		}
		if polls := log.Polls() - before; polls < 9 || polls > 11 {
			t.Errorf("%d polls in a second of gaps, want 10", polls)
		}
	})
}

// A poll that brings too much in its time is asked for less, and then nothing older counts.
func TestTrackerNeverCatchesUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		log := &narrow{Memory: logtest.NewMemory(), most: 5000}
		tracker := startTracker(t, coherence.TrackerConfig{Log: log})
		barrier(t, tracker)
		old := log.Snapshot()
		tx := log.Begin()
		for i := range 100_000 {
			tx.Change(coherence.Entity("n", fmt.Sprint(i)))
		}
		tx.Commit()
		pass(5 * time.Second)
		p := tracker.Latest()
		if !p.Sees(tx.XID()) || tracker.Failing() {
			t.Fatalf("still at %s after 5 s", p)
		}
		if tracker.Valid(0, []coherence.ScopeHash{coherence.Entity("n", "7").Hash()}, old) {
			t.Error("a value from before the changes is valid")
		}
		if s := tracker.Stats(); s.Flushes != 1 {
			t.Errorf("%d flushes, want 1", s.Flushes)
		}
	})
}

// narrow is a log that times out when it is asked for more than it can bring.
type narrow struct {
	*logtest.Memory
	most int
}

func (n *narrow) Poll(ctx context.Context, since coherence.Snapshot, limit int) (coherence.PollResult, error) {
	r, err := n.Memory.Poll(ctx, since, limit)
	if len(r.Changes) > n.most {
		return coherence.PollResult{}, fmt.Errorf("poll: %w", os.ErrDeadlineExceeded)
	}
	return r, err
}

// Readers learn of changes by stamps before the poll that brought them becomes the latest, and of own
// writes when Observe returns.
func TestTrackerStamps(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		log := logtest.NewMemory()
		tracker := startTracker(t, coherence.TrackerConfig{Log: log})
		barrier(t, tracker)
		scopes := []coherence.ScopeHash{
			coherence.View("n", "1", "detail").Hash(), coherence.Entity("n", "1").Hash(), coherence.Tag("t").Hash(),
			coherence.Namespace("n").Hash(), coherence.Everything().Hash(),
		}
		set := coherence.StampsOf(scopes)
		sum := func() uint64 { return tracker.Stamps().Sum(&set) }
		for _, scope := range []coherence.Scope{
			coherence.View("n", "1", "detail"), coherence.Entity("n", "1"), coherence.Tag("t"), coherence.Namespace("n"), coherence.Everything(),
		} {
			value := log.Snapshot()
			before := sum()
			xid := log.Commit(scope)
			if sum() != before || !tracker.Valid(0, scopes, value) {
				t.Errorf("%s: known before it was told", scope)
			}
			tracker.Observe(coherence.Wrote{Timeline: 1, XID: xid, Scopes: []coherence.ScopeHash{scope.Hash()}})
			if sum() == before || tracker.Valid(0, scopes, value) || !tracker.Valid(0, scopes, log.Snapshot()) {
				t.Errorf("%s: an own write is not known", scope)
			}
			before, value = sum(), log.Snapshot()
			log.Commit(scope)
			barrier(t, tracker)
			if sum() == before || tracker.Valid(0, scopes, value) || !tracker.Valid(0, scopes, log.Snapshot()) {
				t.Errorf("%s: a polled change is not known", scope)
			}
		}
		before := sum()
		log.Commit(coherence.Entity("n", "2"), coherence.Tag("u"))
		barrier(t, tracker)
		if sum() != before {
			t.Error("the change of another entity shows in the stamps")
		}
		log.Crash()
		barrier(t, tracker)
		if sum() == before {
			t.Error("a flush does not show in the stamps")
		}
	})
}

// What a poll is the first to tell of has its delay counted, from the poll before; what was told before has not.
func TestTrackerLag(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		log := logtest.NewMemory()
		tracker := startTracker(t, coherence.TrackerConfig{Log: log, Interval: time.Minute})
		log.Commit(coherence.Entity("n", "0"))
		barrier(t, tracker) // the first poll: how long ago that was nobody knows
		const gap = 3 * time.Second
		pass(gap)
		told := log.Commit(coherence.Entity("n", "1"))
		tracker.Observe(coherence.Wrote{Timeline: 1, XID: told, Scopes: []coherence.ScopeHash{coherence.Entity("n", "1").Hash()}})
		log.Commit(coherence.Entity("n", "2"), coherence.Tag("t"))
		barrier(t, tracker)
		if lag := tracker.Stats().Lag; lag.Count() != 2 || lag.Sum != 2*gap {
			t.Errorf("%d changes with %v of delay; want 2 with %v each", lag.Count(), lag.Sum, gap)
		}
	})
}

// A transaction that commits after later ones is not lost.
func TestTrackerLateCommit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		log := logtest.NewMemory()
		tracker := startTracker(t, coherence.TrackerConfig{Log: log})
		late := log.Begin()
		late.Change(coherence.Entity("n", "1"))
		log.Commit(coherence.Entity("n", "2"))
		before := barrier(t, tracker)
		late.Commit()
		barrier(t, tracker)
		scopes := []coherence.ScopeHash{coherence.Entity("n", "1").Hash()}
		if tracker.Valid(0, scopes, before.Snapshot) || !tracker.Valid(0, scopes, log.Snapshot()) {
			t.Errorf("a poll at %s and one after transaction %d: the value before is valid %t, the one after %t", before, late.XID(),
				tracker.Valid(0, scopes, before.Snapshot), tracker.Valid(0, scopes, log.Snapshot()))
		}
	})
}

// After an own write of which nothing is known but that it may have committed, nothing is proven until
// a poll that was sent later.
func TestTrackerUnproven(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tracker := startTracker(t, coherence.TrackerConfig{Log: logtest.NewMemory()})
		barrier(t, tracker)
		tracker.Observe(coherence.Wrote{Scopes: []coherence.ScopeHash{coherence.Entity("n", "1").Hash()}})
		if p := tracker.Latest(); p != nil {
			t.Errorf("the poll at %s from before the write still counts", p)
		}
		if p := barrier(t, tracker); tracker.Latest() != p {
			t.Errorf("latest %v, want the poll after the write", tracker.Latest())
		}
	})
}

// A flush shows to readers of stamps, also when no change of the log does.
func TestTrackerFlush(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		log := logtest.NewMemory()
		tracker := startTracker(t, coherence.TrackerConfig{Log: log})
		barrier(t, tracker)
		set := coherence.StampsOf([]coherence.ScopeHash{coherence.Entity("n", "1").Hash(), coherence.Tag("t").Hash()})
		before := tracker.Stamps().Sum(&set)
		log.Crash()
		barrier(t, tracker)
		if tracker.Stamps().Sum(&set) == before {
			t.Error("the sum of the stamps is as before")
		}
	})
}

// Other generations are known, and show to those who hit L1 without a lock, by the poll that brings them;
// a hint brings that poll.
func TestTrackerGenerations(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		log := logtest.NewMemory()
		tracker := startTracker(t, coherence.TrackerConfig{Log: log, Interval: time.Minute})
		if g := tracker.Generations().Of("n"); g != cluster.FirstGeneration() {
			t.Errorf("generation %v before the first poll", g)
		}
		poll := barrier(t, tracker)
		set := coherence.StampsOf([]coherence.ScopeHash{coherence.Entity("n", "1").Hash()})
		before := tracker.Stamps().Sum(&set)
		xid := log.SetGeneration("n", 2)
		if g := tracker.Generations().Of("n"); g != cluster.FirstGeneration() || tracker.Stamps().Sum(&set) != before {
			t.Errorf("generation %v before a poll", g)
		}
		tracker.Observe(coherence.HintHeard{Hint: coherence.Hint{
			Boot: 2, Seq: 1, Timeline: poll.Timeline, XID: xid, Scopes: []coherence.ScopeHash{coherence.AllGenerations().Hash()},
		}})
		pass(10 * time.Second) // a part of the interval
		if g := tracker.Generations().Of("n"); g != (cluster.Generation{Global: 1, Namespace: 2}) {
			t.Errorf("generation %v after a hint", g)
		}
		if tracker.Stamps().Sum(&set) == before {
			t.Error("the sum of the stamps is as before")
		}
		before = tracker.Stamps().Sum(&set)
		barrier(t, tracker)
		if tracker.Stamps().Sum(&set) != before {
			t.Error("a poll that brings nothing new flushes")
		}
		if s := tracker.Stats(); s.Regenerations != 2 {
			t.Errorf("%d polls brought other generations, want the first and another", s.Regenerations)
		}
	})
}

// What was served under a newer snapshot than the latest poll's is not gone behind.
func TestTrackerAdmit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		log := logtest.NewMemory()
		tracker := startTracker(t, coherence.TrackerConfig{Log: log})
		barrier(t, tracker)
		scope := coherence.Entity("n", "1").Hash()
		scopes := []coherence.ScopeHash{scope}
		old := log.Snapshot()
		log.Commit(coherence.Entity("n", "1"))
		if !tracker.Admit(scope, scopes, log.Snapshot()) {
			t.Fatal("a value newer than the latest poll is refused")
		}
		if tracker.Valid(scope, scopes, old) || tracker.Admit(scope, scopes, old) {
			t.Error("the value before it is valid after it")
		}
		if tracker.Valid(scope, nil, coherence.Snapshot{}) || tracker.Valid(scope, nil, coherence.Snapshot{Timeline: 9, Xmin: 1e9, Xmax: 1e9}) {
			t.Error("a value of no timeline or another is valid when it has no scopes")
		}
	})
}

// A tracker survives whatever the log's history does: a crash, being put back, a new timeline that
// another node began.
func TestTrackerTimelines(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		log := logtest.NewMemory()
		tracker := startTracker(t, coherence.TrackerConfig{Log: log})
		scope := coherence.Entity("n", "1")
		value := barrier(t, tracker).Snapshot
		for i := range 5 {
			lost := log.Begin()
			if i%2 == 0 {
				log.Crash()
			} else if err := log.Renew(t.Context(), value.Timeline); err != nil {
				t.Fatal(err)
			}
			lost.Commit()
			xid := log.Commit(scope)
			p := barrier(t, tracker)
			if p.Timeline == value.Timeline || !p.Sees(xid) || tracker.Valid(scope.Hash(), []coherence.ScopeHash{scope.Hash()}, value) {
				t.Errorf("after timeline %d: poll %s, its value valid %t", value.Timeline, p, tracker.Valid(scope.Hash(), nil, value))
			}
			value = log.Snapshot()
			if !tracker.Valid(scope.Hash(), []coherence.ScopeHash{scope.Hash()}, value) {
				t.Error("a value of the new timeline is not valid")
			}
		}
		if s := tracker.Stats(); s.Flushes != 5 {
			t.Errorf("%d flushes, want 5", s.Flushes)
		}
	})
}

// The log is trimmed while the tracker polls, slowly when there is little to do.
func TestTrackerTrims(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		log := logtest.NewMemory()
		tracker := startTracker(t, coherence.TrackerConfig{Log: log, Retention: time.Minute})
		for range 300 {
			log.Commit(coherence.Entity("n", "1"))
			pass(time.Second)
		}
		r, err := log.Poll(t.Context(), coherence.Snapshot{}, 1000)
		if err != nil || len(r.Changes) > 130 || len(r.Changes) < 59 {
			t.Errorf("%d changes in the log after 5 minutes of one per second, %v; want those of 1 to 2 minutes", len(r.Changes), err)
		}
		if s := tracker.Stats(); s.Flushes != 0 || s.PollErrors != 0 {
			t.Errorf("stats %+v", s)
		}
	})
}

func TestTrackerClose(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		log := logtest.NewMemory()
		log.Delay(time.Second)
		tracker := coherence.NewTracker(coherence.TrackerConfig{Log: log, Boot: 1, Logger: slog.New(slog.DiscardHandler)})
		var g sync.WaitGroup
		for range 10 {
			g.Go(func() {
				if _, err := tracker.Barrier(t.Context()); !errors.Is(err, coherence.ErrTrackerClosed) {
					t.Errorf("barrier of a tracker that closes: %v", err)
				}
			})
		}
		synctest.Wait()
		for range 3 {
			g.Go(func() {
				if err := tracker.Close(); err != nil {
					t.Error(err)
				}
			})
		}
		g.Wait()
		if _, err := tracker.Barrier(t.Context()); !errors.Is(err, coherence.ErrTrackerClosed) {
			t.Errorf("barrier of a closed tracker: %v", err)
		}
		tracker.Observe(coherence.HintsMissed{})
		if tracker.Latest() != nil {
			t.Error("a closed tracker proves something")
		}
	})
}

// A commit that was acknowledged before the call is in the barrier's poll, on the real thing.
func TestTrackerBarrierPostgres(t *testing.T) {
	db, dsn := database(t)
	tracker := startTracker(t, coherence.TrackerConfig{Log: openLog(t, dsn, 5*time.Second)})
	barrier(t, tracker)
	long := begin(t, db)
	run(t, long, `select freshet.invalidate('p', 'long')`)
	var writes, checked atomic.Int64
	var g sync.WaitGroup
	for w := range 4 {
		g.Go(func() {
			for i := range 50 {
				var xid uint64
				id := fmt.Sprintf("%d-%d", w, i)
				err := db.GetContext(t.Context(), &xid, `select pg_current_xact_id()::text::bigint from freshet.invalidate('p', $1)`, id)
				if err != nil {
					t.Error(err)
					return
				}
				writes.Add(1)
				called := tracker.Now()
				p, err := tracker.Barrier(t.Context())
				if err != nil {
					t.Error(err)
					return
				}
				if !p.Sees(xid) || p.Sent < called {
					t.Errorf("barrier called after the commit of %d: poll at %s", xid, p)
				}
				before := coherence.Snapshot{Timeline: p.Timeline, Xmin: xid, Xmax: xid}
				if tracker.Valid(0, []coherence.ScopeHash{coherence.Entity("p", id).Hash()}, before) {
					t.Errorf("the change of %s is not known after the barrier", id)
				}
				checked.Add(1)
			}
		})
	}
	g.Wait()
	commit(t, long)
	p := barrier(t, tracker)
	if len(p.Xip) > 0 && tracker.Valid(0, []coherence.ScopeHash{coherence.Entity("p", "long").Hash()}, coherence.Snapshot{Timeline: p.Timeline, Xmin: 1, Xmax: 1}) {
		t.Error("the long transaction's change is not known")
	}
	polls := tracker.Stats().Polls
	barriers(t, tracker, 1000)
	if n := tracker.Stats().Polls - polls; n > 20 {
		t.Errorf("1000 concurrent barriers took %d polls, want at most 20", n)
	}
}

// A tracker whose Postgres goes away says so at once, and works again by itself.
func TestTrackerPostgresDown(t *testing.T) {
	db, dsn := database(t)
	postgres := stacktest.Stack().Postgres
	tracker := startTracker(t, coherence.TrackerConfig{Log: openLog(t, dsn, time.Second), Interval: 50 * time.Millisecond})
	first := barrier(t, tracker)
	if err := postgres.Stop(); err != nil {
		t.Fatal(err)
	}
	for range 5 {
		start := time.Now()
		_, err := tracker.Barrier(t.Context())
		if took := time.Since(start); err == nil || took > 500*time.Millisecond {
			t.Errorf("barrier without Postgres: %v after %v", err, took)
		}
	}
	if latest := tracker.Latest(); latest == nil || !latest.Includes(first.Snapshot) {
		t.Errorf("latest poll %v while Postgres is away", latest)
	}
	if err := postgres.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	do(t, db, `select freshet.invalidate('p', '1')`)
	for ctx := t.Context(); ; {
		p, err := tracker.Barrier(ctx)
		if err != nil {
			continue
		}
		if p.Timeline != first.Timeline || !p.Includes(first.Snapshot) {
			t.Errorf("after a clean restart %s, before %s", p, first)
		}
		break
	}
	if tracker.Valid(0, []coherence.ScopeHash{coherence.Entity("p", "1").Hash()}, first.Snapshot) {
		t.Error("a change made after the restart is not known")
	}
	if tracker.Failing() {
		t.Error("still failing")
	}
}
