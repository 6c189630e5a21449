package replay

import (
	"context"
	"encoding/json"
	"io"
	"net/http"
	"sync"
	"time"

	"github.com/freshet-cache/freshet/node"
)

// counters are sums over the namespaces of a replica, or over replicas.
type counters struct{ reads, l1, l2, owner, loads, negative uint64 }

func (c *counters) add(o counters) {
	c.reads += o.reads
	c.l1 += o.l1
	c.l2 += o.l2
	c.owner += o.owner
	c.loads += o.loads
	c.negative += o.negative
}

// since is what was counted from before until c; before is of the same process.
func (c counters) since(before counters) counters {
	less := func(a, b uint64) uint64 { return a - min(a, b) }
	return counters{
		less(c.reads, before.reads), less(c.l1, before.l1), less(c.l2, before.l2), less(c.owner, before.owner),
		less(c.loads, before.loads), less(c.negative, before.negative),
	}
}

// servers adds up the replicas' own counters over a run in which they may be restarted.
type servers struct {
	mu    sync.Mutex
	last  map[string]reading // replica id -> its last reading
	total counters
	heard bool // at least one replica has answered
}

type reading struct {
	boot uint64
	counters
}

func newServers() *servers { return &servers{last: make(map[string]reading)} }

// run reads every second, so that a replica that is killed takes little of its count with it.
func (s *servers) run(ctx context.Context, client *http.Client, replicas func() []Replica) {
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			s.read(ctx, client, replicas(), false)
		}
	}
}

// read asks each replica. The first time sets what the others are counted from; a replica that
// comes later, or again, is counted from its start. One that does not answer keeps its last reading.
func (s *servers) read(ctx context.Context, client *http.Client, replicas []Replica, first bool) {
	for _, r := range replicas {
		if r.Admin == "" {
			continue
		}
		now, err := readStats(ctx, client, r.Admin)
		if err != nil {
			continue
		}
		s.mu.Lock()
		s.heard = true
		before, known := s.last[r.ID]
		switch {
		case first:
		case known && before.boot == now.boot:
			s.total.add(now.since(before.counters))
		default:
			s.total.add(now.counters)
		}
		s.last[r.ID] = now
		s.mu.Unlock()
	}
}

const (
	statsLimit = 2 * time.Second
	maxStats   = 1 << 20 // bytes
)

func readStats(ctx context.Context, client *http.Client, admin string) (reading, error) {
	ctx, cancel := context.WithTimeout(ctx, statsLimit)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+admin+"/admin/v1/stats", nil)
	if err != nil {
		return reading{}, err
	}
	resp, err := client.Do(req)
	if err != nil {
		return reading{}, err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return reading{}, &failure{"stats", resp.Status}
	}
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxStats))
	if err != nil {
		return reading{}, err
	}
	var stats node.Stats
	if err := json.Unmarshal(body, &stats); err != nil {
		return reading{}, err
	}
	r := reading{boot: stats.Boot}
	for _, n := range stats.Namespaces {
		r.add(counters{n.Reads, n.L1Hits, n.L2Hits, n.OwnerHits, n.Loads, n.Negative})
	}
	return r, nil
}

// fill puts the servers' own counts into the report, in the place of the clients'.
func (s *servers) fill(r *Report) {
	s.mu.Lock()
	defer s.mu.Unlock()
	r.CountsFrom = "answers"
	if s.heard {
		r.CountsFrom = "replicas"
		r.HitsL1, r.HitsL2, r.OwnerFills, r.SourceLoads, r.NegativeHits = s.total.l1, s.total.l2, s.total.owner, s.total.loads, s.total.negative
	}
}
