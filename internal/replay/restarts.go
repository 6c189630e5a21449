package replay

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"time"
)

const (
	// RecoveryLimit is how long a replica may take, from when it is in service, until its caches serve as well as those
	// of the one that it replaced.
	RecoveryLimit = 5 * time.Second
	// recovered is the part of the former hit ratio that counts as back.
	recovered = 0.95
	// ratioBefore is for how long the ratios before a restart are counted.
	ratioBefore = 2 * time.Second
	// Afterwards they are counted in windows that begin every windowEvery and last windowTime, or longer if the replica has
	// not answered windowReads by then.
	windowEvery = 500 * time.Millisecond
	windowTime  = time.Second
	windowReads = 100
	// maxRestarts bounds those reported.
	maxRestarts = 100
)

// RestartReport is a replica that was replaced by another on purpose. Times are since the run began; ratios are by the
// replicas' own counts, and 0 where nothing was read.
type RestartReport struct {
	Replica   string  `json:"replica"`
	Successor string  `json:"successor"` // may have the same name
	BeganS    float64 `json:"began_s"`   // the first of the two was done: the successor started, or the replica told to drain
	DrainS    float64 `json:"drain_s"`   // seconds that the drain took, up to the end of the process
	ReadyS    float64 `json:"ready_s"`   // the successor was in service
	// Failed requests, from BeganS until the hit ratio was back. None of them is excused.
	Failed uint64 `json:"failed"`
	// Before are the ratios of the replica, and After those of its successor when they were back.
	Before Ratios `json:"before"`
	After  Ratios `json:"after"`
	// AllBefore and AllAfter are those of all replicas together.
	AllBefore Ratios `json:"all_before"`
	AllAfter  Ratios `json:"all_after"`
	// RecoveredS and AllRecoveredS are the seconds from ReadyS until the end of the first window, of a second or of 100 reads
	// if they take longer, in which both ratios were at least 95 % of those before; null = not within 5 s.
	RecoveredS    *float64 `json:"recovered_s"`
	AllRecoveredS *float64 `json:"all_recovered_s"`
	// Measured: there were enough reads before and after to tell.
	Measured bool `json:"measured"`
}

// Ratios are shares of the answers to reads, errors counted as reads.
type Ratios struct {
	L1   float64 `json:"l1"`
	Hits float64 `json:"hits"` // from l1, l2 or an owner: all that did not ask Postgres
}

// ratios are those of what was counted.
func (c counters) ratios() Ratios {
	if c.reads == 0 {
		return Ratios{}
	}
	return Ratios{float64(c.l1) / float64(c.reads), float64(c.l1+c.l2+c.owner) / float64(c.reads)}
}

func (r Ratios) back(before Ratios) bool {
	return r.L1 >= recovered*before.L1 && r.Hits >= recovered*before.Hits
}

// restarts are those of one run, in their order.
type restarts struct {
	mu  sync.Mutex
	all []*Restart
}

func (rs *restarts) reports() []RestartReport {
	rs.mu.Lock()
	defer rs.mu.Unlock()
	reports := []RestartReport{}
	for _, r := range rs.all {
		reports = append(reports, r.report)
	}
	return reports
}

// Restart is the replacement of one replica during a run: [Driver.Restart]; then [Restart.Draining] with [Restart.Drained], and
// [Restart.Ready], in either order; then [Restart.Recover]. It is for one goroutine.
type Restart struct {
	d      *Driver
	failed uint64        // requests, before
	drain  time.Duration // when it began; 0 = not yet
	ready  sample        // when the successor was in service

	report RestartReport // under the restarts' lock
}

// sample is what the replicas had counted at a moment.
type sample struct {
	at time.Duration
	of map[string]reading // id -> its
}

