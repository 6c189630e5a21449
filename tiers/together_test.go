package tiers

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"strings"
	"testing"
	"time"

	"github.com/freshet-cache/freshet/coherence"
	"github.com/freshet-cache/freshet/coherence/logtest"
)

// A ledger is a desk whose a and b are accounts: transfers move something from one to the other, so that their
// sum is always the same.
type ledger struct {
	*desk
	other *Cache[int] // of the same accounts, loaded by a function
	begun int         // transactions
	// restless: there is a transfer just before and after each load.
	restless bool
	// overtaken: there is a transfer just before each transaction begins.
	overtaken bool
}

const total = 3 // a and b in the beginning

// onLedger runs a test in a bubble of virtual time.
func onLedger(t *testing.T, test func(l *ledger)) {
	t.Helper()
	onDesk(t, func(d *desk) {
		l := &ledger{desk: d}
		d.reopen(func(s *Shared, c *Config[int]) {
			s.Begin, s.Together, c.Source = l.begin, &TogetherCounts{}, account{l}
			// As the node makes them.
			s.LoadTimeout, s.ProofTimeout = 5*time.Second, time.Second
		})
		l.other = d.newCache(t, func(s *Shared, c *Config[int]) {
			*s = d.cache.Shared
			c.View = "func"
			c.Source = FuncSource[int]{Tracker: d.tracker, Func: func(ctx context.Context, ids []string) (map[string]int, error) {
				batch, err := d.Load(ctx, ids)
				return batch.Values, err
			}}
		})
		defer l.other.Close()
		test(l)
	})
}

// account is the ledger as a source that can load in a transaction.
type account struct{ *ledger }

// Load implements [Source].
func (a account) Load(ctx context.Context, ids []string) (Batch[int], error) {
	if !a.restless {
		return a.desk.Load(ctx, ids)
	}
	a.transfer()
	defer a.transfer()
	return a.desk.Load(ctx, ids)
}

// deskTx is a transaction in memory: all that the desk had when it began.
type deskTx struct {
	at     coherence.Snapshot
	values map[string]int
	ended  bool
}

func (tx *deskTx) End() { tx.ended = true }

