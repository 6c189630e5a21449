package admin_test

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/freshet-cache/freshet/internal/devstack/stacktest"
	"github.com/freshet-cache/freshet/node"
	"github.com/freshet-cache/freshet/node/admin"
)

// load reads and writes things on the replicas until stop is called, which fails the test for reads that failed. The
// last ten things are left alone.
func (s *site) load(replicas ...*replica) (stop func()) {
	end := make(chan struct{})
	var work sync.WaitGroup
	var reads atomic.Int64
	going := func() bool {
		select {
		case <-end:
			return false
		default:
			return true
		}
	}
	id := func() string { return fmt.Sprintf("thing-%d", 1+rand.IntN(190)) }
	for _, r := range replicas {
		work.Go(func() {
			for going() {
				if _, err := r.things.Get(s.t.Context(), id()); err != nil {
					s.t.Errorf("a read failed: %v", err)
					return
				}
				reads.Add(1)
			}
		})
	}
	work.Go(func() {
		for going() {
			if _, err := s.db.ExecContext(s.t.Context(), `update things set name = name || '.' where id = $1`, id()); err != nil {
				s.t.Errorf("a write failed: %v", err)
				return
			}
		}
	})
	return func() {
		s.t.Helper()
		close(end)
		work.Wait()
		s.t.Logf("%d reads", reads.Load())
	}
}

// since reads the thing by what is known of Postgres since the time, and returns the entry.
func (r *replica) since(at time.Time, id string) node.Entry[Thing] {
	r.t.Helper()
	e, err := r.things.Lookup(r.t.Context(), id, node.Within(time.Since(at)))
	if err != nil || !e.Fresh {
		r.t.Fatalf("a read of %s: FRESH %t, %v", id, e.Fresh, err)
	}
	return e
}

// isProblem reports whether the error is an answer of the status.
func isProblem(err error, status int) bool {
	p, ok := errors.AsType[*admin.ProblemError](err)
	return ok && p.Status == status
}

// Generations over HTTP, on two replicas under load: of operators who expect the same number one wins, the others are
// told so, and every replica has what he made of it by its next proof, with NATS or without. The history knows all.
func TestRow16AdminAPI(t *testing.T) {
	s := newSite(t)
	const kept = "thing-200" // the load leaves it alone, and its tag
	s.exec(`update things set kind = 'kept' where id = $1`, kept)
	a, b := s.pair(nil)
	stop := s.load(a, b)
	ctx := t.Context()

	const rounds, operators = 4, 6
	for round := range uint32(rounds) {
		for _, r := range []*replica{a, b} {
			s.until("it is in L1", func() bool {
				e, err := r.things.Lookup(ctx, kept)
				return err == nil && e.Tier == node.TierL1
			})
		}
		results := make(chan error, operators)
		for i := range operators {
			go func() {
				client := admin.Client{URL: []string{a.server.URL, b.server.URL}[i%2], Token: token, HTTP: &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}}
				is, err := client.NextGeneration(ctx, "thing", node.GenerationChange{Why: "a race", By: fmt.Sprint("operator ", i), Expect: 1 + round})
				if err == nil && (is.Generation != 2+round || is.Namespace != "thing" || is.Token == "") {
					err = fmt.Errorf("it became %+v", is)
				}
				results <- err
			}()
		}
		won := 0
		for range operators {
			switch err := <-results; {
			case err == nil:
				won++
			case !isProblem(err, http.StatusConflict) || !strings.Contains(err.Error(), fmt.Sprintf("is %d, not %d as expected", 2+round, 1+round)):
				t.Error(err)
			}
		}
		done := time.Now()
		if won != 1 {
			t.Errorf("%d of %d operators won", won, operators)
		}
		// Whoever reads with a budget that began after the answer gets nothing of before.
		for _, r := range []*replica{a, b} {
			e := r.since(done, kept)
			if g := r.Generation("thing").Namespace; e.Tier == node.TierL1 || g != 2+round {
				t.Errorf("round %d: %s is answered from %v in generation %d", round, kept, e.Tier, g)
			}
			if is, err := r.client.Generations(ctx); err != nil || is.Application != 1 || len(is.Namespaces) != 1 || is.Namespaces[0] != (admin.NamespaceGeneration{Namespace: "thing", Generation: 2 + round}) {
				t.Errorf("the generations are told as %+v, %v", is, err)
			}
		}
	}

	// Without NATS it goes by polls alone.
	nats := stacktest.Stack().NATS
	if err := nats.Stop(); err != nil {
		t.Fatal(err)
	}
	rolled, err := a.client.RollbackGeneration(ctx, "thing", 2, node.GenerationChange{Why: "it was right"})
	done := time.Now()
	if err != nil || rolled.Generation != 2 {
		t.Errorf("rolled back to %+v, %v", rolled, err)
	}
	b.since(done, kept)
	if g := b.Generation("thing").Namespace; g != 2 {
		t.Errorf("without NATS the other replica is in generation %d", g)
	}
	if err := nats.Start(); err != nil {
		t.Fatal(err)
	}

	if is, err := b.client.SetGeneration(ctx, "", 7, node.GenerationChange{Why: "another encoding", By: "ann"}); err != nil || is != (admin.ChangedGeneration{Generation: 7, Token: is.Token}) {
		t.Errorf("the application's became %+v, %v", is, err)
	}
	if _, err := b.client.SetGeneration(ctx, "", 7, node.GenerationChange{Why: "again"}); err != nil {
		t.Errorf("set what it is: %v", err)
	}
	stranger := admin.Client{URL: a.server.URL, Token: strings.Repeat("x", 40), HTTP: a.client.HTTP}
	if _, err := stranger.NextGeneration(ctx, "thing", node.GenerationChange{Why: "mischief"}); !isProblem(err, http.StatusUnauthorized) {
		t.Errorf("with a wrong token: %v", err)
	}
	for _, c := range []struct {
		err  error
		want string
	}{
		{err: second(a.client.RollbackGeneration(ctx, "thing", 99, node.GenerationChange{Why: "x"})), want: "has not had the generation 99"},
		{err: second(a.client.NextGeneration(ctx, "thin", node.GenerationChange{Why: "x"})), want: `/namespace "thin" has no cache here; want one of thing`},
		{err: second(a.client.NextGeneration(ctx, "thing", node.GenerationChange{})), want: "/why has 0 characters; want 1 to 1000"},
		{err: second(a.client.SetGeneration(ctx, "thing", 0, node.GenerationChange{Why: "x"})), want: "/generation is missing or 0"},
	} {
		if !isProblem(c.err, http.StatusUnprocessableEntity) || !strings.Contains(c.err.Error(), c.want) {
			t.Errorf("%v, want %q", c.err, c.want)
		}
	}
	stop()

	events, err := a.client.GenerationHistory(ctx, "thing", 0)
	if err != nil || len(events) != rounds+1 {
		t.Fatalf("%d changes in the history, %v", len(events), err)
	}
	if e := events[0]; e.Action != "rollback" || e.By != "admin token" || e.Why != "it was right" || e.Previous != rounds+1 || e.Generation != 2 {
		t.Errorf("the last change is %+v", e)
	}
	if e := events[1]; e.Action != "increment" || !strings.HasPrefix(e.By, "operator ") || e.Generation != rounds+1 {
		t.Errorf("the one before is %+v", e)
	}
	if events, err := b.client.GenerationHistory(ctx, "", 1); err != nil || len(events) != 1 || events[0].By != "ann" || events[0].Generation != 7 {
		t.Errorf("the application's history is %+v, %v", events, err)
	}
}

func second[T any](_ T, err error) error { return err }