// Restart counts the hit ratios of the replica and of all for a while, and then says that it is going to be replaced.
// Requests that fail from now on are not excused.
func (d *Driver) Restart(ctx context.Context, replica string) (*Restart, error) {
	first := d.sample(ctx)
	if !pause(ctx, ratioBefore) {
		return nil, context.Cause(ctx)
	}
	second := d.sample(ctx)
	r := &Restart{d: d, failed: d.tally.unexcused()}
	of, all := grown(first, second, replica)
	r.report = RestartReport{
		Replica: replica, BeganS: d.clock().Seconds(), Before: of.ratios(), AllBefore: all.ratios(), Measured: of.reads >= windowReads,
	}
	d.restarts.mu.Lock()
	defer d.restarts.mu.Unlock()
	if len(d.restarts.all) >= maxRestarts {
		return nil, fmt.Errorf("replay: more than %d restarts", maxRestarts)
	}
	d.restarts.all = append(d.restarts.all, r)
	return r, nil
}

func (r *Restart) set(change func(*RestartReport)) {
	r.d.restarts.mu.Lock()
	defer r.d.restarts.mu.Unlock()
	change(&r.report)
}

// Draining says that the replica is told to drain.
func (r *Restart) Draining() { r.drain = r.d.clock() }

// Drained says that its process has ended.
func (r *Restart) Drained() {
	r.set(func(s *RestartReport) { s.DrainS = (r.d.clock() - r.drain).Seconds() })
}

// Ready says that the successor is in service.
func (r *Restart) Ready(ctx context.Context, successor string) {
	r.ready = r.d.sample(ctx)
	r.set(func(s *RestartReport) { s.Successor, s.ReadyS = successor, r.ready.at.Seconds() })
}

// Recover follows the hit ratios until they are back, or for [RecoveryLimit] from Ready on, or until ctx ends, and returns
// what came of the restart.
func (r *Restart) Recover(ctx context.Context) RestartReport {
	var of, all recovery
	samples := []sample{r.ready}
	for (of.back == 0 || all.back == 0) && r.d.clock()-r.ready.at < RecoveryLimit && pause(ctx, windowEvery) {
		now := r.d.sample(ctx)
		for _, first := range slices.Backward(samples) {
			its, sum := grown(first, now, r.report.Successor)
			if now.at-first.at >= windowTime && its.reads >= windowReads {
				of.note(now.at-r.ready.at, its.ratios(), r.report.Before)
				all.note(now.at-r.ready.at, sum.ratios(), r.report.AllBefore)
				break
			}
		}
		samples = append(samples, now)
	}
	r.set(func(s *RestartReport) {
		s.Failed = r.d.tally.unexcused() - r.failed
		s.Measured = s.Measured && of.measured
		s.After, s.RecoveredS = of.ratios, of.seconds()
		s.AllAfter, s.AllRecoveredS = all.ratios, all.seconds()
	})
	return r.report
}

// recovery is how ratios come back, window by window.
type recovery struct {
	measured bool          // there was a window
	back     time.Duration // the end of the first one that was as good as before; 0 = none so far
	ratios   Ratios        // of that one, or of the last
}

func (v *recovery) note(at time.Duration, now, before Ratios) {
	v.measured = true
	if v.back > 0 {
		return
	}
	if v.ratios = now; now.back(before) {
		v.back = at
	}
}

func (v *recovery) seconds() *float64 {
	if v.back == 0 {
		return nil
	}
	s := v.back.Seconds()
	return &s
}

// sample asks the running replicas. One that does not answer is missing.
func (d *Driver) sample(ctx context.Context) sample {
	running := d.config.replicas()
	readings := make([]reading, len(running))
	s := sample{d.clock(), map[string]reading{}}
	var asking sync.WaitGroup
	for i, r := range running {
		asking.Go(func() {
			if told, err := readStats(ctx, d.client, r.Admin); err == nil {
				readings[i] = told
			}
		})
	}
	asking.Wait()
	for i, r := range running {
		if readings[i].boot != 0 {
			s.of[r.ID] = readings[i]
		}
	}
	return s
}

// grown is what the replica, and all together, counted between two samples. One that began meanwhile is counted from its
// start.
func grown(first, second sample, replica string) (of, all counters) {
	for id, now := range second.of {
		c := now.counters
		if before, known := first.of[id]; known && before.boot == now.boot {
			c = c.since(before.counters)
		}
		if id == replica {
			of = c
		}
		all.add(c)
	}
	return of, all
}

// pause reports whether the time went by before ctx ended.
func pause(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-timer.C:
		return true
	}
}
