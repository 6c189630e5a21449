package verify

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/freshet-cache/freshet/internal/devstack"
	"github.com/freshet-cache/freshet/internal/history"
)

// Options say what a run does. Zero fields mean their defaults; Program has none.
type Options struct {
	// Program is the command line of a process that calls [RunReplica] and nothing else.
	Program []string
	// Replicas is how many there are; 0 = 3.
	Replicas int
	// Keys and Groups are the numbers of rows and of categories; 0 = 2,000 and 100.
	Keys, Groups uint64
	// Duration is shared by all phases; 0 = 5 min. Some faults take longer to show anything: then the
	// run takes longer.
	Duration time.Duration
	// Faults names those to inject, in this order; none = all.
	Faults []string
	// Pairs is how many random pairs of them are injected together after that. All invariants are judged
	// then, too; what is asked of two faults at once is only that they do no lasting harm (I4, I5).
	Pairs int
	// Seed of the random choices of the load and of the pairs.
	Seed uint64
	// Rate is how many reads per second each replica is asked for at most; 0 = 6,000.
	Rate float64
	// Writes is how many rows per second are written through each replica at most; 0 = 80. As much as
	// through all replicas together is written past them.
	Writes float64
	// Alone: nothing is written past the replicas but by faults that do just that.
	Alone bool
	// Budget is what every answer is judged by, whatever it was asked for; 0 = what it was asked for. It is
	// for systems that take no budget.
	Budget time.Duration
	// Stack are the servers; nil = the run starts its own. They are whole when the run begins, and again
	// when it ends without an error.
	Stack *devstack.Stack
	// Progress gets a line for each phase, Log what replicas print; nil = nobody.
	Progress, Log io.Writer
}

func (o Options) replicas() int           { return cmp.Or(o.Replicas, 3) }
func (o Options) keys() uint64            { return cmp.Or(o.Keys, 2000) }
func (o Options) groups() uint64          { return cmp.Or(o.Groups, 100) }
func (o Options) duration() time.Duration { return cmp.Or(o.Duration, 5*time.Minute) }
func (o Options) rate() float64           { return cmp.Or(o.Rate, 6000) }
func (o Options) writes() float64         { return cmp.Or(o.Writes, 80) }

// Validate reports all problems at once, each naming its field.
func (o Options) Validate() error {
	var problems []error
	wrong := func(field, format string, args ...any) {
		problems = append(problems, fmt.Errorf("verify: Options.%s: %s", field, fmt.Sprintf(format, args...)))
	}
	if len(o.Program) == 0 {
		wrong("Program", "is empty; want the command of a replica's process")
	}
	if o.Replicas < 0 || o.Replicas > 16 {
		wrong("Replicas", "%d; want 1 to 16, or 0 for 3", o.Replicas)
	}
	if o.Duration < 0 || o.Duration > 24*time.Hour {
		wrong("Duration", "%v; want up to 24h", o.Duration)
	}
	if o.Budget < 0 {
		wrong("Budget", "%v; want 0 or more", o.Budget)
	}
	if o.Pairs < 0 || o.Pairs > 1000 {
		wrong("Pairs", "%d; want 0 to 1000", o.Pairs)
	}
	for _, r := range []struct {
		field string
		value float64
	}{{"Rate", o.Rate}, {"Writes", o.Writes}} {
		if !(r.value >= 0 && r.value <= 1_000_000) {
			wrong(r.field, "%v per second; want up to a million, or 0 for the default", r.value)
		}
	}
	if o.Keys > 1_000_000 || o.Groups > o.keys() {
		wrong("Keys", "%d rows in %d categories; want up to a million, and no more categories than rows", o.Keys, o.Groups)
	}
	known := Faults()
	for _, name := range o.Faults {
		if !slices.ContainsFunc(known, func(f Fault) bool { return f.Name == name }) {
			wrong("Faults", "%.40q is none; `freshet verify --list` lists them", name)
		}
	}
	return errors.Join(problems...)
}

// plan are the phases of a run.
func (o Options) plan() []fault {
	chosen := catalogue()
	if len(o.Faults) > 0 {
		all := chosen
		chosen = nil
		for _, name := range o.Faults {
			i := slices.IndexFunc(all, func(f fault) bool { return f.name == name })
			chosen = append(chosen, all[i])
		}
	}
	random := rand.New(rand.NewPCG(o.Seed, 1)) //nolint:gosec // choices of a test
	pairable := slices.DeleteFunc(slices.Clone(chosen), func(f fault) bool { return f.name == "none" })
	for n := 0; n < o.Pairs && len(pairable) > 1; n++ {
		a, b := random.IntN(len(pairable)), random.IntN(len(pairable)-1)
		if b >= a {
			b++
		}
		chosen = append(chosen, pair(pairable[a], pairable[b]))
	}
	return chosen
}

// pair is two faults at once. The second ends first. Some cannot be had together, as when one controls a
// server that the other has ended: what could not be done is noted, and everything is put right in the
// end.
func pair(a, b fault) fault {
	return fault{
		name: a.name + " + " + b.name, about: "both at once", least: max(a.least, b.least), lossy: a.lossy || b.lossy,
		inject: func(ctx context.Context, s *stand) (func(context.Context) error, error) {
			var heals []func(context.Context) error
			for _, f := range []fault{a, b} {
				heal, err := f.inject(ctx, s)
				if err != nil {
					s.note("%s: %v", f.name, err)
				}
				if heal != nil {
					heals = append(heals, heal)
				}
			}
			return func(ctx context.Context) error {
				for _, heal := range slices.Backward(heals) {
					if err := heal(ctx); err != nil {
						s.note("in the end: %v", err)
					}
				}
				return s.mend(ctx)
			}, nil
		},
	}
}

