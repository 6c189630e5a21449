package nodetest

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/freshet-cache/freshet/coherence"
	"github.com/freshet-cache/freshet/node"
)

// Exercise checks what a node promises of its transactions, whatever [node.Database] they are in: Postgres or one in
// memory. open makes a node that is ready, on a database that may be that of the suite's nodes before, and was empty
// before the first; the suite closes it.
func Exercise(t *testing.T, open func(t *testing.T) *node.Node) {
	t.Helper()
	for name, check := range map[string]func(*exercise){
		"Immediately":           immediately,
		"Whole":                 whole,
		"Refused":               refused,
		"Many":                  many,
		"Grace":                 grace,
		"After":                 after,
		"Batch":                 batch,
		"BatchWhenDue":          batchWhenDue,
		"BatchOfTwo":            batchOfTwo,
		"Generations":           changeGenerations,
		"GenerationsInTwo":      generationsInTwo,
		"GenerationsAreRefused": generationsRefused,
	} {
		t.Run(name, func(t *testing.T) {
			e := &exercise{t: t, node: open(t), namespace: strings.ToLower(name)}
			var err error
			e.cache, err = node.NewCache(e.node, node.CacheConfig[uint64]{
				Namespace: e.namespace, View: "one", Source: node.Func(e.load), Budget: time.Hour,
				Tags: func(id string, _ uint64) []string { return []string{e.tag(id)} },
			})
			if err != nil {
				t.Fatal(err)
			}
			check(e)
			if err := e.node.Close(); err != nil {
				t.Errorf("close: %v", err)
			}
		})
	}
}

// exercise is one test of the suite: a node with a cache of numbers that grow with every load.
type exercise struct {
	t     *testing.T
	node  *node.Node
	cache *node.Cache[uint64]
	loads atomic.Uint64
	// namespace, and the beginning of tags and of names of batches: others have other ones.
	namespace string
}

func (e *exercise) tag(id string) string { return e.namespace + " " + id }

func (e *exercise) load(_ context.Context, ids []string) (map[string]uint64, error) {
	values := map[string]uint64{}
	for _, id := range ids {
		values[id] = e.loads.Add(1)
	}
	return values, nil
}

// patience is for what must happen: only a failing test waits so long.
const patience = 20 * time.Second

func (e *exercise) must(err error) {
	e.t.Helper()
	if err != nil {
		e.t.Fatal(err)
	}
}

// get reads the id as of all commits by now.
func (e *exercise) get(id string) node.Entry[uint64] {
	e.t.Helper()
	entry, err := e.cache.Lookup(e.t.Context(), id, node.Within(0))
	if err != nil || !entry.Fresh {
		e.t.Fatalf("%s: %+v, %v", id, entry, err)
	}
	return entry
}

// changes checks whether what the function does has the id loaded anew.
func (e *exercise) changes(what, id string, want bool, do func() error) {
	e.t.Helper()
	before := e.get(id).Value
	e.must(do())
	if after := e.get(id).Value; (after != before) != want {
		e.t.Errorf("%s: %s has changed: %t, want %t", what, id, after != before, want)
	}
}

// eventually waits for what takes effect later.
func (e *exercise) eventually(what string, holds func() bool) {
	e.t.Helper()
	for until := time.Now().Add(patience); !holds(); {
		if time.Now().After(until) {
			e.t.Fatalf("not within %v: %s", patience, what)
		}
		<-time.After(time.Millisecond)
	}
}

