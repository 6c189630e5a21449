package sim

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/freshet-cache/freshet/coherence"
	"github.com/freshet-cache/freshet/internal/history"
	"github.com/freshet-cache/freshet/internal/model"
	"github.com/freshet-cache/freshet/tiers"
)

// session is a client that carries its token from answer to answer.
type session struct{ token coherence.Token }

func (w *world) token(number int) coherence.Token {
	w.mu.Lock()
	defer w.mu.Unlock()
	if s := w.sessions[number]; s != nil {
		return s.token
	}
	return coherence.Token{}
}

func (w *world) carry(number int, token coherence.Token) {
	if number == 0 {
		return
	}
	if w.sessions[number] == nil {
		w.sessions[number] = &session{}
	}
	s := w.sessions[number]
	s.token = s.token.Merge(token)
}

// begin starts an operation; it is called by the scheduler.
func (w *world) begin(op Op) {
	if op.Kind.IsFault() {
		if w.trace != nil {
			w.say(scheduler, "%v", op)
		}
		w.fault(op)
		return
	}
	var r *replica
	if op.Replica >= 0 {
		r = w.replicas[op.Replica]
		if at := w.resumed(r.boot, w.now()); at > w.now() {
			w.running++ // its clients wait
			w.at(at, r.boot, callOp, "", 0, func() {
				w.running--
				w.begin(op)
			})
			return
		}
	}
	w.spawn(func() {
		if op.Kind.IsRead() {
			w.read(op, r)
		} else {
			w.write(op, r)
		}
	})
}

// read is one read of a client.
func (w *world) read(op Op, r *replica) {
	want := tiers.Want{Budget: op.Budget, MaxStale: op.Stale, SoftTimeout: op.Stale / 20, Token: w.token(op.Session), Grace: op.Grace > 0}
	invoked := w.now()
	switch op.Kind {
	case ReadRow:
		result, err := r.rows.Lookup(r.life, strconv.Itoa(op.Key), want)
		told(w, op, r, register{rowRegister, op.Key}, invoked, &result, result.Value.Op, err)
	case ReadDetail:
		result, err := r.detail.Lookup(r.life, strconv.Itoa(op.Key), want)
		told(w, op, r, register{detailRegister, op.Key}, invoked, &result, result.Value.Op, err)
	case ReadList:
		result, err := r.lists.Lookup(r.life, listID(op.Key), want)
		told(w, op, r, register{listRegister, op.Key}, invoked, &result, sumOf(result.Value), err)
	case ReadMany:
		var ids []string
		for key := op.Key; key <= w.plan.Keys && len(ids) < max(op.N, 1); key++ {
			ids = append(ids, strconv.Itoa(key))
		}
		results, err := r.rows.LookupMany(r.life, ids, want)
		for i := range results {
			var failed error
			if results[i].Tier == 0 {
				failed = err
			}
			told(w, op, r, register{rowRegister, op.Key + i}, invoked, &results[i], results[i].Value.Op, failed)
		}
	default:
	}
}

// sumOf is the value of a list's register.
func sumOf(list []Entry) uint64 {
	sum := uint64(1)
	for _, e := range list {
		sum = addTo(sum, e)
	}
	return sum
}

func addTo(sum uint64, e Entry) uint64 { return mix(mix(sum, uint64(e.Key)), e.Op) }

// told notes an answer. A process that was killed meanwhile has answered nobody.
func told[V any](w *world, op Op, r *replica, reg register, invoked time.Duration, result *tiers.Result[V], value uint64, err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.dead(r.boot) {
		return
	}
	w.out.Reads++
	sweep := op.N < 0
	if sweep && (err != nil || !result.Fresh) {
		w.broken("I5", "%v on %s is not FRESH after everything healed: %v", reg, w.nameOf(r.boot), err)
	}
	if op.N == sweepingL1 && err == nil && result.Tier != tiers.TierL1 {
		w.broken("I5", "%v on %s comes from %v although nothing has changed since it was read", reg, w.nameOf(r.boot), result.Tier)
	}
	if err != nil {
		w.out.Errors++
		if w.trace != nil {
			w.say(r.boot, "%v %v: %v", op.Kind, reg, err)
		}
		return
	}
	if result.Absent {
		value = 0
	}
	a := answer{
		register: reg, value: value, fresh: result.Fresh, age: result.Age, budget: op.Budget, invoked: invoked,
		returned: w.now(), boot: r.boot, session: op.Session, tier: uint8(result.Tier), sweep: sweep, graced: result.Grace > 0,
	}
	if op.Kind == ReadMany { // it was checked at some moment of the read
		a.age += a.returned - a.invoked
	}
	w.log.answers = append(w.log.answers, a)
	w.carry(op.Session, result.Token())
	w.digest = mix(mix(w.digest, value), uint64(a.returned)+uint64(result.Tier))
	w.out.Tiers[result.Tier]++
	if result.Fresh {
		w.out.Fresh++
	}
	if result.Grace > 0 {
		w.out.Graced++
	}
	if w.trace != nil && !sweep {
		label := "STALE"
		if result.Fresh {
			label = "FRESH"
		}
		if result.Grace > 0 {
			label = fmt.Sprintf("in its grace for %v", result.Grace)
		}
		w.say(r.boot, "answers %v = %d: %s, age %v, %v, budget %v, session %d, asked at %.6fs", reg, value, label, result.Age, result.Tier,
			op.Budget, op.Session, invoked.Seconds())
	}
}

