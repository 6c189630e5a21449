package sim

import (
	"slices"
	"strconv"
	"strings"
	"testing/synctest"
	"time"

	"github.com/freshet-cache/freshet/internal/model"
	"github.com/freshet-cache/freshet/tiers"
)

// Outcome is what became of one history.
type Outcome struct {
	Violations []Violation
	// Digest is of everything that happened; the same plan has the same.
	Digest uint64

	Steps, Reads, Fresh, Errors, Writes, Commits, Lost, Loads int
	Graced                                                    int           // answers in their grace
	Tiers                                                     [8]int        // answers by tier
	Faults                                                    [lastOp]int   // by kind
	Virtual                                                   time.Duration // that passed
	Transcript                                                string        // if it was asked for
}

// Failed reports whether a promise was broken.
func (o *Outcome) Failed() bool { return len(o.Violations) > 0 }

// Run runs the history of a plan. It must be called in a bubble of [synctest.Test].
func Run(p Plan, transcript bool) Outcome {
	w := &world{
		plan: p, began: time.Now(), arrived: make(chan struct{}, 1), calls: map[callName]uint32{},
		postgres: model.NewPostgres(watch(), model.FirstXID), redis: model.NewRedis(shards), sessions: map[int]*session{},
		log: &record{segments: map[register][]segment{}},
	}
	if transcript {
		w.trace = &strings.Builder{}
	}
	w.postgres.Renew(0)
	w.observe()
	w.replicas = make([]*replica, p.Replicas)
	w.mu.Lock()
	for place := range w.replicas {
		w.replicas[place] = w.start(place)
	}
	for _, r := range w.replicas {
		_, d := w.name(r.boot, callBeat, "first")
		w.at(d.span(0, beat), r.boot, callBeat, "", 0, func() { w.beats(r) })
	}
	w.save()
	var last time.Duration
	for i, op := range p.Ops {
		w.at(op.At, scheduler, callOp, strconv.Itoa(i), 0, func() { w.begin(op) })
		last = max(last, op.At)
	}
	w.mu.Unlock()
	w.schedule(last + 100*time.Millisecond)
	w.mu.Lock()
	w.heal()
	w.mu.Unlock()
	w.schedule(w.now() + converge)
	w.sweep()
	w.schedule(w.now())
	for _, r := range w.replicas {
		w.mu.Lock()
		w.spawn(r.close)
		w.mu.Unlock()
	}
	w.schedule(w.now())
	synctest.Wait()
	w.out.Violations = append(w.out.Violations, w.log.judge()...)
	if p.Seed%8 == 0 && !slices.ContainsFunc(p.Ops, func(op Op) bool { return op.Kind == Rekey || op.Kind == PostgresFailover }) {
		w.out.Violations = append(w.out.Violations, w.log.other()...)
	}
	w.out.Digest, w.out.Virtual = w.digest, w.now()
	if w.trace != nil {
		w.out.Transcript = w.trace.String()
	}
	return w.out
}

// converge is how long after the last fault every replica must be able to answer FRESH: one budget.
const converge = time.Second

// restart kills the process at a place and starts another.
func (w *world) restart(place int) {
	old := w.replicas[place]
	w.replicas[place] = w.start(place)
	w.beats(w.replicas[place])
	w.spawn(old.close)
}

// sweep reads everything on every replica, from what it has in L1 and then from what is in L2, and on a
// new replica (I5): all must be FRESH and what Postgres holds.
func (w *world) sweep() {
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.replicas) < maxReplicas {
		w.replicas = append(w.replicas, w.start(len(w.replicas)))
	}
	for _, r := range w.replicas {
		w.spawn(func() {
			w.look(r, sweeping)
			if w.plan.MaxEntries > 2*w.plan.Keys && w.plan.TTL >= time.Minute {
				// When a poll has seen all, what has just been answered is a hit: hints of the last write may
				// still have been on their way before.
				if _, err := r.tracker.Barrier(r.life); err == nil {
					w.look(r, sweeping)
					w.look(r, sweepingL1)
				}
			}
			bare := *r
			bare.rows, bare.detail, bare.lists = r.caches()
			w.look(&bare, sweeping)
			bare.closeCaches()
		})
	}
}

// look reads everything with a replica.
func (w *world) look(r *replica, how int) {
	want := tiers.Want{Budget: converge}
	op := Op{Kind: ReadMany, Budget: converge, N: how}
	rows, lists := make([]string, w.plan.Keys), make([]string, w.plan.Groups)
	for i := range rows {
		rows[i] = strconv.Itoa(i + 1)
	}
	for i := range lists {
		lists[i] = listID(i + 1)
	}
	invoked := w.now()
	values, err := r.rows.LookupMany(r.life, rows, want)
	for i := range values {
		told(w, op, r, register{rowRegister, i + 1}, invoked, &values[i], values[i].Value.Op, err)
	}
	invoked = w.now()
	values, err = r.detail.LookupMany(r.life, rows, want)
	for i := range values {
		told(w, op, r, register{detailRegister, i + 1}, invoked, &values[i], values[i].Value.Op, err)
	}
	invoked = w.now()
	found, err := r.lists.LookupMany(r.life, lists, want)
	for i := range found {
		told(w, op, r, register{listRegister, i + 1}, invoked, &found[i], sumOf(found[i].Value), err)
	}
}

// These mark the reads of the sweep.
const (
	sweeping   = -1
	sweepingL1 = -2 // and the answer must come from L1
)

// spawn runs something beside the scheduler, which goes on until it has ended. The caller holds the
// world's lock.
func (w *world) spawn(f func()) {
	w.running++
	go func() {
		f()
		w.mu.Lock()
		w.running--
		w.mu.Unlock()
		select {
		case w.arrived <- struct{}{}:
		default:
		}
	}()
}
