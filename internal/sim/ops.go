package sim

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"time"

	"github.com/freshet-cache/freshet/coherence"
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
		if at := w.resumed(r.boot, w.now()); at > w.now() { // its clients wait
			w.at(at, r.boot, callOp, "", 0, func() { w.begin(op) })
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
	want := tiers.Want{Budget: op.Budget, MaxStale: op.Stale, Token: w.token(op.Session)}
	invoked := w.now()
	switch op.Kind {
	case ReadRow:
		result, err := r.rows.Lookup(r.life, strconv.Itoa(op.Key), want)
		told(w, op, r, register{rowRegister, op.Key}, invoked, &result, result.Value.Op, err)
	case ReadDetail:
		result, err := r.details.Lookup(r.life, strconv.Itoa(op.Key), want)
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
		sum = mix(mix(sum, uint64(e.Key)), e.Op)
	}
	return sum
}

// told notes an answer. A process that was killed meanwhile has answered nobody.
func told[V any](w *world, op Op, r *replica, reg register, invoked time.Duration, result *tiers.Result[V], value uint64, err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.dead(r.boot) {
		return
	}
	w.out.Reads++
	sweep := op.N == sweeping
	if sweep && (err != nil || !result.Fresh) {
		w.out.Violations = append(w.out.Violations, Violation{"I5", fmt.Sprintf("%v on %s is not FRESH after everything healed: %v", reg, w.nameOf(r.boot), err)})
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
		returned: w.now(), boot: r.boot, session: op.Session, tier: uint8(result.Tier), sweep: sweep,
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
	if w.trace != nil {
		label := "STALE"
		if result.Fresh {
			label = "FRESH"
		}
		w.say(r.boot, "answers %v = %d: %s, age %v, %v, budget %v, session %d, asked at %.6fs", reg, value, label, result.Age, result.Tier,
			op.Budget, op.Session, invoked.Seconds())
	}
}

// write is one write transaction.
type write struct {
	op      Op
	from    uint64 // the replica's boot, or outsider
	tx      *transaction
	number  uint64
	changed []register
	places  []int // segments of changed
}

// lockTimeout bounds a statement, and with it the wait for a row's lock; it ends deadlocks, too.
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
	t.number = w.ops << 8 // with room for the rows of a bulk write
	w.mu.Unlock()
	statement := func(kind callKind, f func() error) error {
		return w.call(context.Background(), request{
			from: t.from, kind: kind, key: strconv.FormatUint(t.number, 10), timeout: lockTimeout, way: w.wayToPostgres,
			do: func() error {
				if w.faults.postgresDown > w.now() {
					return errRefused
				}
				return f()
			},
		})
	}
	var written coherence.Wrote
	err := statement(callBegin, func() error { t.tx = w.postgres.transaction(); return nil })
	if err == nil {
		for _, step := range w.steps(t) {
			if err = statement(callStatement, step); err != nil {
				break
			}
		}
	}
	if op.For > 0 && err == nil {
		w.sleep(op.For)
	}
	if err == nil && r != nil {
		err = statement(callReadBack, func() error {
			if err := t.tx.usable(); err != nil {
				return err
			}
			written.Timeline, written.XID = w.postgres.timeline, t.tx.xid
			for _, scope := range t.tx.log {
				written.Scopes = append(written.Scopes, scope.Hash())
			}
			return nil
		})
	}
	if err == nil && op.Kind == Abort {
		err = errAborted
	}
	if err != nil {
		// The server rolls back when the connection goes, or when it is told.
		_ = w.call(context.Background(), request{from: outsider, kind: callEnd, key: strconv.FormatUint(t.number, 10), do: func() error {
			if t.tx != nil {
				t.tx.rollback()
			}
			return nil
		}})
		if w.trace != nil {
			w.mu.Lock()
			w.say(t.from, "%v %d is rolled back: %v", op.Kind, t.number, err)
			w.mu.Unlock()
		}
		return
	}
	err = w.call(context.Background(), request{
		from: t.from, kind: callCommit, key: strconv.FormatUint(t.number, 10), timeout: time.Second, way: w.wayOfCommits,
		do: func() error {
			if w.faults.postgresDown > w.now() {
				return errRefused
			}
			return w.commit(t)
		},
	})
	if err != nil {
		// The connection is given up: what has not been committed by now will not be.
		_ = w.call(context.Background(), request{from: outsider, kind: callEnd, key: strconv.FormatUint(t.number, 10), do: func() error {
			t.tx.rollback()
			return nil
		}})
	}
	if r != nil {
		w.announce(t, r, written, err)
	}
}