// broken notes a broken promise that the judge cannot see in the history.
func (w *world) broken(invariant, format string, args ...any) {
	w.out.Violations = append(w.out.Violations, Violation{invariant, fmt.Sprintf(format, args...)})
}

// write is one write transaction.
type write struct {
	op      Op
	from    uint64 // the replica's boot, or outsider
	tx      *model.Tx[Value]
	number  uint64
	changed []register
	places  []int // segments of changed
}

// lockTimeout bounds a statement, and with it the wait for a lock.
const lockTimeout = 500 * time.Millisecond

var errAborted = errors.New("the writer aborts")

// write does one write as Node.Write does, or as any other program when r is nil.
func (w *world) write(op Op, r *replica) {
	t := &write{op: op, from: outsider}
	if r != nil {
		t.from = r.boot
	}
	w.mu.Lock()
	w.out.Writes++
	w.ops++
	t.number = w.ops << 12 // with room for the rows of a bulk write
	w.mu.Unlock()
	written, err := w.transact(t, r != nil)
	if err == nil && op.Kind == Abort {
		err = errAborted
	}
	if err != nil {
		w.giveUp(t)
		if w.trace != nil {
			w.mu.Lock()
			w.say(t.from, "%v %d is rolled back: %v", op.Kind, t.number, err)
			w.mu.Unlock()
		}
		return
	}
	if r != nil {
		written.Grace, written.Since = op.Grace, r.tracker.Now()
	}
	err = w.statement(t, callCommit, w.wayOfCommits, func() error { return w.commit(t) })
	if err != nil {
		w.giveUp(t) // what has not been committed by now will not be
	}
	if r != nil {
		w.announce(t, r, written, err)
	}
}

// transact is everything before the commit.
func (w *world) transact(t *write, readBack bool) (written coherence.Wrote, err error) {
	err = w.statement(t, callBegin, w.wayToPostgres, func() error {
		t.tx = w.postgres.Begin()
		return t.tx.Grace(t.op.Grace)
	})
	if err != nil {
		return written, err
	}
	for _, step := range w.steps(t) {
		waits := false
		err = w.statement(t, callStatement, w.wayToPostgres, func() (err error) {
			if waits {
				_, err = t.tx.Resume()
			} else {
				err = step()
			}
			if waits = errors.Is(err, model.ErrBlocked); waits {
				return errBlocked
			}
			return err
		})
		if err != nil {
			return written, err
		}
	}
	if t.op.For > 0 {
		w.sleep(t.op.For)
	}
	if !readBack {
		return written, nil
	}
	err = w.statement(t, callReadBack, w.wayToPostgres, func() error {
		if !t.tx.Open() {
			return errGone
		}
		written.Timeline, written.XID = w.postgres.Timeline(), t.tx.XID()
		for _, scope := range t.tx.Log() {
			written.Scopes = append(written.Scopes, scope.Hash())
		}
		return nil
	})
	return written, err
}

// statement sends one statement of the writer's.
func (w *world) statement(t *write, kind callKind, way func(*draw) way, f func() error) error {
	return w.call(context.Background(), request{
		from: t.from, kind: kind, key: strconv.FormatUint(t.number, 10), timeout: lockTimeout, way: way,
		do: func() error {
			if w.faults.postgresDown > w.now() {
				return errRefused
			}
			return f()
		},
	})
}

// giveUp closes the writer's connection: the server rolls back.
func (w *world) giveUp(t *write) {
	_ = w.call(context.Background(), request{from: outsider, kind: callEnd, key: strconv.FormatUint(t.number, 10), do: func() error {
		if t.tx != nil {
			t.tx.Rollback()
		}
		return nil
	}})
}

// sleep lets virtual time pass for an operation.
func (w *world) sleep(d time.Duration) {
	done := make(chan struct{})
	w.mu.Lock()
	w.at(w.now()+d, scheduler, callEnd, "", 0, func() { close(done) })
	w.mu.Unlock()
	<-done
}