func immediately(e *exercise) {
	ctx, n := e.t.Context(), e.node
	of := func(_ node.Token, err error) error { return err }
	e.changes("nothing", "1", false, func() error { return nil })
	e.changes("the entity", "1", true, func() error { return of(n.Invalidate(ctx, e.namespace, []string{"1", "2", "1"})) })
	e.changes("another entity", "1", false, func() error { return of(n.Invalidate(ctx, e.namespace, []string{"2"})) })
	e.changes("another namespace", "1", false, func() error { return of(n.Invalidate(ctx, "other", []string{"1"})) })
	e.changes("its view", "1", true, func() error { return of(n.Invalidate(ctx, e.namespace, []string{"1"}, node.View("one"))) })
	e.changes("another view", "1", false, func() error { return of(n.Invalidate(ctx, e.namespace, []string{"1"}, node.View("two"))) })
	e.changes("its tag", "1", true, func() error { return of(n.InvalidateTag(ctx, []string{e.tag("1")})) })
	e.changes("another tag", "1", false, func() error { return of(n.InvalidateTag(ctx, []string{e.tag("2")})) })
	e.changes("the namespace", "1", true, func() error { return of(n.InvalidateNamespace(ctx, e.namespace)) })
	e.changes("another namespace", "1", false, func() error { return of(n.InvalidateNamespace(ctx, "other")) })

	before := e.get("1")
	token, err := n.Invalidate(ctx, e.namespace, []string{"1"})
	e.must(err)
	if token.IsZero() || token.SeenBy(coherence.Snapshot{}) {
		e.t.Errorf("the token of a write is %v", token)
	}
	if entry, err := e.cache.Lookup(ctx, "1", node.AtLeast(token)); err != nil || entry.Value == before.Value {
		e.t.Errorf("its bearer gets %+v, %v", entry, err)
	}
	if token, err = n.Write(ctx, func(*node.Tx) error { return nil }); err != nil || !token.IsZero() {
		e.t.Errorf("a write that writes nothing: %v, %v", token, err)
	}
}

func whole(e *exercise) {
	ctx := e.t.Context()
	e.changes("a transaction that is rolled back", "1", false, func() error {
		failed := errors.New("no")
		_, err := e.node.Write(ctx, func(tx *node.Tx) error {
			e.must(tx.Invalidate(e.namespace, []string{"1"}))
			return failed
		})
		if !errors.Is(err, failed) {
			e.t.Errorf("the error of its function is %v", err)
		}
		return nil
	})
	e.get("2")
	_, err := e.node.Write(ctx, func(tx *node.Tx) error {
		e.must(tx.Invalidate(e.namespace, []string{"1"}))
		e.changes("a transaction that is open", "1", false, func() error { return nil })
		return tx.InvalidateTag([]string{e.tag("2")})
	})
	e.must(err)
	values := []uint64{e.get("1").Value, e.get("2").Value}
	if slices.Min(values) < 3 {
		e.t.Errorf("after a transaction that changes both: %v", values)
	}
	gone, cancel := context.WithCancel(ctx)
	e.changes("a transaction whose context has ended", "1", false, func() error {
		_, err := e.node.Write(gone, func(tx *node.Tx) error {
			e.must(tx.Invalidate(e.namespace, []string{"1"}))
			cancel()
			return nil
		})
		if err == nil {
			e.t.Error("it commits")
		}
		return nil
	})
}

func refused(e *exercise) {
	ctx, n := e.t.Context(), e.node
	for what, do := range map[string]func() (node.Token, error){
		"an empty namespace":    func() (node.Token, error) { return n.Invalidate(ctx, "", []string{"1"}) },
		"an empty id":           func() (node.Token, error) { return n.Invalidate(ctx, e.namespace, []string{"1", ""}) },
		"an empty tag":          func() (node.Token, error) { return n.InvalidateTag(ctx, []string{""}) },
		"no namespace at all":   func() (node.Token, error) { return n.InvalidateNamespace(ctx, "") },
		"an empty id, later":    func() (node.Token, error) { return n.Invalidate(ctx, e.namespace, []string{""}, node.After(time.Hour)) },
		"an empty tag, batched": func() (node.Token, error) { return n.InvalidateTag(ctx, []string{""}, node.Batch(e.tag("b"))) },
		"a batch without a name": func() (node.Token, error) {
			_, err := n.RunBatch(ctx, "")
			return node.Token{}, err
		},
		"the end of a batch without a name": func() (node.Token, error) {
			_, err := n.DropBatch(ctx, "")
			return node.Token{}, err
		},
		"a grace of two hours": func() (node.Token, error) {
			return n.Write(ctx, func(tx *node.Tx) error { return tx.Grace(2 * time.Hour) })
		},
		"a negative grace": func() (node.Token, error) {
			return n.Write(ctx, func(tx *node.Tx) error { return tx.Grace(-time.Second) })
		},
	} {
		if token, err := do(); err == nil || !token.IsZero() {
			e.t.Errorf("%s: %v, %v", what, token, err)
		}
	}
}