// sleep lets virtual time pass for an operation.
func (w *world) sleep(d time.Duration) {
	done := make(chan struct{})
	w.mu.Lock()
	w.at(w.now()+d, scheduler, callEnd, "", 0, func() { close(done) })
	w.mu.Unlock()
	<-done
}

// steps are the statements of a write. The scopes of each are those that freshet.watch would log.
func (w *world) steps(t *write) []func() error {
	op, tx := t.op, func() *transaction { return t.tx }
	put := func(key, group int, number uint64) func() error {
		return func() error {
			if err := tx().lock(key); err != nil {
				return err
			}
			was := tx().row(key)
			is := was
			is.op, is.group = number, group
			tx().set(key, is)
			tx().changed(coherence.Entity(namespace, strconv.Itoa(key)))
			for _, g := range slices.Compact([]int{was.group, group}) {
				if g != 0 {
					tx().changed(coherence.Tag(tagOf(g)))
				}
			}
			return nil
		}
	}
	all := func(group func(was row) int, scope coherence.Scope) func() error {
		return func() error {
			keys := make([]int, w.plan.Keys)
			for i := range keys {
				keys[i] = i + 1
			}
			if err := tx().lock(keys...); err != nil {
				return err
			}
			for _, key := range keys {
				is := tx().row(key)
				is.op, is.group = t.number+uint64(key), group(is)
				tx().set(key, is)
			}
			tx().changed(scope)
			return nil
		}
	}
	group := min(max(op.N, 1), w.plan.Groups)
	other := op.Key%w.plan.Keys + 1
	switch op.Kind {
	case Put, Abort:
		return []func() error{put(op.Key, group, t.number)}
	case Delete:
		return []func() error{put(op.Key, 0, t.number)}
	case Replace:
		return []func() error{put(op.Key, 0, t.number), put(op.Key, group, t.number+1)}
	case Savepoint:
		steps := []func() error{put(op.Key, group, t.number), func() error { tx().savepoint(); return nil }}
		if other != op.Key {
			steps = append(steps, put(other, group, t.number+1))
		}
		return append(steps, func() error { tx().rollbackTo(); return nil })
	case Detail:
		return []func() error{func() error {
			if err := tx().lock(op.Key); err != nil {
				return err
			}
			is := tx().row(op.Key)
			is.detail = t.number
			tx().set(op.Key, is)
			tx().changed(coherence.View(namespace, strconv.Itoa(op.Key), "detail"))
			return nil
		}}
	case Bulk:
		return []func() error{all(func(was row) int { return max(was.group, 1) }, coherence.Namespace(namespace))}
	case Truncate:
		return []func() error{all(func(row) int { return 0 }, coherence.Everything())}
	default:
		return nil
	}
}

// commit carries out a commit that has arrived at Postgres.
func (w *world) commit(t *write) error {
	if err := t.tx.commit(); err != nil {
		return err
	}
	t.changed, t.places = w.observe()
	w.out.Commits++
	if w.trace != nil {
		w.say(t.from, "COMMIT of %v %d, transaction %d: %v", t.op.Kind, t.number, t.tx.xid, t.tx.changes)
	}
	return nil
}

// observe notes what Postgres holds now, and returns what is new.
func (w *world) observe() (changed []register, places []int) {
	now := w.now()
	note := func(reg register, value uint64) {
		before := len(w.log.segments[reg])
		if place := w.log.set(reg, now, value); place >= before {
			changed, places = append(changed, reg), append(places, place)
		}
	}
	lists := make([][]Entry, w.plan.Groups+1)
	for key, row := range w.postgres.rows {
		if key == 0 {
			continue
		}
		value := row.op
		if row.group == 0 {
			value = 0
		} else {
			lists[row.group] = append(lists[row.group], Entry{key, row.op})
		}
		note(register{rowRegister, key}, value)
		note(register{detailRegister, key}, row.detail)
	}
	for group := 1; group <= w.plan.Groups; group++ {
		note(register{listRegister, group}, sumOf(lists[group]))
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
	w.publish(r, written)
	var keys []string
	for _, key := range t.tx.keys() {
		keys = append(keys, must(r.rows.L2Key(key)), must(r.details.L2Key(key)))
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

// keys are the ids of the rows for which the transaction logged a change of their own.
func (t *transaction) keys() []string {
	var ids []string
	for _, scope := range t.log {
		if scope.Kind == coherence.KindEntity {
			ids = append(ids, scope.ID)
		}
	}
	return ids
}
