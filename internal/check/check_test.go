package check_test

import (
	"fmt"
	"maps"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/freshet-cache/freshet/internal/check"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const ms = time.Millisecond

// started is a checker with the products 1..9, each at revision 10.
func started(t testing.TB, c check.Config) *check.Checker {
	t.Helper()
	k, err := check.New(c)
	if err != nil {
		t.Fatal(err)
	}
	for id := range int64(9) {
		if err := k.Declare(id+1, 10); err != nil {
			t.Fatal(err)
		}
	}
	return k
}

// fresh is a FRESH answer of replica a, one millisecond long, within the default budget.
func fresh(id, revision int64, invoked time.Duration) check.Read {
	return check.Read{ID: id, Revision: revision, Fresh: true, Budget: time.Second, Replica: "a", Invoked: invoked, Returned: invoked + ms}
}

// Every kind of broken promise is found, and its nearest lawful neighbour is not.
func TestVerdicts(t *testing.T) {
	// commit is an update of product 1 that takes 10 ms.
	commit := func(k *check.Checker, revision int64, sent time.Duration) {
		k.Begin(1, revision, sent).Acked(revision, sent+10*ms)
	}
	with := func(r check.Read, change func(*check.Read)) check.Read { change(&r); return r }
	tests := []struct {
		name string
		run  func(k *check.Checker)
		want map[check.Invariant]uint64
	}{
		{"as declared", func(k *check.Checker) { k.Observe(fresh(1, 10, 0)) }, nil},
		{"an unknown product is absent", func(k *check.Checker) { k.Observe(fresh(99, 0, 0)) }, nil},
		{"I1: behind by the budget and a bit", func(k *check.Checker) {
			commit(k, 11, 0)
			k.Observe(fresh(1, 10, 1010*ms+1))
		}, map[check.Invariant]uint64{check.I1: 1}},
		{"behind by no more than the budget", func(k *check.Checker) {
			commit(k, 11, 0)
			k.Observe(fresh(1, 10, 1010*ms))
		}, nil},
		{"I1: budget 0", func(k *check.Checker) {
			commit(k, 11, 0)
			k.Observe(with(fresh(1, 10, 11*ms), func(r *check.Read) { r.Budget = 0 }))
		}, map[check.Invariant]uint64{check.I1: 1}},
		{"budget 0 while the commit is under way", func(k *check.Checker) {
			commit(k, 11, 0)
			k.Observe(with(fresh(1, 10, 5*ms), func(r *check.Read) { r.Budget = 0 }))
		}, nil},
		{"I1: in a list", func(k *check.Checker) {
			commit(k, 11, 0)
			k.Observe(with(fresh(1, 10, 1011*ms), func(r *check.Read) { r.List = true }))
		}, map[check.Invariant]uint64{check.I1: 1}},
		{"STALE may be as old as it likes", func(k *check.Checker) {
			commit(k, 11, 0)
			k.Observe(with(fresh(1, 10, time.Hour), func(r *check.Read) { r.Fresh = false }))
		}, nil},
		{"I1: the acknowledgement is reported after the answer", func(k *check.Checker) {
			w := k.Begin(1, 0, 0)
			k.Observe(fresh(1, 10, 1011*ms))
			w.Acked(11, 10*ms)
		}, map[check.Invariant]uint64{check.I1: 1}},
		{"I1: the first commit is behind the budget, the second is not", func(k *check.Checker) {
			commit(k, 11, 0)
			commit(k, 12, 500*ms)
			k.Observe(fresh(1, 10, 1200*ms))
			k.Observe(fresh(1, 11, 1200*ms))
		}, map[check.Invariant]uint64{check.I1: 1}},
		{"I1: long after", func(k *check.Checker) {
			for i := range int64(100) {
				commit(k, 11+i, time.Duration(i)*time.Second)
			}
			k.Observe(fresh(1, 15, 200*time.Second))
		}, map[check.Invariant]uint64{check.I1: 1}},
		{"I1: behind a commit that is kept in the sum only", func(k *check.Checker) {
			commit(k, 11, 0)
			commit(k, 12, 100*time.Second)
			k.Observe(fresh(1, 10, 100*time.Second+500*ms))
			k.Observe(fresh(1, 11, 100*time.Second+500*ms))
		}, map[check.Invariant]uint64{check.I1: 1}},
		{"I2: the token of a write", func(k *check.Checker) {
			commit(k, 11, 0)
			k.Observe(with(fresh(1, 10, 11*ms), func(r *check.Read) { r.Wrote = 11 }))
		}, map[check.Invariant]uint64{check.I2: 1}},
		{"the token of a write, answered STALE", func(k *check.Checker) {
			commit(k, 11, 0)
			k.Observe(with(fresh(1, 10, 11*ms), func(r *check.Read) { r.Wrote, r.Fresh = 11, false }))
		}, nil},
		{"I3: one replica goes backwards", func(k *check.Checker) {
			commit(k, 11, 0)
			k.Observe(fresh(1, 11, 11*ms))
			k.Observe(fresh(1, 10, 13*ms))
		}, map[check.Invariant]uint64{check.I3: 1}},
		{"overlapping answers of one replica have no order", func(k *check.Checker) {
			commit(k, 11, 0)
			k.Observe(fresh(1, 11, 11*ms))
			k.Observe(fresh(1, 10, 12*ms))
		}, nil},
		{"two replicas have no order", func(k *check.Checker) {
			commit(k, 11, 0)
			k.Observe(fresh(1, 11, 11*ms))
			k.Observe(with(fresh(1, 10, 13*ms), func(r *check.Read) { r.Replica = "b" }))
		}, nil},
		{"I3: two replicas and a token", func(k *check.Checker) {
			commit(k, 11, 0)
			k.Observe(fresh(1, 11, 11*ms))
			k.Observe(with(fresh(1, 10, 13*ms), func(r *check.Read) { r.Replica, r.Saw = "b", 11 }))
		}, map[check.Invariant]uint64{check.I3: 1}},
		{"a list and a detail are two keys", func(k *check.Checker) {
			commit(k, 11, 0)
			k.Observe(fresh(1, 11, 11*ms))
			k.Observe(with(fresh(1, 10, 13*ms), func(r *check.Read) { r.List = true }))
		}, nil},
		{"I4: a revision nobody wrote", func(k *check.Checker) { k.Observe(fresh(1, 11, 0)) }, map[check.Invariant]uint64{check.I4: 1}},
		{"I4: STALE is no excuse", func(k *check.Checker) {
			k.Observe(with(fresh(1, 11, 0), func(r *check.Read) { r.Fresh = false }))
		}, map[check.Invariant]uint64{check.I4: 1}},
		{"I4: before its commit was sent", func(k *check.Checker) {
			k.Observe(fresh(1, 11, 0))
			commit(k, 11, 2*ms)
		}, map[check.Invariant]uint64{check.I4: 1}},
		{"I4: a revision of nobody below a commit sent later", func(k *check.Checker) {
			commit(k, 12, 100*ms)
			k.Observe(fresh(1, 11, 0))
			k.Observe(fresh(1, 11, 100*ms))
		}, map[check.Invariant]uint64{check.I4: 1}},
		{"I4: of another's revision while a write was under way", func(k *check.Checker) {
			w := k.Begin(1, 0, 0)
			k.Observe(fresh(1, 11, 1*ms)) // the write under way may explain it,
			commit(k, 11, 5*ms)           // but it was this one's, sent later
			w.Acked(12, 20*ms)
		}, map[check.Invariant]uint64{check.I4: 1}},
		{"I4: of a write that was rolled back", func(k *check.Checker) {
			w := k.Begin(1, 11, 0)
			k.Observe(fresh(1, 11, 1*ms))
			w.Aborted()
		}, map[check.Invariant]uint64{check.I4: 1}},
		{"while its commit is under way", func(k *check.Checker) {
			w := k.Begin(1, 11, 0)
			k.Observe(fresh(1, 11, 1*ms))
			w.Acked(11, 10*ms)
		}, nil},
		{"while a write of unknown revision is under way", func(k *check.Checker) {
			w := k.Begin(1, 0, 0)
			k.Observe(fresh(1, 11, 1*ms))
			w.Acked(11, 10*ms)
		}, nil},
		{"a write of unknown outcome may appear or not", func(k *check.Checker) {
			k.Begin(1, 11, 0).Unknown(11)
			k.Begin(2, 0, 0).Unknown(0)
			k.Observe(fresh(1, 10, time.Minute))
			k.Observe(fresh(1, 11, time.Minute+2*ms))
			k.Observe(fresh(2, 10, time.Minute))
			k.Observe(fresh(2, 11, time.Minute+2*ms))
		}, nil},
		{"I4: unknown outcomes excuse one revision each", func(k *check.Checker) {
			k.Begin(2, 0, 0).Unknown(0)
			k.Observe(fresh(2, 12, time.Minute))
		}, map[check.Invariant]uint64{check.I4: 1}},
		{"a write of unknown outcome that did not happen leaves its revision to another", func(k *check.Checker) {
			k.Begin(1, 11, 0).Unknown(11)
			commit(k, 11, 100*ms)
			k.Observe(fresh(1, 11, 200*ms))
		}, nil},
		{"I4: absent though never deleted", func(k *check.Checker) { k.Observe(fresh(1, 0, 0)) }, map[check.Invariant]uint64{check.I4: 1}},
		{"I4: a product that does not exist", func(k *check.Checker) { k.Observe(fresh(99, 1, 0)) }, map[check.Invariant]uint64{check.I4: 1}},
		{"lost: Postgres ends below", func(k *check.Checker) {
			commit(k, 11, 0)
			k.Finish()
			k.Final(1, 10)
		}, map[check.Invariant]uint64{check.Lost: 1}},
		{"lost: one revision, two acknowledged writes", func(k *check.Checker) {
			commit(k, 11, 0)
			commit(k, 11, 20*ms)
		}, map[check.Invariant]uint64{check.Lost: 1}},
		{"an unknown write may be missing in the end", func(k *check.Checker) {
			commit(k, 11, 0)
			k.Begin(1, 12, 20*ms).Unknown(12)
			k.Finish()
			k.Final(1, 11)
		}, nil},
		{"I5: a replica differs in the end", func(k *check.Checker) {
			commit(k, 11, 0)
			k.Finish()
			k.Final(1, 11)
			k.Converged(check.Answer{ID: 1, Replica: "a", Revision: 11, AtLeast: 11, AtMost: 11})
			k.Converged(check.Answer{ID: 1, Replica: "b", Revision: 10, AtLeast: 11, AtMost: 11})
		}, map[check.Invariant]uint64{check.I5: 1}},
		{"a product written while it is compared", func(k *check.Checker) {
			k.Converged(check.Answer{ID: 1, Replica: "a", Revision: 12, AtLeast: 11, AtMost: 12})
		}, nil},
		{"another writer explains a phantom", func(k *check.Checker) {
			commit(k, 11, 0)
			k.Observe(fresh(1, 12, 20*ms))
			k.Observe(fresh(2, 11, 20*ms))
			k.Observe(fresh(77, 1, 20*ms))
			k.Finish()
			k.Final(1, 12)
			k.Final(2, 11)
			k.Final(77, 1)
		}, nil},
		{"I4: the run's own later write does not explain a phantom", func(k *check.Checker) {
			k.Observe(fresh(1, 11, 0))
			commit(k, 11, 20*ms)
			k.Finish()
			k.Final(1, 11)
		}, map[check.Invariant]uint64{check.I4: 1}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			k := started(t, check.Config{})
			test.run(k)
			k.Finish()
			s := k.Summary()
			if !maps.Equal(s.Counts, test.want) {
				t.Fatalf("found %v, want %v: %v", s.Counts, test.want, s.First)
			}
			if uint64(len(s.First)) != s.Violations {
				t.Fatalf("%d violations, %d in full", s.Violations, len(s.First))
			}
			for _, v := range s.First {
				if v.ID == 0 || v.Detail == "" || v.String() == "" {
					t.Errorf("a violation without detail: %+v", v)
				}
			}
		})
	}
}