func (l *ledger) begin(context.Context) (Transaction, error) {
	if l.overtaken {
		l.transfer()
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.begun++
	return &deskTx{at: l.log.Snapshot(), values: maps.Clone(l.values)}, l.fail
}

// LoadIn implements [TransactionSource].
func (a account) LoadIn(_ context.Context, tx Transaction, ids []string) (Batch[int], error) {
	of, ok := tx.(*deskTx)
	if !ok || of.ended {
		return Batch[int]{}, errors.New("no transaction of the desk")
	}
	batch := Batch[int]{Snapshot: of.at, Values: map[string]int{}}
	for _, id := range ids {
		if v, there := of.values[id]; there {
			batch.Values[id] = v
		}
	}
	return batch, nil
}

// transfer moves one from a to b in one transaction of another service.
func (l *ledger) transfer() (xid uint64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.values["a"]--
	l.values["b"]++
	return l.log.Commit(coherence.Entity("n", "a"), coherence.Entity("n", "b"))
}

// transferred is a transfer that is known here.
func (l *ledger) transferred() {
	l.t.Helper()
	l.transfer()
	if _, err := l.tracker.Barrier(l.t.Context()); err != nil {
		l.t.Fatal(err)
	}
}

var (
	both     = []string{"a", "b"}
	together = Want{Budget: time.Second, Consistent: true}
)

// both reads the accounts as of one moment and checks what each such read must hold.
func (l *ledger) both(want Want) []Result[int] {
	l.t.Helper()
	r, err := l.cache.LookupMany(l.t.Context(), both, want)
	if err != nil {
		l.t.Fatal(err)
	}
	if r[0].Value+r[1].Value != total {
		l.t.Errorf("the sum wavers: %d + %d", r[0].Value, r[1].Value)
	}
	if !r[0].Fresh || !r[1].Fresh || r[0].Age != r[1].Age {
		l.t.Errorf("labels of one moment: %+v", r)
	}
	if !r[0].Token().SeenBy(*r[1].snapshot) && r[1].poll == nil {
		l.t.Errorf("tokens of one moment: %v, %v", r[0].Token(), r[1].Token())
	}
	return r
}

// costs checks what reads have cost since the last call.
func (l *ledger) costs(what string, polls, repeats, transactions uint64) {
	l.t.Helper()
	n := l.cache.Together
	if p, r, x := n.Polls.Swap(0), n.Repeats.Swap(0), n.Transactions.Swap(0); p != polls || r != repeats || x != transactions {
		l.t.Errorf("%s cost %d polls, %d repeats and %d transactions; want %d, %d and %d", what, p, r, x, polls, repeats, transactions)
	}
}

// When nothing changes, a read of one moment costs one poll after a load, and nothing from L1.
func TestI8CostsWithoutChanges(t *testing.T) {
	onLedger(t, func(l *ledger) {
		l.log.Commit() // so that what is loaded now is newer than the last poll
		before := l.log.Polls()
		l.both(together)
		l.costs("the first read", 1, 0, 0)
		if n := l.log.Polls() - before; n != 1 {
			l.t.Errorf("%d polls were sent, want 1", n)
		}
		for range 3 {
			l.both(together)
		}
		l.costs("reads from L1", 0, 0, 0)
		if s := l.cache.Stats(); l.loads != 1 || s.L1.Hits != 6 || s.Reads != 8 {
			l.t.Errorf("%d loads, %+v", l.loads, s)
		}
		l.both(Want{Consistent: true})
		l.costs("a read with budget 0", 1, 0, 0)
		pass(100 * time.Millisecond)
		if r := l.both(together); r[0].Age < 100*time.Millisecond {
			l.t.Errorf("of age %v", r[0].Age)
		}
	})
}

// A value that was read newer than the last poll is not put beside one that is only known to be valid up to it.
func TestI8NewerThanThePoll(t *testing.T) {
	for name, prepare := range map[string]func(l *ledger){
		"one is in L1, the other is loaded": func(*ledger) {},
		"both are in L1":                    func(l *ledger) { l.read("b", second) },
		"the other is in L2": func(l *ledger) {
			if h := l.header("b"); !l.arrivesAs("b", h, fmt.Sprint(l.values["b"])) {
				l.t.Error("the entry is refused")
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			onLedger(t, func(l *ledger) {
				l.read("a", second)
				l.transfer()
				prepare(l)
				l.both(together)
				l.costs("it", 1, 1, 0)
			})
		})
	}
}

// What changes between two reads of a function, or between its loads and the poll, is seen: the function runs
// again.
func TestI8ChangeInBetween(t *testing.T) {
	onLedger(t, func(l *ledger) {
		runs, sum := 0, 0
		moment, err := ReadTogether(l.t.Context(), l.cache.Shared, together, func(t *Together) {
			runs++
			a, err := l.cache.LookupIn(t, both[:1])
			if err != nil {
				l.t.Fatal(err)
			}
			if runs == 1 {
				l.transferred()
			}
			b, err := l.cache.LookupIn(t, both[1:])
			if err != nil {
				l.t.Fatal(err)
			}
			sum = a[0].Value + b[0].Value
		})
		if err != nil || sum != total || runs != 2 || moment.Snapshot.Timeline == 0 {
			l.t.Errorf("after %d runs the sum is %d at %v: %v", runs, sum, moment, err)
		}
		l.costs("a change between two reads", 0, 1, 0)
	})
	onLedger(t, func(l *ledger) {
		loads := 0
		l.pause = func() { // the change comes when both are loaded and before the poll
			if loads++; loads == 1 {
				l.transfer()
			}
		}
		l.log.Commit()
		if r := l.both(together); r[0].Value != 0 {
			l.t.Errorf("older than the poll: %+v", r)
		}
		l.costs("a change before the poll", 1, 1, 0)
	})
}

// Hints are heard before the poll that brings the change: what they touch is read again.
func TestI8Hint(t *testing.T) {
	onLedger(t, func(l *ledger) {
		l.both(together)
		l.cache.Together.Polls.Store(0)
		xid := l.transfer()
		l.tracker.Observe(coherence.HintHeard{Hint: coherence.Hint{
			Boot: 7, Seq: 1, Timeline: l.log.Snapshot().Timeline, XID: xid, Scopes: []coherence.ScopeHash{coherence.Entity("n", "a").Hash()},
		}})
		l.both(together) // a is loaded, and so is newer than the poll; b has changed, which that poll brings
		l.costs("after a hint of one", 1, 1, 0)
	})
}

// What changes all the time is read in one transaction in the end, after a bounded number of runs; it is not
// older than the read, and nothing older is served after it.
func TestI8Transaction(t *testing.T) {
	onLedger(t, func(l *ledger) {
		l.read("a", second)
		l.read("b", second)
		l.restless = true
		l.transfer()
		before := l.values["a"]
		r := l.both(Want{Consistent: true})
		l.costs("changes all the time", 3, 3, 1)
		if r[0].Tier != TierSource || r[0].Value >= before || l.begun != 1 {
			l.t.Errorf("after %d transactions %+v, when a had been %d", l.begun, r, before)
		}
		l.restless = false
		for i, id := range both {
			if again := l.read(id, second); again.Value != r[i].Value {
				l.t.Errorf("%s is %d after %d was served", id, again.Value, r[i].Value)
			}
		}
	})
}

// I1: what was read late in a transaction that began early is not taken for a load that began late.
func TestI1LoadInATransaction(t *testing.T) {
	onLedger(t, func(l *ledger) {
		runs := 0
		_, err := ReadTogether(l.t.Context(), l.cache.Shared, together, func(t *Together) {
			if runs++; runs <= maxRuns {
				for _, id := range both {
					l.transfer()
					if _, err := l.cache.LookupIn(t, []string{id}); err != nil {
						l.t.Error(err)
					}
				}
				return
			}
			l.transfer()
			reader := l.cache.begin(Want{})
			if _, err := l.cache.LookupIn(t, both); err != nil {
				l.t.Error(err)
			}
			if r, err := l.cache.lookup(l.t.Context(), "a", &reader); err != nil || r.Value != l.values["a"] {
				l.t.Errorf("a read with budget 0 finds %+v, %v; want %d", r, err, l.values["a"])
			}
		})
		if err != nil || runs != maxRuns+1 {
			l.t.Errorf("%d runs: %v", runs, err)
		}
	})
}

// I3: nothing older is served after what was read in a transaction, from L1 or L2, although no poll has brought the
// change yet.
func TestI3AfterATransaction(t *testing.T) {
	onLedger(t, func(l *ledger) {
		runs := 0
		var old Header
		var served []Result[int]
		_, err := ReadTogether(l.t.Context(), l.cache.Shared, together, func(t *Together) {
			runs++
			for i, id := range both {
				r, err := l.cache.LookupIn(t, []string{id})
				if err != nil {
					l.t.Fatal(err)
				}
				if served = append(served, r...); runs <= maxRuns && i == 0 {
					l.transferred()
				}
			}
			if runs == maxRuns {
				old, l.overtaken = l.header("b"), true
			}
		})
		if err != nil || runs != maxRuns+1 {
			l.t.Fatalf("%d runs: %v", runs, err)
		}
		last := served[len(served)-1]
		if before := served[len(served)-3]; last.Value != before.Value+1 {
			l.t.Errorf("the transaction finds %d after %d", last.Value, before.Value)
		}
		if r := l.read("b", second); r.Value != last.Value {
			l.t.Errorf("%d is served after %d", r.Value, last.Value)
		}
		if l.arrives("b", old) {
			l.t.Error("an entry from before is taken")
		}
	})
}

// I1: what is read in a transaction that began before a namespace got another generation is of the one before.
func TestI1TransactionAcrossGenerations(t *testing.T) {
	onLedger(t, func(l *ledger) {
		runs := 0
		_, err := ReadTogether(l.t.Context(), l.cache.Shared, together, func(t *Together) {
			if runs++; runs > maxRuns {
				l.log.SetGeneration("n", 2)
				if _, err := l.tracker.Barrier(l.t.Context()); err != nil {
					l.t.Fatal(err)
				}
			}
			for i, id := range both {
				if _, err := l.cache.LookupIn(t, []string{id}); err != nil {
					l.t.Fatal(err)
				}
				if runs <= maxRuns && i == 0 {
					l.transferred()
				}
			}
		})
		if err != nil || runs != maxRuns+1 {
			l.t.Fatalf("%d runs: %v", runs, err)
		}
		if r := l.read("a", second); r.Tier != TierSource {
			l.t.Errorf("of the generation before: %+v", r)
		}
	})
}

// Values of a function's cache are of the moment, too: it may have read late, but then something had changed. In
// the transaction they are taken as they are, if they have not changed until then.
func TestI8Function(t *testing.T) {
	onLedger(t, func(l *ledger) {
		// read adds up the accounts; in the first runs there is a transfer between them.
		read := func(transfers int) (sum int, err error) {
			var failed error
			runs := 0
			_, err = ReadTogether(l.t.Context(), l.cache.Shared, together, func(t *Together) {
				runs++
				sum, failed = 0, nil
				for i, c := range []*Cache[int]{l.cache, l.other} {
					if i == 1 && runs <= transfers {
						l.transferred()
					}
					r, err := c.LookupIn(t, both[i:i+1])
					if failed = err; err != nil {
						return
					}
					sum += r[0].Value
				}
			})
			return sum, errors.Join(err, failed)
		}
		loads := 0
		l.pause = func() { // a transfer between the function's reading and its second poll, and before its reading
			if loads++; loads < 4 {
				l.transfer()
			}
		}
		if sum, err := read(0); err != nil || sum != total {
			l.t.Errorf("the function reads late: %d, %v", sum, err)
		}
		l.pause = nil
		l.cache.Together.Transactions.Store(0)
		if sum, err := read(maxRuns); err != nil || sum != total {
			l.t.Errorf("with a transaction in the end: %d, %v", sum, err)
		}
		if n := l.cache.Together.Transactions.Load(); n != 1 {
			l.t.Errorf("%d transactions", n)
		}
		if sum, err := read(maxRuns + 1); !errors.Is(err, ErrUncertain) {
			l.t.Errorf("a function whose values change during the transaction: %d, %v; want ErrUncertain", sum, err)
		}
		l.overtaken = true
		if sum, err := read(maxRuns); !errors.Is(err, ErrUncertain) {
			l.t.Errorf("a function whose values change before the transaction: %d, %v; want ErrUncertain", sum, err)
		}
	})
}

// Postgres comes back with another history between two reads: nothing of the old one is part of the answer.
func TestI8Crash(t *testing.T) {
	onLedger(t, func(l *ledger) {
		l.both(together)
		runs, sum := 0, 0
		moment, err := ReadTogether(l.t.Context(), l.cache.Shared, together, func(t *Together) {
			runs++
			sum = 0
			for _, id := range both {
				r, err := l.cache.LookupIn(t, []string{id})
				if err != nil {
					l.t.Fatal(err)
				}
				if sum += r[0].Value; runs == 1 && id == "a" {
					l.log.Crash()
					l.transfer()
				}
				if runs == 1 && id == "a" { // b is loaded from the new history
					l.cache.l1.shard("b").lru.Purge()
				}
			}
		})
		if err != nil || sum != total || moment.Snapshot.Timeline != 2 {
			l.t.Errorf("after %d runs the sum is %d at %v: %v", runs, sum, moment, err)
		}
	})
}

// What is not there is a value, too, and so is a result with tags.
func TestI8AbsentAndTagged(t *testing.T) {
	onLedger(t, func(l *ledger) {
		l.reopen(func(s *Shared, c *Config[int]) {
			*s = l.other.Shared
			c.Source, c.TagAbsent = account{l}, true
			c.Tags = func(string, int) []string { return []string{"list"} }
		})
		ids := []string{"a", "c"}
		read := func() (r []Result[int]) {
			l.t.Helper()
			r, err := l.cache.LookupMany(l.t.Context(), ids, Want{Consistent: true})
			if err != nil {
				l.t.Fatal(err)
			}
			return r
		}
		if r := read(); r[0].Value != 1 || !r[1].Absent {
			l.t.Errorf("before: %+v", r)
		}
		l.mu.Lock()
		l.values["a"], l.values["c"] = 0, 1 // a's account is split
		l.log.Commit(coherence.Tag("list"))
		l.mu.Unlock()
		if r := read(); r[0].Value != 0 || r[1].Absent || r[1].Value != 1 {
			l.t.Errorf("afterwards: %+v", r)
		}
	})
}

// The read is not behind its token, nor behind what this replica wrote.
func TestI8Token(t *testing.T) {
	onLedger(t, func(l *ledger) {
		l.both(together)
		want := together
		want.Token = coherence.TokenOfWrite(1, l.transfer())
		if r := l.both(want); r[0].Value != 0 || r[1].Value != 3 {
			l.t.Errorf("behind its token: %+v", r)
		}
		l.mu.Lock()
		l.values["a"]--
		l.values["b"]++
		l.mu.Unlock()
		scopes := []coherence.ScopeHash{coherence.Entity("n", "a").Hash(), coherence.Entity("n", "b").Hash()}
		xid := l.log.Commit(coherence.Entity("n", "a"), coherence.Entity("n", "b"))
		l.tracker.Observe(coherence.Wrote{Timeline: 1, XID: xid, Scopes: scopes})
		if r := l.both(together); r[0].Value != -1 {
			l.t.Errorf("behind its own write: %+v", r)
		}
	})
}

// Without Postgres a read of one moment is FRESH as long as the last poll is recent enough, and then an error,
// whatever age is allowed.
func TestI8WithoutPostgres(t *testing.T) {
	onLedger(t, func(l *ledger) {
		l.both(together)
		l.goDown()
		want := together
		want.MaxStale = time.Hour
		l.both(want)
		if _, err := l.cache.LookupMany(l.t.Context(), []string{"a", "c"}, Want{Consistent: true}); !errors.Is(err, ErrUncertain) {
			l.t.Errorf("with budget 0: %v", err)
		}
		pass(2 * time.Second)
		r, err := l.cache.LookupMany(l.t.Context(), both, want)
		if !errors.Is(err, ErrUncertain) || r[0].Tier != 0 {
			l.t.Errorf("after the budget: %+v, %v; want ErrUncertain", r, err)
		}
	})
}

// Without a transaction to fall back on, what changes all the time is ErrUncertain.
func TestI8Unsettled(t *testing.T) {
	onLedger(t, func(l *ledger) {
		l.cache.Begin = nil
		l.restless = true
		r, err := l.cache.LookupMany(l.t.Context(), both, Want{Consistent: true})
		if !errors.Is(err, ErrUncertain) || l.loads != maxRuns {
			l.t.Errorf("after %d loads %+v, %v", l.loads, r, err)
		}
	})
	onLedger(t, func(l *ledger) {
		l.cache.Begin = func(context.Context) (Transaction, error) { return nil, errors.New("no connection") }
		l.restless = true
		_, err := l.cache.LookupMany(l.t.Context(), both, Want{Consistent: true})
		if !errors.Is(err, ErrUncertain) || l.cache.Bulkhead.Stats().Running != 0 {
			l.t.Errorf("without a connection: %v, %+v", err, l.cache.Bulkhead.Stats())
		}
	})
	onLedger(t, func(l *ledger) { // a transaction that does not see one snapshot
		l.cache.Begin = func(ctx context.Context) (Transaction, error) {
			tx, err := l.begin(ctx)
			of := tx.(*deskTx) //nolint:forcetypeassert // of this file
			of.at = coherence.Snapshot{Timeline: 1, Xmin: of.at.Xmax, Xmax: of.at.Xmax, Xip: nil}
			return of, err
		}
		runs := 0
		_, err := ReadTogether(l.t.Context(), l.cache.Shared, together, func(t *Together) {
			runs++
			for _, id := range both {
				if runs <= maxRuns {
					l.transfer()
				} else if of := t.tx.(*deskTx); id == "b" { //nolint:forcetypeassert // of this file
					of.at.Xmin, of.at.Xmax = of.at.Xmin+1, of.at.Xmax+1
				}
				if _, err := l.cache.LookupIn(t, []string{id}); (err != nil) != (runs > maxRuns && id == "b") {
					l.t.Errorf("run %d, %s: %v", runs, id, err)
				}
			}
		})
		if err != nil {
			l.t.Error(err) // what could not be read is no part of it
		}
	})
}

// A function that panics leaves nothing behind, neither does one that ends its goroutine; and what it was given is
// of no use afterwards.
func TestTogetherEnds(t *testing.T) {
	onLedger(t, func(l *ledger) {
		var left *Together
		runs := 0
		func() {
			defer func() {
				if p := recover(); p != "enough" {
					l.t.Errorf("the panic is %v", p)
				}
			}()
			_, err := ReadTogether(l.t.Context(), l.cache.Shared, together, func(t *Together) {
				left = t
				if runs++; runs > maxRuns {
					panic("enough")
				}
				for _, id := range both {
					l.transfer()
					if _, err := l.cache.LookupIn(t, []string{id}); err != nil {
						l.t.Error(err)
					}
				}
			})
			l.t.Errorf("no panic, but %v", err)
		}()
		if s := l.cache.Bulkhead.Stats(); s.Running != 0 || l.begun != 1 {
			l.t.Errorf("%d transactions, %+v", l.begun, s)
		}
		if _, err := l.cache.LookupIn(left, both); err == nil || !strings.Contains(err.Error(), "has ended") {
			l.t.Errorf("afterwards: %v", err)
		}
		_, err := ReadTogether(l.t.Context(), l.cache.Shared, together, func(t *Together) {
			if _, err := l.cache.LookupIn(t, make([]string, maxTogether+1)); !errors.Is(err, ErrTooLarge) {
				l.t.Errorf("too many: %v", err)
			}
			if _, err := l.cache.LookupIn(t, []string{"a\x00"}); !errors.Is(err, ErrBadID) {
				l.t.Errorf("a bad id: %v", err)
			}
		})
		if err != nil {
			l.t.Errorf("nothing was read: %v", err)
		}
	})
}

// BenchmarkTogether compares ten hits in L1 as of one moment with ten of their own.
func BenchmarkTogether(b *testing.B) {
	log := logtest.NewMemory()
	d := newDesk(b, log)
	defer d.close()
	ids := make([]string, 10)
	for i := range ids {
		ids[i] = fmt.Sprint("key-", i)
	}
	// Only what is known now may cost something: no poll comes while it is measured.
	want := Want{Budget: time.Hour}
	for _, c := range []struct {
		name string
		want Want
	}{{"each", want}, {"together", Want{Budget: want.Budget, Consistent: true}}} {
		b.Run(c.name, func(b *testing.B) {
			b.ReportAllocs()
			if _, err := d.cache.LookupMany(b.Context(), ids, c.want); err != nil {
				b.Fatal(err)
			}
			for b.Loop() {
				if _, err := d.cache.LookupMany(b.Context(), ids, c.want); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
