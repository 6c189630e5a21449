package sim

import (
	"cmp"
	"container/heap"
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"
	"testing/synctest"
	"time"

	"github.com/freshet-cache/freshet/coherence"
	"github.com/freshet-cache/freshet/internal/model"
)

// world is one history as it goes: one goroutine, the scheduler, runs one event after the other, each
// when all others are durably blocked.
type world struct {
	plan  Plan
	began time.Time
	queue eventQueue
	// arrived wakes the scheduler when a call was made while it slept; capacity 1.
	arrived chan struct{}
	order   uint64 // of events with the same time

	mu       sync.Mutex // guards what events and goroutines share; events run under it
	calls    map[callName]uint32
	faults   faults
	postgres *model.Postgres[Value]
	redis    *model.Redis
	dumps    [2][]model.RedisDump // of all shards, the older first
	olds     []coherence.Snapshot // the latest states of Postgres, for a standby that lags
	replicas []*replica
	sessions map[int]*session
	running  int                 // operations that have begun and not ended
	lives    [maxReplicas]uint64 // processes started at each place
	ops      uint64              // writes so far: the number of the next

	log    *record
	out    Outcome
	digest uint64
	trace  *strings.Builder // nil = no transcript
}

// callName is the name of a call, by which its latency is drawn.
type callName struct {
	actor uint64
	kind  callKind
	key   string
}

// event is something that the scheduler does at its time.
type event struct {
	at    time.Duration
	actor uint64
	kind  callKind
	key   string
	n     uint32
	order uint64
	void  *bool // no longer of interest if it is true; nil = it always is
	do    func()
}

type eventQueue []*event

func (q eventQueue) Len() int      { return len(q) }
func (q eventQueue) Swap(i, j int) { q[i], q[j] = q[j], q[i] }
func (q eventQueue) Less(i, j int) bool {
	a, b := q[i], q[j]
	return cmp.Or(cmp.Compare(a.at, b.at), cmp.Compare(a.actor, b.actor), cmp.Compare(a.kind, b.kind),
		strings.Compare(a.key, b.key), cmp.Compare(a.n, b.n), cmp.Compare(a.order, b.order)) < 0
}

// Push and Pop are those of [heap.Interface].
func (q *eventQueue) Push(e any) { *q = append(*q, e.(*event)) }

// Pop is that of [heap.Interface].
func (q *eventQueue) Pop() any {
	last := len(*q) - 1
	e := (*q)[last]
	(*q)[last] = nil
	*q = (*q)[:last]
	return e
}

// callKind says what a call asks for.
type callKind uint8

const (
	callPoll callKind = iota + 1
	callRenew
	callTrim
	callLoad
	callList
	callGet
	callGetMany
	callLease
	callRelease
	callSet
	callUnlink
	callBegin
	callStatement
	callReadBack
	callCommit
	callHint
	callBeat
	callPeer
	callOp
	callEnd
)

var callNames = [...]string{
	callPoll: "poll", callRenew: "renew", callTrim: "trim", callLoad: "load", callList: "load-list",
	callGet: "get", callGetMany: "mget", callLease: "lease", callRelease: "release", callSet: "set", callUnlink: "unlink",
	callBegin: "begin", callStatement: "statement", callReadBack: "read-back", callCommit: "commit",
	callHint: "hint", callBeat: "heartbeat", callPeer: "ask-owner", callOp: "op", callEnd: "end",
}

// String is the kind's name in transcripts.
func (k callKind) String() string { return callNames[k] }

// What the network says.
var (
	errRefused = errors.New("connection refused")
	errGone    = errors.New("the connection is gone")
	errBlocked = errors.New("it must wait for a lock")
)

// Actors beside the replicas' boots.
const (
	outsider  = 1 << 32 // writers beside the replicas
	scheduler = 1 << 33
)

func (w *world) now() time.Duration { return time.Since(w.began) }

// mix is a hash of two numbers (splitmix64's finaliser).
func mix(a, b uint64) uint64 {
	x := a + 0x9e3779b97f4a7c15*(b+1)
	x = (x ^ x>>30) * 0xbf58476d1ce4e5b9
	x = (x ^ x>>27) * 0x94d049bb133111eb
	return x ^ x>>31
}