// More changes than are told one by one are no less known to who made them.
func many(e *exercise) {
	ids := make([]string, 6000)
	for i := range ids {
		ids[i] = fmt.Sprint(i)
	}
	id := ids[len(ids)-1]
	before := e.get(id).Value
	_, err := e.node.Invalidate(e.t.Context(), e.namespace, ids)
	e.must(err)
	if entry, err := e.cache.Lookup(e.t.Context(), id); err != nil || entry.Value == before {
		e.t.Errorf("after its change: %+v, %v", entry, err)
	}
}

func grace(e *exercise) {
	ctx := e.t.Context()
	inGrace := func(what string, want bool, do func(tx *node.Tx) error) {
		e.t.Helper()
		before := e.get("1").Value
		_, err := e.node.Write(ctx, do)
		e.must(err)
		entry, err := e.cache.Lookup(ctx, "1")
		if graced := entry.Grace > 0 && !entry.Fresh && entry.Value == before; err != nil || graced != want {
			e.t.Errorf("%s: %+v, %v; in its grace: %t, want %t", what, entry, err, graced, want)
		}
		e.eventually("it is loaded", func() bool { return e.get("1").Value != before })
	}
	inGrace("with a grace", true, func(tx *node.Tx) error {
		return tx.Invalidate(e.namespace, []string{"1"}, node.WithGrace(time.Hour))
	})
	inGrace("in a transaction with a grace", true, func(tx *node.Tx) error {
		return errors.Join(tx.Grace(time.Hour), tx.Invalidate(e.namespace, []string{"1"}))
	})
	inGrace("of a transaction that has ended it", false, func(tx *node.Tx) error {
		return errors.Join(tx.Grace(time.Hour), tx.Grace(0), tx.Invalidate(e.namespace, []string{"1"}))
	})
	inGrace("with a grace and at once", false, func(tx *node.Tx) error {
		return errors.Join(tx.Invalidate(e.namespace, []string{"1"}, node.WithGrace(time.Hour)), tx.Invalidate(e.namespace, []string{"1"}))
	})
}

func after(e *exercise) {
	ctx := e.t.Context()
	e.changes("a delay that is not over", "1", false, func() error {
		_, err := e.node.Invalidate(ctx, e.namespace, []string{"1"}, node.After(time.Hour))
		return err
	})
	before := e.get("1").Value
	_, err := e.node.InvalidateTag(ctx, []string{e.tag("1")}, node.After(50*time.Millisecond))
	e.must(err)
	e.eventually("the delay is over", func() bool { return e.get("1").Value != before })
	e.changes("a delay that is over, once more", "1", false, func() error { return nil })
}

func (e *exercise) batches() string {
	e.t.Helper()
	batches, err := e.node.Batches(e.t.Context())
	e.must(err)
	var names []string
	for _, b := range batches {
		if name, mine := strings.CutPrefix(b.Name, e.tag("")); mine {
			names = append(names, fmt.Sprintf("%s:%d:%t", name, b.Entries, !b.Due.IsZero()))
		}
	}
	return strings.Join(names, " ")
}

