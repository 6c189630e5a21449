package verify

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"os"
	"slices"
	"sync"
	"time"

	"github.com/freshet-cache/freshet/internal/history"
)

// beginLoad has every replica begin its load.
func (s *stand) beginLoad(ctx context.Context) error {
	s.mu.Lock()
	s.loading, s.files, s.loads, s.later, s.notes = true, nil, nil, nil, nil
	s.mu.Unlock()
	return s.each(func(site *site) error { return site.begin(ctx) })
}

// endLoad has every replica end its load, and does what was put off until then.
func (s *stand) endLoad(ctx context.Context) error {
	s.mu.Lock()
	s.loading = false
	later := s.later
	s.mu.Unlock()
	err := s.each(func(site *site) error { return site.end(ctx) })
	for _, do := range later {
		err = errors.Join(err, do(ctx))
	}
	return err
}

// each does something at every site at once that has a load.
func (s *stand) each(do func(*site) error) error {
	sites := slices.DeleteFunc(s.all(), func(site *site) bool { return site.idle })
	errs := make([]error, len(sites))
	var work sync.WaitGroup
	for i, site := range sites {
		work.Go(func() { errs[i] = do(site) })
	}
	work.Wait()
	return errors.Join(errs...)
}

// startTraffic starts what this process does to rows and replicas, until ctx ends.
func (s *stand) startTraffic(ctx context.Context) {
	for i := range uint64(hoppers) {
		s.traffic.Go(func() { s.hop(ctx, s.phase<<8|(i+1)) })
	}
	if s.options.Alone {
		return
	}
	const outsiders = 4
	for range outsiders {
		s.traffic.Go(func() {
			c := s.choices()
			pace := newPace(s.options.writes() * float64(s.options.replicas()) / 4 / outsiders)
			for pace.wait(ctx) {
				err := s.outside().write(ctx, c)
				if ctx.Err() == nil {
					s.ledger.attempt(err)
				}
			}
		})
	}
}

// probe looks at the source while it is under load.
type probe struct {
	work sync.WaitGroup

	active int        // most backends at work for loads at once
	load   SourceLoad // the worst of each replica
	rates  []float64  // loads per second of all replicas, second by second

	verified, mismatched uint64 // by all replicas in the phase
}

const (
	probeEvery = 25 * time.Millisecond
	rateEvery  = time.Second
)

// startProbe starts a probe that ends with ctx. While Postgres is away there is nothing to see.
func (s *stand) startProbe(ctx context.Context) *probe {
	p := &probe{}
	p.work.Go(func() { p.watchPostgres(ctx, s.db) })
	p.work.Go(func() { p.askReplicas(ctx, s) })
	return p
}

func (p *probe) watchPostgres(ctx context.Context, db *sql.DB) {
	pace := newPace(float64(time.Second) / float64(probeEvery))
	for pace.wait(ctx) {
		var active int
		limited, cancel := context.WithTimeout(ctx, time.Second)
		err := db.QueryRowContext(limited, `select count(*) from pg_stat_activity
			where datname = current_database() and state = 'active' and application_name = 'freshet-load'`).Scan(&active)
		cancel()
		if err == nil {
			p.active = max(p.active, active)
		}
	}
}

// askReplicas asks for their own counts, which begin again in one that was started again.
func (p *probe) askReplicas(ctx context.Context, s *stand) {
	type count struct {
		SourceLoad
		at time.Duration
	}
	pace := newPace(float64(time.Second) / float64(rateEvery))
	last := map[uint32]count{}
	for pace.wait(ctx) {
		var rate float64
		for _, site := range s.all() {
			r := site.here()
			if r == nil {
				continue
			}
			limited, cancel := context.WithTimeout(ctx, rateEvery/4)
			answer, err := r.ask(limited, request{Verb: verbStats})
			cancel()
			if err != nil {
				continue
			}
			load := answer.Stats
			if before, known := last[r.number]; known {
				rate += float64(load.Loads-before.Loads) / (answer.Returned - before.at).Seconds()
				p.verified += load.Verified - before.Verified
				p.mismatched += load.Mismatched - before.Mismatched
			}
			last[r.number] = count{load, answer.Returned}
			p.load.Peak, p.load.Bound = max(p.load.Peak, load.Peak), max(p.load.Bound, load.Bound)
		}
		if len(last) > 0 {
			p.rates = append(p.rates, rate)
		}
	}
}

// tell puts what the probe saw, which has ended, into the report.
func (p *probe) tell(to *Phase) {
	to.Verified = p.verified
	if p.mismatched > 0 { // a false alarm: whatever is wrong, the judge has found
		to.Violations["mismatch"] = p.mismatched
	}
	to.SourceActive, to.SourcePeak, to.SourceBound = p.active, p.load.Peak, p.load.Bound
	for _, r := range p.rates {
		to.SourceRate += r / float64(len(p.rates))
		to.SourceRateMost = max(to.SourceRateMost, r)
	}
}

// quiet returns when no transaction is under way any more that has changed something.
func (s *stand) quiet(ctx context.Context) error {
	ctx, cancel := context.WithTimeoutCause(ctx, quietLimit, errors.New("writes go on"))
	defer cancel()
	pace := newPace(50)
	var last error
	for pace.wait(ctx) {
		var open int
		last = s.db.QueryRowContext(ctx, `select count(*) from pg_stat_activity where datname = current_database() and backend_xid is not null`).Scan(&open)
		if last == nil && open == 0 {
			return nil
		}
	}
	return errors.Join(context.Cause(ctx), last)
}

