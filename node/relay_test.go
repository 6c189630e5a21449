package node_test

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/freshet-cache/freshet/node"
)

// Of 64 nodes two poll Postgres, and the others by way of them: without a connection of their own, each
// seeing each change within its budget, also when relays die.
func TestRelay64Nodes(t *testing.T) {
	const (
		count    = 64
		interval = 500 * time.Millisecond // 64 nodes share two cores with everything else
		budget   = 2 * time.Second
	)
	s := newSite(t)
	nodes := make([]*replica, count)
	for i := range nodes {
		nodes[i] = s.open(func(c *node.Config, _ *node.CacheConfig[Thing]) {
			c.ID = fmt.Sprintf("r%02d", i)
			c.Redis.Addrs = nil
			c.Budget = budget
			c.Postgres.PollInterval, c.Postgres.MaxConns = interval, 1
		})
	}
	for _, r := range nodes {
		s.ready(r)
		s.until("members see each other", func() bool { return len(r.Stats().Members) == count })
	}
	connections := func() (n int) {
		if err := s.db.GetContext(t.Context(), &n, `select count(*) from pg_stat_activity where datname = current_database() and application_name = 'freshet-log'`); err != nil {
			t.Fatal(err)
		}
		return n
	}
	polls := func() (direct, all uint64) {
		for _, r := range nodes {
			st := r.Stats()
			direct += st.PollsDirect
			all += st.PollsDirect + st.PollsRelayed
		}
		return direct, all
	}
	// change changes things through nodes and past them, and every node must answer with it within the budget.
	change := func(round int) {
		for i := range 4 {
			id, name := thing(10*round+i+1), fmt.Sprintf("round %d", round)
			if i%2 == 0 {
				s.exec(`update things set name = $1 where id = $2`, name, id)
			} else if _, err := nodes[(round*7+i)%len(nodes)].DB().ExecContext(t.Context(), `update things set name = $1 where id = $2`, name, id); err != nil {
				t.Fatal(err)
			}
			acked := time.Now()
			var all sync.WaitGroup
			for _, r := range nodes {
				all.Go(func() {
					for {
						invoked := time.Now()
						e, err := r.things.Lookup(t.Context(), id)
						switch {
						case errors.Is(err, node.ErrOverloaded), errors.Is(err, context.DeadlineExceeded):
						case err != nil:
							t.Errorf("%s: %v", r.ID(), err)
							return
						case e.Value.Name == name:
							return
						case invoked.Sub(acked) > budget && e.Fresh:
							t.Errorf("%s answered %q, FRESH, %v after %q was acknowledged", r.ID(), e.Value.Name, invoked.Sub(acked), name)
							return
						}
						select {
						case <-time.After(20 * time.Millisecond):
						case <-t.Context().Done():
							return
						}
					}
				})
			}
			all.Wait()
		}
	}
	change(1)
	// Where 64 nodes have too little of two cores, relays are late at first, and their askers poll for themselves.
	s.until("few polls reach Postgres", func() bool {
		before, beforeAll := polls()
		began := time.Now()
		server := serverPolls(s, 2*time.Second)
		direct, all := polls()
		took := time.Since(began).Seconds()
		rate, total, atServer := float64(direct-before)/took, float64(all-beforeAll)/took, float64(server)/took
		t.Logf("%d nodes: %.1f polls/s on Postgres, which saw %.1f, for %.1f polls/s of the nodes", count, rate, atServer, total)
		return server > 0 && rate < total/4 && atServer < total/4
	})
	s.until("nodes give back their connections", func() bool { return connections() < count/4 })
	t.Logf("%d connections for polls in the end", connections())
	change(2)

	// The relays go.
	var left []*replica
	for _, r := range nodes {
		if r.Stats().PollsGiven > 0 {
			if err := r.Close(); err != nil {
				t.Error(err)
			}
			continue
		}
		left = append(left, r)
	}
	if len(left) == len(nodes) {
		t.Error("nobody relayed")
	}
	t.Logf("%d relays closed", len(nodes)-len(left))
	nodes = left
	change(3)
}

// serverPolls counts the statements on connections for polls, as Postgres tells, for so long. Of a connection
// with more than one in 50 ms it misses some.
func serverPolls(s *site, d time.Duration) int {
	s.t.Helper()
	type statement struct {
		PID     int       `db:"pid"`
		Started time.Time `db:"query_start"`
	}
	seen := map[statement]bool{}
	look := func() {
		var now []statement
		if err := s.db.SelectContext(s.t.Context(), &now, `select pid, query_start from pg_stat_activity
			where datname = current_database() and application_name = 'freshet-log' and state = 'idle' and query_start is not null`); err != nil {
			s.t.Fatal(err)
		}
		for _, st := range now {
			st.Started = st.Started.UTC()
			seen[st] = true
		}
	}
	look()
	before := len(seen)
	end, tick := time.NewTimer(d), time.NewTicker(10*time.Millisecond)
	defer end.Stop()
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			look()
		case <-end.C:
			return len(seen) - before
		}
	}
}