func batch(e *exercise) {
	ctx, n := e.t.Context(), e.node
	put := func(name string) error {
		_, err := n.Write(ctx, func(tx *node.Tx) error {
			return errors.Join(tx.Invalidate(e.namespace, []string{"1", "2"}, node.Batch(e.tag(name))), tx.InvalidateTag([]string{e.tag("3")}, node.Batch(e.tag(name))))
		})
		return err
	}
	e.changes("in a batch", "1", false, func() error { return put("b") })
	e.must(put("a"))
	if got := e.batches(); got != "a:3:false b:3:false" {
		e.t.Errorf("batches %q", got)
	}
	run := func(do func(context.Context, string) (int64, error), name string, want int64) func() error {
		return func() error {
			ran, err := do(ctx, e.tag(name))
			if ran != want {
				e.t.Errorf("batch %s: %d entries, want %d", name, ran, want)
			}
			return err
		}
	}
	e.changes("a batch of no name that there is", "1", false, run(n.RunBatch, "c", 0))
	e.changes("the batch", "3", true, run(n.RunBatch, "b", 3))
	e.changes("again", "1", false, run(n.RunBatch, "b", 0))
	e.changes("one that is dropped", "1", false, run(n.DropBatch, "a", 3))
	e.changes("when it is gone", "1", false, run(n.RunBatch, "a", 0))
	if got := e.batches(); got != "" {
		e.t.Errorf("batches %q", got)
	}
}

// A batch is due as a whole with the first of its changes.
func batchWhenDue(e *exercise) {
	ctx := e.t.Context()
	first, second := e.get("1").Value, e.get("2").Value
	_, err := e.node.Invalidate(ctx, e.namespace, []string{"1"}, node.Batch(e.tag("b")))
	e.must(err)
	_, err = e.node.Invalidate(ctx, e.namespace, []string{"2"}, node.Batch(e.tag("b")), node.After(50*time.Millisecond))
	e.must(err)
	e.eventually("the batch is due", func() bool { return e.get("1").Value != first && e.get("2").Value != second && e.batches() == "" })
}

// Two that run a batch at once run each change once, and what the other runs is done when either returns.
func batchOfTwo(e *exercise) {
	ctx := e.t.Context()
	ids := make([]string, 2500)
	for i := range ids {
		ids[i] = fmt.Sprint(i)
	}
	_, err := e.node.Invalidate(ctx, e.namespace, ids, node.Batch(e.tag("b")))
	e.must(err)
	var ran atomic.Int64
	var work sync.WaitGroup
	for range 2 {
		work.Go(func() {
			n, err := e.node.RunBatch(ctx, e.tag("b"))
			if err != nil {
				e.t.Error(err)
			}
			ran.Add(n)
			if got := e.batches(); got != "" {
				e.t.Errorf("when one returns: batches %q", got)
			}
		})
	}
	work.Wait()
	if ran.Load() != int64(len(ids)) {
		e.t.Errorf("%d entries are run, of %d", ran.Load(), len(ids))
	}
}