// collect makes the history of the phase.
func (s *stand) collect(ctx context.Context) (*history.History, error) {
	if err := s.quiet(ctx); err != nil {
		return nil, err
	}
	audit, sent, err := s.audit(ctx)
	if err != nil {
		return nil, err
	}
	seen := Now()
	var files []*history.File
	for _, path := range s.files {
		file, err := history.ReadFile(path)
		if errors.Is(err, os.ErrNotExist) {
			continue // killed before it began
		}
		if err != nil {
			return nil, err
		}
		files = append(files, file)
		s.known = append(s.known, file.Writes...)
		if err := os.Remove(path); err != nil {
			return nil, err
		}
	}
	writes, reads, _ := s.ledger.taken()
	s.known = append(s.known, writes...)
	acked := make(map[uint64]bool, len(s.known))
	for _, w := range s.known {
		acked[w.Op] = acked[w.Op] || w.Acked != history.Never
	}
	// What a writer did not live to note: the row says when it was sent.
	for op, at := range sent {
		if _, noted := acked[op]; !noted {
			s.known = append(s.known, history.Write{Op: op, Sent: at, Acked: history.Never})
		}
	}
	h := history.Join(files, s.known, audit)
	h.Reads = append(h.Reads, reads...)
	// Whoever looks from now on must see what is there now.
	for op, at := range sent {
		if !acked[op] {
			s.known = append(s.known, history.Write{Op: op, Sent: at, Acked: seen})
		}
	}
	return h, nil
}

// audit reads what was committed, in its order for each key, and when each write was sent.
func (s *stand) audit(ctx context.Context) (all []history.Audited, sent map[uint64]time.Duration, err error) {
	rows, err := s.db.QueryContext(ctx, `select id, op, category, sent from verify_audit order by seq`)
	if err != nil {
		return nil, nil, fmt.Errorf("verify: audit: %w", err)
	}
	defer rows.Close()
	sent = map[uint64]time.Duration{}
	for rows.Next() {
		var a history.Audited
		var at int64
		if err := rows.Scan(&a.Key, &a.Op, &a.Group, &at); err != nil {
			return nil, nil, fmt.Errorf("verify: audit: %w", err)
		}
		a.Absent = a.Group == 0
		all = append(all, a)
		sent[a.Op] = time.Duration(at)
	}
	return all, sent, rows.Err()
}

// sweepResult is what the look at everything found besides the answers.
type sweepResult struct {
	took   time.Duration // until every answer was there and FRESH
	lacked string        // what was not there in the end; "" = nothing
}

const (
	sweepBudget = time.Second
	sweepLimit  = 30 * time.Second
)

// sweep asks every replica for everything, and a new one, which knows only what is in L2; a budget
// after the last write, all must answer FRESH. The answers go into the history, the last of each.
func (s *stand) sweep(ctx context.Context, h *history.History) (result sweepResult, err error) {
	began := Now()
	wait(ctx, sweepBudget)
	ctx, cancel := context.WithTimeout(ctx, sweepLimit+startLimit)
	defer cancel()
	guest, err := s.addSite()
	if err != nil {
		return result, err
	}
	defer s.removeSite(guest)
	if err := guest.start(ctx); err != nil {
		return result, err
	}
	var mu sync.Mutex
	err = s.each(func(site *site) error {
		p := site.here()
		if p == nil {
			return errGone
		}
		for pace := newPace(5); ; {
			answer, err := p.ask(ctx, request{Verb: verbSweep, Budget: sweepBudget})
			if err != nil {
				return err
			}
			lacked := answer.Sweep.unproven()
			if lacked != "" && Now()-began < sweepLimit && pace.wait(ctx) {
				continue
			}
			mu.Lock()
			defer mu.Unlock()
			answer.Sweep.add(h, p.number)
			result.took = max(result.took, Now()-began)
			if lacked != "" {
				result.lacked = fmt.Sprintf("replica %d: %s", p.number, lacked)
			}
			return nil
		}
	})
	if err != nil {
		return result, err
	}
	return result, guest.leave(ctx)
}

// unproven says which answer is missing or not FRESH; "" = none.
func (s *sweep) unproven() string {
	var errs, stale int
	for _, r := range s.Rows {
		if r.Error {
			errs++
		} else if !r.Fresh {
			stale++
		}
	}
	for _, l := range s.Lists {
		if l.Error {
			errs++
		} else if !l.Fresh {
			stale++
		}
	}
	if errs+stale == 0 {
		return ""
	}
	return fmt.Sprintf("%d answers are missing and %d are STALE %s", errs, stale, s.First)
}

// add puts the answers into the history.
func (s *sweep) add(h *history.History, replica uint32) {
	for i, r := range s.Rows {
		if !r.Error {
			h.Sweep = append(h.Sweep, history.Read{
				Key: uint64(i + 1), Op: r.Op, Fresh: r.Fresh, Tier: r.Tier, Replica: replica,
				Budget: sweepBudget, Invoked: r.Invoked, Returned: r.Returned,
			})
		}
	}
	for i, l := range s.Lists {
		if !l.Error {
			h.SweepLists = append(h.SweepLists, listOf(uint64(i+1), l.ListAnswer, history.List{
				Replica: replica, Budget: sweepBudget, Invoked: l.Invoked, Returned: l.Returned,
			}))
		}
	}
}
