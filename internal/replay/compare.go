package replay

import (
	"context"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/lib/pq"

	"github.com/freshet-cache/freshet/internal/check"
)

const (
	compareLimit   = time.Minute     // for the whole comparison
	compareRetries = 5 * time.Second // for one answer that fails or is STALE
	compareWorkers = 32
	comparePage    = 1000 // products per question to Postgres
)

// comparison is how the end state was looked at.
type comparison struct {
	written    int    // products
	compared   int    // products asked for at replicas
	unanswered uint64 // (product, replica) without a FRESH answer with budget 0
	problem    string // why it is not complete
}

// compare asks Postgres for every product written or suspect, and every replica for those written,
// up to the bound.
func (d *Driver) compare(ctx context.Context) comparison {
	written := slices.Sorted(d.checker.Written)
	c := comparison{written: len(written)}
	ctx, cancel := context.WithTimeout(ctx, compareLimit)
	defer cancel()
	ids := append(slices.Collect(d.checker.Suspects), written...)
	slices.Sort(ids)
	ids = slices.Compact(ids)
	final := make(map[int64]int64, len(ids))
	for page := range slices.Chunk(ids, comparePage) {
		if err := d.revisions(ctx, page, final); err != nil {
			c.problem = "the final revisions could not be read from Postgres: " + err.Error()
			return c
		}
		for _, id := range page {
			d.checker.Final(id, final[id])
		}
	}
	if n := d.config.sweep(); len(written) > n {
		// Evenly over all of them, the same every time.
		sample := make([]int64, 0, n)
		for i := range n {
			sample = append(sample, written[i*len(written)/n])
		}
		written = sample
	}
	c.compared = len(written)
	c.unanswered = d.sweep(ctx, written, final)
	if c.unanswered > 0 {
		c.problem = fmt.Sprintf("%d questions with budget 0 had no FRESH answer within %v (all: %v)", c.unanswered, compareRetries, compareLimit)
	}
	return c
}

// revisions reads those of the ids; products that do not exist get 0.
func (d *Driver) revisions(ctx context.Context, ids []int64, into map[int64]int64) error {
	rows, err := d.config.DB.QueryContext(ctx, "select id, revision from products where id = any($1)", pq.Array(ids))
	if err != nil {
		return err
	}
	defer rows.Close()
	found := make(map[int64]int64, len(ids))
	for rows.Next() {
		var id, revision int64
		if err := rows.Scan(&id, &revision); err != nil {
			return err
		}
		found[id] = revision
	}
	if err := rows.Err(); err != nil {
		return err
	}
	for _, id := range ids {
		into[id] = found[id]
	}
	return nil
}

// sweep asks every replica for every id and returns how many questions stayed without answer.
func (d *Driver) sweep(ctx context.Context, ids []int64, final map[int64]int64) (unanswered uint64) {
	type question struct {
		id      int64
		replica Replica
	}
	questions := make(chan question) // this goroutine sends and closes
	var open atomic.Uint64
	var workers sync.WaitGroup
	for range compareWorkers {
		workers.Go(func() {
			for q := range questions {
				if !d.ascertain(ctx, q.id, q.replica, final[q.id]) {
					open.Add(1)
				}
			}
		})
	}
	for _, id := range ids {
		for _, r := range d.config.replicas() {
			questions <- question{id, r}
		}
	}
	close(questions)
	workers.Wait()
	return open.Load()
}

// ascertain asks the replica with budget 0 until it has a FRESH answer, and takes that to the
// checker.
func (d *Driver) ascertain(ctx context.Context, id int64, r Replica, atLeast int64) bool {
	until := d.clock() + compareRetries
	timer := time.NewTimer(0)
	defer timer.Stop()
	for ctx.Err() == nil {
		a, err := d.ask(ctx, question{method: http.MethodGet, url: "http://" + r.API + "/products/" + strconv.FormatInt(id, 10)})
		if err == nil && a.fresh {
			atMost := atLeast
			if a.Revision != atLeast { // another writer may be at work
				now := make(map[int64]int64, 1)
				if err := d.revisions(ctx, []int64{id}, now); err != nil {
					return false
				}
				atMost = max(atLeast, now[id])
			}
			d.checker.Converged(check.Answer{ID: id, Replica: r.ID, Revision: a.Revision, AtLeast: atLeast, AtMost: atMost})
			return true
		}
		if d.clock() >= until {
			return false
		}
		timer.Reset(failPause)
		select {
		case <-timer.C:
		case <-ctx.Done():
		}
	}
	return false
}