func mixText(a uint64, text string) uint64 {
	h := uint64(14695981039346656037)
	for i := range len(text) {
		h = (h ^ uint64(text[i])) * 1099511628211
	}
	return mix(a, h)
}

// draw is a source of numbers that belong to one name.
type draw struct{ state uint64 }

func (d *draw) next() uint64 {
	d.state += 0x9e3779b97f4a7c15
	return mix(d.state, 1)
}

// n is a number below the given one.
func (d *draw) n(below int) int { return int(d.next() % uint64(below)) }

// span is a duration from low up to high.
func (d *draw) span(low, high time.Duration) time.Duration {
	return low + time.Duration(d.next()%uint64(high-low))
}

// one reports true once in so many draws.
func (d *draw) one(in int) bool { return in > 0 && d.n(in) == 0 }

// latency of one way of a call: mostly some hundred microseconds, at times much more.
func (w *world) latency(d *draw) time.Duration {
	span := d.span(50*time.Microsecond, 500*time.Microsecond)
	switch {
	case w.plan.Slow > 0 && d.one(w.plan.Slow):
		return span * time.Duration(1+d.n(100))
	case d.one(8):
		return span * 4
	}
	return span
}

// name gives the call its number among those with its name, and its draws.
func (w *world) name(actor uint64, kind callKind, key string) (n uint32, d draw) {
	c := callName{actor, kind, key}
	w.calls[c]++
	n = w.calls[c]
	return n, draw{mix(mix(mixText(mix(w.plan.Seed, actor), key), uint64(kind)), uint64(n))}
}

// at lets the scheduler do something at a time.
func (w *world) at(at time.Duration, actor uint64, kind callKind, key string, n uint32, do func()) {
	w.unless(nil, at, actor, kind, key, n, do)
}

// unless is [world.at] for something that is left out when void has become true by then.
func (w *world) unless(void *bool, at time.Duration, actor uint64, kind callKind, key string, n uint32, do func()) {
	w.order++
	heap.Push(&w.queue, &event{at: at, actor: actor, kind: kind, key: key, n: n, order: w.order, void: void, do: do})
	select {
	case w.arrived <- struct{}{}:
	default:
	}
}

// request is a call to a server as the network sees it.
type request struct {
	from    uint64 // boot of the replica, or outsider
	kind    callKind
	key     string
	timeout time.Duration     // 0 = none
	way     func(d *draw) way // nil = straight; asked under the world's lock
	do      func() error      // what the server does; its error is the answer
}

// way is what becomes of a request.
type way struct {
	slow      time.Duration // more for the request
	slowReply time.Duration // more for the reply
	lost      bool          // the request never arrives
	replyLost bool
}

// retryLock is how often a statement looks whether its lock is free.
const retryLock = 10 * time.Millisecond