func TestStalenessIsMeasuredFromTheFirstMissedCommit(t *testing.T) {
	k := started(t, check.Config{})
	k.Begin(1, 11, 0).Acked(11, 100*ms)
	k.Begin(1, 12, 200*ms).Acked(12, 300*ms)
	k.Observe(fresh(1, 10, 400*ms)) // lacks both: 300 ms
	k.Observe(fresh(1, 11, 400*ms)) // lacks the second: 100 ms
	k.Observe(fresh(1, 12, 400*ms))
	k.Observe(fresh(1, 11, 250*ms)) // the second was not acknowledged yet
	k.Observe(fresh(2, 10, 400*ms))
	s := k.Summary().Staleness
	near := func(a, b time.Duration) bool { return a-b <= ms && b-a <= ms }
	if s.Count != 5 || s.P50 != 0 || !near(s.Max, 300*ms) || !near(s.P99, 300*ms) {
		t.Fatalf("%+v", s)
	}
}

func TestBounds(t *testing.T) {
	k := started(t, check.Config{Keep: 3, MaxProducts: 9})
	if err := k.Declare(10, 1); err == nil {
		t.Error("a product over MaxProducts was taken")
	}
	if err := k.Declare(1, 0); err == nil {
		t.Error("revision 0 was declared")
	}
	if err := k.Declare(1, 10); err != nil {
		t.Errorf("declaring again: %v", err)
	}
	// A burst of commits within the window, far over the bound, then one answer that lacks them all.
	for i := range int64(5000) {
		k.Begin(1, 11+i, time.Duration(i)*time.Microsecond).Acked(11+i, time.Duration(i+1)*time.Microsecond)
	}
	k.Observe(fresh(1, 10, time.Minute))
	k.Observe(fresh(1, 5010, time.Minute))
	// Answers beyond what may wait for one write are judged at once.
	w := k.Begin(2, 0, 0)
	for range 1000 {
		k.Observe(fresh(2, 11, ms))
	}
	w.Acked(11, 10*ms)
	// Violations are counted, the first ones kept; replicas without bound are not remembered.
	for i := range 1000 {
		r := fresh(3, 12, 0)
		r.Replica = fmt.Sprint("replica-", i)
		k.Observe(r)
	}
	s := k.Summary()
	if s.Counts[check.I1] != 1 || s.Counts[check.I4] != 1000 || s.Violations != 1001 || len(s.First) != 3 {
		t.Errorf("counts %v, %d in full", s.Counts, len(s.First))
	}
	if s.Early != 744 {
		t.Errorf("%d judged early, want 1000 - 256", s.Early)
	}
	if _, err := check.New(check.Config{MaxBudget: -1, Slack: -1, MaxProducts: -1, Keep: -1}); err == nil {
		t.Error("a bad config was taken")
	}
}

