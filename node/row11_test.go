package node_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/freshet-cache/freshet/node"
)

// childBatch has a child die after it has run a batch and before it commits.
const childBatch = "batch"

// runBatchAndDie is what the child does.
func runBatchAndDie(ctx context.Context, n *node.Node, die func() error) error {
	_, err := n.Write(ctx, func(tx *node.Tx) error {
		var ran int64
		if err := tx.GetContext(ctx, &ran, `select freshet.run_batch('evening')`); err != nil || ran == 0 {
			return fmt.Errorf("%d entries ran: %w", ran, err)
		}
		return die()
	})
	return err
}

// logged counts the changes of a namespace's entities in the log.
func (s *site) logged(namespace string) (n int) {
	s.t.Helper()
	if err := s.db.Get(&n, `select count(*) from freshet.log where namespace = $1 and kind = 'e'`, namespace); err != nil {
		s.t.Fatal(err)
	}
	return n
}

// Row 11: batches are named, listed, run at once, run when due and dropped; each entry counts once, also
// when a replica is killed after it has run a batch and before its commit, and when all replicas run
// what is due at the same time. Under load.
func TestRow11Batches(t *testing.T) {
	s := newSite(t)
	r := s.openReady(2)
	p := s.openParts(r...)
	load := s.traffic(r, trafficConfig{writers: 2, readers: 1})
	ids := make([]string, 200)
	for n := range ids {
		ids[n] = part(n + 1)
	}
	read := func(i int) {
		t.Helper()
		if _, err := p[i].detail.GetMany(t.Context(), ids); err != nil {
			t.Fatal(err)
		}
	}
	read(0)
	read(1)
	s.rename("new", ids...)

	// From Go, in a transaction, and from SQL; what is rolled back is not in it.
	_, err := r[0].Write(t.Context(), func(tx *node.Tx) error {
		return errors.Join(tx.Invalidate("part", ids[:100], node.Batch("evening")), tx.InvalidateTag([]string{"parts"}, node.Batch("other")))
	})
	if err != nil {
		t.Fatal(err)
	}
	s.exec(`select freshet.batch_add('evening', 'part', variadic string_to_array($1, ','))`, strings.Join(ids[100:], ","))
	rolledBack := errors.New("rolled back")
	if _, err := r[0].Write(t.Context(), func(tx *node.Tx) error {
		return errors.Join(tx.Invalidate("part", ids, node.Batch("evening")), rolledBack)
	}); !errors.Is(err, rolledBack) {
		t.Error(err)
	}
	batches, err := r[1].Batches(t.Context())
	if err != nil || len(batches) != 2 || batches[0].Name != "evening" || batches[0].Entries != 200 || batches[1].Entries != 1 ||
		!batches[0].Due.IsZero() || time.Since(batches[0].Since) > time.Minute+slack {
		t.Fatalf("batches: %+v, %v", batches, err)
	}
	s.want(p[1].detail, ids[0], "old", node.Within(0))

	s.kill(childBatch)
	if batches, err = r[0].Batches(t.Context()); err != nil || len(batches) != 2 || batches[0].Entries != 200 || s.logged("part") != 0 {
		t.Fatalf("after the child died before its commit: %+v, %v, %d logged", batches, err, s.logged("part"))
	}
	s.want(p[1].detail, ids[0], "old", node.Within(0))

	// Dropped is dropped; both replicas run the other at once.
	if n, err := r[0].DropBatch(t.Context(), "other"); n != 1 || err != nil {
		t.Errorf("dropped %d, %v", n, err)
	}
	var ran [2]int64
	var both sync.WaitGroup
	for i := range r {
		both.Go(func() {
			var err error
			if ran[i], err = r[i].RunBatch(t.Context(), "evening"); err != nil {
				t.Error(err)
			}
			s.want(p[i].detail, ids[i], "new", node.Within(0)) // whoever has run it
		})
	}
	both.Wait()
	if ran[0]+ran[1] != 200 || s.logged("part") != 200 {
		t.Errorf("ran %v, logged %d; want 200 each once", ran, s.logged("part"))
	}
	for i := range r {
		for _, id := range ids {
			s.want(p[i].detail, id, "new", node.Within(0))
		}
	}
	if batches, err = r[0].Batches(t.Context()); err != nil || len(batches) != 0 {
		t.Errorf("batches are left: %+v, %v", batches, err)
	}

	// A backlog of which parts are due one by one and as a batch: every replica runs what is due.
	s.exec(`select freshet.invalidate_after('100 ms', 'due', variadic array(select 'a' || n from generate_series(1, 1500) n))`)
	s.exec(`select freshet.batch_add('night', 'due', variadic array(select 'b' || n from generate_series(1, 1500) n))`)
	s.exec(`select freshet.batch_after('night', '100 ms')`)
	s.exec(`select freshet.batch_add('night', 'due', 'late')`) // has no time of its own, but its batch has
	s.exec(`select freshet.batch_add('never', 'due', 'never')`)
	s.until("all that is due has run", func() bool { return s.logged("due") >= 3001 })
	if n := s.logged("due"); n != 3001 {
		t.Errorf("%d logged, want 3001 each once", n)
	}
	if batches, err = r[0].Batches(t.Context()); err != nil || len(batches) != 1 || batches[0].Name != "never" {
		t.Errorf("batches are left: %+v, %v", batches, err)
	}
	load.stop()
	load.noneFailed()
}