// Run verifies the system whose replicas Program starts. It returns a report of the phases that were
// completed, with the error that ended it early, if one did. Broken promises are in the report and no
// error.
func Run(ctx context.Context, o Options) (_ *Report, err error) {
	if err := o.Validate(); err != nil {
		return nil, err
	}
	s, err := raise(ctx, o)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, s.lower()) }()
	report := &Report{Seed: o.Seed, Replicas: o.replicas(), Keys: o.keys()}
	plan := o.plan()
	began := time.Now()
	for i, f := range plan {
		// What is left of the time is shared by what is left to do.
		lasts := (o.duration() - time.Since(began)) / time.Duration(len(plan)-i)
		phase, err := s.run(ctx, f, lasts)
		if err != nil {
			if ctx.Err() != nil {
				err = context.Cause(ctx)
			}
			return report, fmt.Errorf("%s: %w", f.name, err)
		}
		report.Phases = append(report.Phases, *phase)
		if o.Progress != nil {
			fmt.Fprintf(o.Progress, "%2d/%d %s\n", i+1, len(plan), phase.line())
		}
	}
	return report, nil
}

// The parts of a phase.
const (
	beforeShare = 0.2
	duringShare = 0.5
	leastBefore = time.Second
	leastDuring = 2 * time.Second
	leastAfter  = 2500 * time.Millisecond // recovery is promised within 2 s
	spent       = 1800 * time.Millisecond // of a phase, for what comes after the load
	healLimit   = time.Minute
	quietLimit  = 20 * time.Second
)

// run is one phase.
func (s *stand) run(ctx context.Context, f fault, lasts time.Duration) (_ *Phase, err error) {
	lasts -= spent
	before := max(leastBefore, time.Duration(float64(lasts)*beforeShare))
	during := max(leastDuring, f.least, time.Duration(float64(lasts)*duringShare))
	after := max(leastAfter, lasts-before-during)

	s.phase++
	if err := s.beginLoad(ctx); err != nil {
		return nil, err
	}
	traffic, stop := context.WithCancel(ctx)
	probe := s.startProbe(traffic)
	s.startTraffic(traffic)
	quiesce := func() {
		stop()
		probe.work.Wait()
		s.traffic.Wait()
	}
	defer quiesce()
	on := history.Phase{Name: "before", From: Now()}
	wait(ctx, before)

	times := []history.Phase{on, {Name: f.name, From: Now()}}
	times[0].To = times[1].From
	faulted, end := context.WithCancel(ctx)
	defer end()
	heal, err := f.inject(faulted, s)
	if heal != nil {
		// Whatever happens, servers and links are whole for what comes next.
		defer func() {
			if heal != nil {
				err = errors.Join(err, heal(context.WithoutCancel(ctx)))
			}
		}()
	}
	if err != nil {
		return nil, err
	}
	wait(ctx, during)
	healing, cancel := context.WithTimeoutCause(context.WithoutCancel(ctx), healLimit, errors.New("the fault did not end"))
	defer cancel()
	undo := heal
	heal = nil
	if err := undo(healing); err != nil {
		return nil, fmt.Errorf("heal: %w", err)
	}
	times = append(times, history.Phase{Name: "after", From: Now()})
	times[1].To = times[2].From
	wait(ctx, after)
	times[2].To = Now()

	quiesce()
	if err := s.endLoad(ctx); err != nil {
		return nil, err
	}
	if err := ctx.Err(); err != nil {
		return nil, context.Cause(ctx)
	}
	h, err := s.collect(ctx)
	if err != nil {
		return nil, err
	}
	swept, err := s.sweep(ctx, h)
	if err != nil {
		return nil, err
	}
	h.Assign(times)
	s.options.hold(h)
	// What one failover has lost, old copies may show for as long as STALE answers are given.
	p := newPhase(f, h, history.Judge(h, history.Options{Lossy: s.lostUntil > 0, LostUntil: s.lostUntil}))
	p.lost(f, s.newlyLost(h))
	probe.tell(p)
	p.Notes = s.notes
	p.Converged, p.Harm = swept.took, swept.lacked
	s.complete(p)
	return p, nil
}

// hold has all answers judged by one budget, where there is one.
func (o Options) hold(h *history.History) {
	if o.Budget <= 0 {
		return
	}
	for i := range h.Reads {
		h.Reads[i].Budget = o.Budget
	}
	for i := range h.Lists {
		h.Lists[i].Budget = o.Budget
	}
	for i := range h.Joints {
		h.Joints[i].Budget = o.Budget
	}
}

func wait(ctx context.Context, d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
	}
}

// complete adds what replicas counted themselves.
func (s *stand) complete(p *Phase) {
	for _, l := range s.loads {
		p.Slowest = max(p.Slowest, l.Slowest)
		p.Writes += l.Writes
		p.WritesFailed += l.WriteErrors
		p.FirstFail = cmp.Or(p.FirstFail, l.First)
	}
}

// newlyLost counts acknowledged changes that Postgres does not have, and had at the end of the last phase
// or did not know then.
func (s *stand) newlyLost(h *history.History) (n int) {
	for _, c := range h.Lost {
		if at := (history.Entry{Key: c.Key, Op: c.Op}); !s.lost[at] {
			s.lost[at] = true
			n++
		}
	}
	return n
}