// steps are the statements of a write.
func (w *world) steps(t *write) []func() error {
	op := t.op
	group := min(max(op.N, 1), w.plan.Groups)
	next := op.Key%w.plan.Keys + 1
	put := func(key int, number uint64) func() error {
		return func() error {
			is := Value{number, group}
			_, err := t.tx.Upsert(uint64(key), is, nil)
			return err
		}
	}
	remove := func() error { _, err := t.tx.Delete(uint64(op.Key)); return err }
	switch op.Kind {
	case Put, Abort:
		return []func() error{put(op.Key, t.number)}
	case Delete:
		return []func() error{remove}
	case Replace:
		return []func() error{remove, put(op.Key, t.number)}
	case Savepoint:
		return []func() error{put(op.Key, t.number), func() error { return t.tx.Savepoint() }, put(next, t.number+1), func() error { return t.tx.RollbackTo() }}
	case Detail:
		return []func() error{
			func() error {
				_, err := t.tx.Upsert(uint64(details+op.Key), Value{Op: t.number}, nil)
				return err
			},
			func() error { return t.tx.Invalidate(coherence.View(namespace, strconv.Itoa(op.Key), "detail")) },
		}
	case Bulk:
		return []func() error{func() error {
			keys := make([]uint64, w.plan.Keys)
			for i := range keys {
				keys[i] = uint64(i + 1)
			}
			_, err := t.tx.Update(keys, func(key uint64, old Value) Value { return Value{t.number + key, old.Group} })
			return err
		}}
	case Truncate:
		return []func() error{func() error { _, err := t.tx.Truncate(); return err }}
	case Rekey:
		return []func() error{
			func() error { _, err := t.tx.Delete(uint64(next)); return err },
			func() error { _, err := t.tx.Rekey(uint64(op.Key), uint64(next)); return err },
		}
	default:
		return nil
	}
}

// watch is what freshet.watch was told of the table.
func watch() model.Watch[Value] {
	return model.Watch[Value]{Namespace: namespace, Tags: func(key uint64, row Value) []string {
		if key >= details {
			return nil
		}
		return []string{tagOf(row.Group)}
	}}
}

// commit carries out a commit that has arrived at Postgres.
func (w *world) commit(t *write) error {
	if err := t.tx.Commit(); err != nil {
		return err
	}
	if w.olds = append(w.olds, w.postgres.Snapshot()); len(w.olds) > maxOlds {
		w.olds = w.olds[1:]
	}
	t.changed, t.places = w.observe()
	w.out.Commits++
	if w.trace != nil {
		w.say(t.from, "COMMIT of %v %d, transaction %d, which logged %v", t.op.Kind, t.number, t.tx.XID(), t.tx.Log())
	}
	return nil
}

// maxOlds bounds how many commits a standby lags.
const maxOlds = 8

// observe notes what Postgres holds now, and returns what is new.
func (w *world) observe() (changed []register, places []int) {
	now := w.now()
	note := func(reg register, value uint64, group int) {
		before := len(w.log.segments[reg])
		place := w.log.set(reg, now, value)
		if place < before {
			return
		}
		changed, places = append(changed, reg), append(places, place)
		if place > 0 && reg.kind != listRegister {
			w.log.commits = append(w.log.commits, history.Commit{
				Key: reg.key(), Op: cmp.Or(value, 1<<60+uint64(place)), Absent: value == 0, Group: uint64(group), Sent: now - 1, Acked: now,
			})
		}
	}
	lists := make([]uint64, w.plan.Groups+1)
	for group := range lists {
		lists[group] = sumOf(nil)
	}
	for key := 1; key <= w.plan.Keys; key++ {
		row, ok := w.postgres.Get(uint64(key))
		if ok {
			lists[row.Group] = addTo(lists[row.Group], Entry{key, row.Op})
		}
		note(register{rowRegister, key}, row.Op, row.Group)
		row, _ = w.postgres.Get(uint64(details + key))
		note(register{detailRegister, key}, row.Op, 0)
	}
	for group := 1; group <= w.plan.Groups; group++ {
		note(register{listRegister, group}, lists[group], 0)
	}
	return changed, places
}

// announce is what Node.Write does after a commit that was not refused.
func (w *world) announce(t *write, r *replica, written coherence.Wrote, failed error) {
	if errors.Is(failed, errAborted) || len(written.Scopes) == 0 {
		return
	}
	w.mu.Lock()
	dead := w.dead(r.boot)
	w.mu.Unlock()
	if dead {
		return
	}
	r.tracker.Observe(written)
	r.shared.Own.Wrote(r.tracker.Now(), written.Scopes, false)
	if written.Grace == 0 {
		w.publish(r, written)
	}
	var keys []string
	for _, scope := range t.tx.Log() {
		if scope.Kind == coherence.KindEntity && written.Grace == 0 {
			keys = append(keys, must(r.rows.L2Key(scope.ID)), must(r.detail.L2Key(scope.ID)))
		}
	}
	if len(keys) > 0 && r.shared.L2.Available(keys[0]) {
		_ = r.shared.L2.Unlink(r.life, keys...)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.dead(r.boot) {
		return
	}
	if failed != nil {
		if w.trace != nil {
			w.say(r.boot, "%v %d: outcome unknown: %v", t.op.Kind, t.number, failed)
		}
		return
	}
	for i, reg := range t.changed {
		w.log.learned = append(w.log.learned, learned{reg, t.places[i], w.now(), r.boot, t.op.Session})
	}
	w.carry(t.op.Session, coherence.TokenOfWrite(written.Timeline, written.XID))
	if w.trace != nil {
		w.say(r.boot, "%v %d is acknowledged", t.op.Kind, t.number)
	}
}