// Only the first end of a write counts.
func TestWriteEndsOnce(t *testing.T) {
	k := started(t, check.Config{})
	w := k.Begin(1, 0, 0)
	w.Acked(11, ms)
	w.Acked(11, 2*ms)
	w.Aborted()
	w.Unknown(0)
	if s := k.Summary(); s.Violations != 0 || s.Writes != 1 || s.Acked != 1 || s.Aborted != 0 || s.Unknown != 0 {
		t.Fatalf("%+v", s)
	}
}

// Writers and readers of one in-memory truth, at full speed: nothing false is found. Meant for -race.
func TestConcurrentUse(t *testing.T) {
	k := started(t, check.Config{})
	begin := time.Now()
	clock := func() time.Duration { return time.Since(begin) }
	var truth [10]struct {
		mu       sync.Mutex
		revision int64
	}
	for i := range truth {
		truth[i].revision = 10
	}
	var wg sync.WaitGroup
	for range 3 {
		wg.Go(func() {
			for i := range 3000 {
				id := i%9 + 1
				w := k.Begin(int64(id), 0, clock())
				truth[id].mu.Lock()
				truth[id].revision++
				revision := truth[id].revision
				truth[id].mu.Unlock()
				w.Acked(revision, clock())
			}
		})
		wg.Go(func() {
			for i := range 6000 {
				id := i%9 + 1
				r := check.Read{ID: int64(id), Fresh: true, Replica: "a", Invoked: clock()}
				truth[id].mu.Lock()
				r.Revision = truth[id].revision
				truth[id].mu.Unlock()
				r.Returned = clock()
				k.Observe(r)
			}
		})
	}
	wg.Wait()
	k.Finish()
	for id := range k.Written {
		k.Final(id, truth[id].revision)
	}
	if s := k.Summary(); s.Violations != 0 || s.Writes != 9000 || s.Reads != 18000 || s.ForeignWrites != 0 {
		t.Fatalf("%+v", s)
	}
}

func BenchmarkObserve(b *testing.B) {
	k := started(b, check.Config{})
	k.Begin(1, 11, 0).Acked(11, ms)
	b.Run("unwritten", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			k.Observe(fresh(2, 10, 10*ms))
		}
	})
	b.Run("written", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			k.Observe(fresh(1, 11, 10*ms))
		}
	})
}