// call makes a request and returns its answer. It fails with [os.ErrDeadlineExceeded] when there is
// none in time; the server may carry it out later all the same.
func (w *world) call(ctx context.Context, r request) error {
	done := make(chan error, 1)
	answered := false // the scheduler's
	w.mu.Lock()
	if w.dead(r.from) {
		w.mu.Unlock()
		return errGone
	}
	n, d := w.name(r.from, r.kind, r.key)
	out, back := w.latency(&d), w.latency(&d)
	var way way
	if r.way != nil {
		way = r.way(&d)
	}
	sent := w.resumed(r.from, w.now())
	reply := func(err error) {
		if !answered {
			answered = true
			w.note(r.from, r.kind, r.key, n, err)
			done <- err
		}
	}
	var deliver func(err error)
	deliver = func(err error) { // to a process that may be stopped
		if at := w.resumed(r.from, w.now()); at > w.now() {
			w.at(at, r.from, r.kind, r.key, n, func() { deliver(err) })
			return
		}
		reply(err)
	}
	var arrive func()
	arrive = func() {
		err := r.do()
		if errors.Is(err, errBlocked) {
			w.at(w.now()+retryLock, r.from, r.kind, r.key, n, arrive)
			return
		}
		w.noteDone(r.from, r.kind, r.key, n, err)
		if !way.replyLost {
			w.at(w.now()+back+way.slowReply, r.from, r.kind, r.key, n, func() { deliver(err) })
		}
	}
	if !way.lost {
		w.at(sent+out+way.slow, r.from, r.kind, r.key, n, arrive)
	}
	if r.timeout > 0 {
		w.unless(&answered, sent+r.timeout, r.from, r.kind, r.key, n, func() { deliver(os.ErrDeadlineExceeded) })
	}
	w.mu.Unlock()
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// resumed is when a process that may be stopped goes on.
func (w *world) resumed(boot uint64, at time.Duration) time.Duration {
	for _, r := range w.replicas {
		if r.boot == boot && at < r.stoppedUntil {
			return r.stoppedUntil + time.Microsecond
		}
	}
	return at
}

// dead reports whether the process has been killed.
func (w *world) dead(boot uint64) bool {
	if boot >= outsider {
		return false
	}
	return w.replicas[boot%maxReplicas].boot != boot
}

// schedule runs events in the order of their times until none is left before the end and no
// operation runs.
func (w *world) schedule(end time.Duration) {
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	for {
		synctest.Wait()
		w.mu.Lock()
		next, more := w.step(end)
		pause := next - w.now()
		w.mu.Unlock()
		if !more {
			return
		}
		if pause <= 0 {
			continue
		}
		timer.Reset(pause)
		select {
		case <-w.arrived:
		case <-timer.C:
		}
	}
}

// step runs the event whose time has come, if there is one. It returns when the next is due, and whether
// there is anything left to do. The caller holds the world's lock.
func (w *world) step(end time.Duration) (next time.Duration, more bool) {
	if w.out.Steps++; w.out.Steps > maxSteps {
		panic(fmt.Sprintf("sim: more than %d steps of the plan\n%v", maxSteps, w.plan))
	}
	for len(w.queue) > 0 && w.queue[0].void != nil && *w.queue[0].void {
		heap.Pop(&w.queue)
	}
	now := w.now()
	if len(w.queue) > 0 && (w.queue[0].at < end || w.running > 0) {
		if next = w.queue[0].at; next > now {
			return next, true
		}
		heap.Pop(&w.queue).(*event).do()
		return now, true
	}
	if now < end {
		return end, true
	}
	return now + 10*time.Millisecond, w.running > 0 // an operation may wait for a timer of its own
}

// maxSteps bounds the events of one history.
const maxSteps = 200_000

// note puts what a process learned into the digest and the transcript.
func (w *world) note(from uint64, kind callKind, key string, n uint32, err error) {
	w.digest = mix(mix(mix(w.digest, uint64(w.now())), from<<8|uint64(kind)), uint64(n))
	if w.trace != nil && err != nil {
		w.say(from, "%v %s: %v", kind, key, err)
	}
}

// noteDone puts what a server did into the digest and the transcript.
func (w *world) noteDone(from uint64, kind callKind, key string, n uint32, err error) {
	w.note(from, kind, key, n, nil)
	if w.trace != nil {
		if err != nil {
			w.say(from, "%v %s arrives: %v", kind, key, err)
		}
	}
}

// say writes a line of the transcript. Callers that build arguments look at w.trace first.
func (w *world) say(actor uint64, format string, args ...any) {
	if w.trace == nil {
		return
	}
	fmt.Fprintf(w.trace, "%13.6fs  %-8s  ", w.now().Seconds(), w.nameOf(actor))
	fmt.Fprintf(w.trace, format, args...)
	w.trace.WriteByte('\n')
}

func (w *world) nameOf(actor uint64) string {
	switch actor {
	case outsider:
		return "outside"
	case scheduler:
		return "faults"
	}
	return fmt.Sprintf("r%d", actor%maxReplicas) + strings.Repeat("'", int(actor/maxReplicas)-1)
}

// maxReplicas bounds the replicas of a plan; boot numbers are life*maxReplicas + place.
const maxReplicas = 8
