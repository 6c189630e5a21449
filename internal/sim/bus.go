package sim

import (
	"strconv"
	"time"

	"github.com/freshet-cache/freshet/coherence"
)

// beat is the interval of heartbeats.
const beat = time.Second

// publish sends a hint to all other replicas, as [coherence.Bus] does.
func (w *world) publish(r *replica, written coherence.Wrote) {
	w.mu.Lock()
	defer w.mu.Unlock()
	r.seq++
	hint := coherence.Hint{Boot: r.boot, Seq: r.seq, Timeline: written.Timeline, XID: written.XID, Scopes: written.Scopes}
	for _, to := range w.replicas {
		if to != r {
			w.hint(to, hint)
		}
	}
}

// hint lets a hint travel to a replica.
func (w *world) hint(to *replica, hint coherence.Hint) {
	key := strconv.FormatUint(hint.Boot, 10)
	n, d := w.name(to.boot, callHint, key)
	delay := w.latency(&d)
	f, now := &w.faults, w.now()
	copies := 1
	if f.hintsLost[to.place] > now {
		copies = 0
	}
	if f.hintsTwice[to.place] > now {
		copies = 2
	}
	for range copies {
		if f.hintsLate[to.place] > now {
			delay = d.span(0, 2*time.Second)
		}
		w.deliver(to, now+delay, callHint, key, n, coherence.HintHeard{Hint: hint})
		delay += w.latency(&d)
	}
	if len(to.heard) < 4 {
		to.heard = append(to.heard, hint)
	}
}

// deliver hands an event to a process at a time, later if it is stopped then, and not if it is dead.
func (w *world) deliver(to *replica, at time.Duration, kind callKind, key string, n uint32, e coherence.Event) {
	w.at(at, to.boot, kind, key, n, func() {
		if w.dead(to.boot) {
			return
		}
		if at := w.resumed(to.boot, w.now()); at > w.now() {
			w.deliver(to, at, kind, key, n, e)
			return
		}
		w.note(to.boot, kind, key, n, nil)
		if w.trace != nil {
			w.say(to.boot, "hears %T %+v", e, e)
		}
		to.tracker.Observe(e)
	})
}

// beats lets a process send its heartbeats for as long as it lives.
func (w *world) beats(r *replica) {
	if w.dead(r.boot) {
		return
	}
	n, d := w.name(r.boot, callBeat, "")
	for _, to := range w.replicas {
		if to != r && w.faults.hintsLost[to.place] <= w.now() {
			w.deliver(to, w.now()+w.latency(&d), callBeat, strconv.FormatUint(r.boot, 10), n, coherence.PeerHeard{Boot: r.boot, Seq: r.seq})
		}
	}
	w.at(w.now()+beat+w.latency(&d), r.boot, callBeat, "", n, func() { w.beats(r) })
}

// oddHint lets a replica hear what nobody has published now.
func (w *world) oddHint(op Op) {
	to := w.replicas[op.Replica]
	hint := coherence.Hint{
		Boot: to.boot + 1<<20, Seq: 1, Timeline: w.postgres.Timeline(), XID: w.postgres.NextXID() + 1<<40,
		Scopes: []coherence.ScopeHash{coherence.Entity(namespace, strconv.Itoa(max(op.Key, 1))).Hash()},
	}
	switch op.Kind {
	case HintsOfAnother:
		hint.Timeline, hint.XID = hint.Timeline+1000, w.postgres.NextXID()
	case HintsFromBefore:
		if len(to.heard) == 0 {
			return
		}
		hint = to.heard[0]
	default:
	}
	n, d := w.name(to.boot, callHint, "odd")
	w.deliver(to, w.now()+w.latency(&d), callHint, "odd", n, coherence.HintHeard{Hint: hint})
}
