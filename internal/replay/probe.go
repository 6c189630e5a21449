package replay

import (
	"context"
	"net/http"
	"strconv"
	"sync"
	"time"
)

const (
	maxPolls  = 64                    // replicas polled at a time, for all probes together
	pollPause = time.Millisecond      // between two polls of a replica
	failPause = 10 * time.Millisecond // after one that failed
)

// probe asks how long a write takes to reach every replica.
type probe struct {
	id, revision int64
	acked        time.Duration
	sql          bool
}

// prober follows a sample of the writes.
type prober struct {
	d      *Driver
	offers chan probe    // writers send, close closes
	polls  chan struct{} // one token for each poll under way

	mu     sync.Mutex
	next   time.Duration // not before is another write taken
	closed bool
}

func newProber(d *Driver) *prober {
	return &prober{d: d, offers: make(chan probe, 1), polls: make(chan struct{}, maxPolls)}
}

// offer takes the write into the sample, or does not; it never waits.
func (p *prober) offer(w probe) {
	rate := p.d.config.probes()
	if rate == 0 || p.d.config.Replicas == nil {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed || w.acked < p.next {
		return
	}
	select {
	case p.offers <- w:
		p.next = w.acked + time.Duration(float64(time.Second)/rate)
	default: // run is busy starting polls
	}
}

// close ends run when the polls under way have ended.
func (p *prober) close() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.closed = true
	close(p.offers)
}

// run starts polls for each write in the sample, until close; it waits for all of them.
func (p *prober) run(ctx context.Context) {
	var polls sync.WaitGroup
	defer polls.Wait()
	for w := range p.offers {
		replicas := p.d.config.replicas()
		for _, r := range replicas {
			select {
			case p.polls <- struct{}{}:
				polls.Go(func() {
					defer func() { <-p.polls }()
					p.poll(ctx, w, r)
				})
			default:
				p.d.tally.probe(func(c *ProbeReport) { c.Skipped++ })
			}
		}
		p.d.tally.probe(func(c *ProbeReport) { c.Writes++ })
	}
}

// poll asks one replica until it shows the write. A replica that is taken away meanwhile proves
// nothing; one that stays and does not show the write counts with the whole limit.
func (p *prober) poll(ctx context.Context, w probe, r Replica) {
	d := p.d
	limit := w.acked + d.config.probeLimit()
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		a, err := d.ask(ctx, question{
			method: http.MethodGet, url: "http://" + r.API + "/products/" + strconv.FormatInt(w.id, 10), budget: -1,
		})
		pause := pollPause
		switch {
		case ctx.Err() != nil:
			return
		case err != nil || a.ID != w.id:
			if !p.running(r) {
				d.tally.probe(func(c *ProbeReport) { c.Gone++ })
				return
			}
			pause = failPause
			d.tally.probe(func(c *ProbeReport) { c.Failed++ })
		default:
			d.observe(a, read{id: w.id, budget: -1})
			d.tally.probe(func(c *ProbeReport) { c.Reads++ })
			if a.Revision >= w.revision {
				d.tally.changed(a.returned-w.acked, w.sql)
				return
			}
		}
		if now := d.clock(); now >= limit {
			d.tally.changed(max(now-w.acked, d.config.probeLimit()), w.sql)
			excused := d.faults.excuse(w.acked, now)
			d.tally.probe(func(c *ProbeReport) {
				c.Unseen++
				if excused {
					c.UnseenExcused++
				}
			})
			return
		}
		timer.Reset(pause)
		select {
		case <-timer.C:
		case <-ctx.Done():
			return
		}
	}
}

// running reports whether the replica is still there, at the same address.
func (p *prober) running(r Replica) bool {
	for _, now := range p.d.config.replicas() {
		if now.ID == r.ID && now.API == r.API {
			return true
		}
	}
	return false
}