func changeGenerations(e *exercise) {
	ctx, n := e.t.Context(), e.node
	why := node.GenerationChange{Why: "a test", By: "exercise"}
	began := n.Generation("").Global
	is := func(global, namespace uint32) {
		e.t.Helper()
		want := node.Generation{Global: began + global, Namespace: namespace}
		if g := n.Generation(e.namespace); g != want {
			e.t.Errorf("the generation is %v, want %v", g, want)
		}
	}
	is(0, 1)
	first := e.get("1").Value
	e.changes("a new generation", "1", true, func() error { _, _, err := n.NextGeneration(ctx, e.namespace, why); return err })
	is(0, 2)
	e.changes("of another namespace", "1", false, func() error { _, _, err := n.NextGeneration(ctx, "other", why); return err })
	e.changes("of all", "1", true, func() error { _, _, err := n.NextGeneration(ctx, "", why); return err })
	is(1, 2)
	e.changes("one of choice", "1", true, func() error { _, err := n.SetGeneration(ctx, e.namespace, 9, why); return err })
	e.changes("the same", "1", false, func() error { _, err := n.SetGeneration(ctx, e.namespace, 9, why); return err })
	is(1, 9)
	if number, _, err := n.RollbackGeneration(ctx, e.namespace, 0, why); number != 2 || err != nil {
		e.t.Errorf("back to %d, %v", number, err)
	}
	if number, _, err := n.RollbackGeneration(ctx, e.namespace, 1, why); number != 1 || err != nil {
		e.t.Errorf("back to %d, %v", number, err)
	}
	if number, _, err := n.NextGeneration(ctx, e.namespace, why); number != 10 || err != nil {
		e.t.Errorf("on to %d, %v", number, err)
	}
	is(1, 10)
	if _, err := n.SetGeneration(ctx, e.namespace, 3, node.GenerationChange{Why: "a test", Expect: 9}); !errors.Is(err, node.ErrConflict) {
		e.t.Errorf("a number that is not expected: %v", err)
	}
	_, err := n.Write(ctx, func(tx *node.Tx) error {
		return errors.Join(tx.SetGeneration(e.namespace, 3, node.GenerationChange{Why: "a test", Expect: 10}), tx.Invalidate(e.namespace, nil, node.NextGeneration("twice")))
	})
	e.must(err)
	is(1, 11)
	events, err := n.GenerationHistory(ctx, e.namespace, 100)
	e.must(err)
	var got []string
	for i, event := range events {
		got = append(got, fmt.Sprintf("%s:%d<%d", event.Action, event.Generation, event.Previous))
		if event.Namespace != e.namespace || event.By == "" || event.Why == "" || event.At.IsZero() || i > 0 && event.Number >= events[i-1].Number {
			e.t.Errorf("history has %+v", event)
		}
	}
	if want := "increment:11<3 set:3<10 increment:10<1 rollback:1<2 rollback:2<9 set:9<2 increment:2<1"; strings.Join(got, " ") != want {
		e.t.Errorf("history\n%v, want\n%s", got, want)
	}
	if events, err := n.GenerationHistory(ctx, e.namespace, 2); err != nil || len(events) != 2 || events[0].Generation != 11 {
		e.t.Errorf("the last two: %+v, %v", events, err)
	}
	if e.get("1").Value == first {
		e.t.Error("what was loaded in another generation is used")
	}
}

// Of two that expect the same generation, one succeeds.
func generationsInTwo(e *exercise) {
	ctx := e.t.Context()
	var conflicts atomic.Int64
	var work sync.WaitGroup
	for range 8 {
		work.Go(func() {
			_, _, err := e.node.NextGeneration(ctx, e.namespace, node.GenerationChange{Why: "a test", Expect: 1})
			if errors.Is(err, node.ErrConflict) {
				conflicts.Add(1)
			} else if err != nil {
				e.t.Error(err)
			}
		})
	}
	work.Wait()
	if g := e.node.Generation(e.namespace).Namespace; conflicts.Load() != 7 || g != 2 {
		e.t.Errorf("%d conflicts of 8, generation %d", conflicts.Load(), g)
	}
}

func generationsRefused(e *exercise) {
	ctx, n := e.t.Context(), e.node
	why := node.GenerationChange{Why: "a test"}
	for what, do := range map[string]func() error{
		"no reason": func() error { _, _, err := n.NextGeneration(ctx, e.namespace, node.GenerationChange{}); return err },
		"a long reason": func() error {
			_, _, err := n.NextGeneration(ctx, e.namespace, node.GenerationChange{Why: strings.Repeat("x", 1001)})
			return err
		},
		"a long name": func() error {
			_, _, err := n.NextGeneration(ctx, e.namespace, node.GenerationChange{Why: "a test", By: strings.Repeat("x", 201)})
			return err
		},
		"a bad namespace":                 func() error { _, _, err := n.NextGeneration(ctx, "No Namespace", why); return err },
		"generation 0":                    func() error { _, err := n.SetGeneration(ctx, e.namespace, 0, why); return err },
		"back from the first":             func() error { _, _, err := n.RollbackGeneration(ctx, e.namespace, 0, why); return err },
		"back to one that has never been": func() error { _, _, err := n.RollbackGeneration(ctx, e.namespace, 7, why); return err },
		"back to that which is there":     func() error { _, _, err := n.RollbackGeneration(ctx, e.namespace, 1, why); return err },
	} {
		if err := do(); err == nil || errors.Is(err, node.ErrConflict) {
			e.t.Errorf("%s: %v", what, err)
		}
	}
	if g := n.Generation(e.namespace).Namespace; g != 1 {
		e.t.Errorf("the generation is %v", g)
	}
}
