package sim

import (
	"cmp"
	"slices"
	"time"
)

// Generate makes the plan of a seed.
func Generate(seed uint64) Plan {
	d := &draw{mix(seed, 42)}
	p := Plan{Seed: seed, Setup: Setup{
		Replicas:    pick(d, 1, 2, 2, 2, 3, 3, 4, 5),
		Keys:        pick(d, 1, 2, 3, 4, 6, 12),
		Groups:      pick(d, 1, 2, 2, 3),
		Interval:    pick(d, 50*time.Millisecond, 100*time.Millisecond, 250*time.Millisecond),
		Retention:   pick(d, time.Hour, time.Hour, time.Hour, time.Second),
		MaxChanges:  pick(d, 200_000, 200_000, 200_000, 6),
		Scopes:      pick(d, 8, 8, 32, 256),
		PollTimeout: pick(d, 200*time.Millisecond, time.Second),
		TTL:         pick(d, time.Hour, time.Hour, time.Second),
		MaxEntries:  pick(d, 100, 100, 100, 1, 2),
		Slow:        pick(d, 0, 10, 30, 100),
		Func:        pick(d, 0, 0, 0, 1),
	}}
	length := d.span(time.Second, 5*time.Second)
	mix := workload{
		writes: pick(d, 5, 15, 30, 50), hot: d.one(3), outside: pick(d, 0, 30, 100), odd: pick(d, 5, 20, 60), sessions: pick(d, 0, 2, 4),
		stale: d.one(3), bursts: d.one(2), graces: d.one(2),
	}
	for range d.n(5) {
		fault := faultOf(d, p.Setup, length)
		p.Ops = append(p.Ops, fault)
		for range d.n(8) { // clients while it is new
			p.Ops = append(p.Ops, opOf(d, p.Setup, mix, fault.At+d.span(0, pick(d, 2*time.Millisecond, 60*time.Millisecond, time.Second))))
		}
	}
	var at time.Duration
	for range 10 + d.n(90) {
		switch {
		case mix.bursts && !d.one(6):
			at += d.span(10*time.Microsecond, 3*time.Millisecond)
		default:
			at += d.span(10*time.Microsecond, length/20)
		}
		p.Ops = append(p.Ops, opOf(d, p.Setup, mix, at))
	}
	slices.SortStableFunc(p.Ops, earlier)
	return p
}

func earlier(a, b Op) int { return cmp.Compare(a.At, b.At) }

// workload is what the clients of a history do, in percent.
type workload struct {
	writes, outside, odd, sessions int
	hot, stale, bursts, graces     bool
}

func pick[T any](d *draw, choices ...T) T { return choices[d.n(len(choices))] }

func opOf(d *draw, s Setup, mix workload, at time.Duration) Op {
	op := Op{At: at, Replica: d.n(s.Replicas), Key: 1 + d.n(s.Keys)}
	if mix.hot && !d.one(4) {
		op.Key = 1
	}
	if mix.sessions > 0 && d.one(2) {
		op.Session = 1 + d.n(mix.sessions)
	}
	if d.n(100) < mix.writes {
		op.Kind = Put
		if d.n(100) < mix.odd {
			op.Kind = pick(d, Delete, Delete, Delete, Detail, Detail, Replace, Savepoint, Abort, Bulk, Truncate, Rekey)
		}
		if d.n(100) < mix.outside {
			op.Replica, op.Session = -1, 0
		}
		op.N = 1 + d.n(s.Groups)
		switch d.n(20) {
		case 0:
			op.For = d.span(100*time.Millisecond, 3*time.Second)
		case 1, 2, 3:
			op.For = d.span(time.Millisecond, 100*time.Millisecond)
		}
		if mix.graces && d.one(2) {
			op.Grace = pick(d, 100*time.Millisecond, 500*time.Millisecond, 2*time.Second)
		}
		return op
	}
	op.Kind = pick(d, ReadRow, ReadRow, ReadRow, ReadRow, ReadDetail, ReadMany, ReadList, ReadList)
	switch op.Kind {
	case ReadList:
		op.Key = 1 + d.n(s.Groups)
	case ReadMany:
		op.N = 1 + d.n(4)
	default:
	}
	op.Budget = pick(d, 0, 50*time.Millisecond, 50*time.Millisecond, time.Second, time.Second, time.Second)
	if mix.stale && d.one(2) {
		op.Stale = pick(d, 100*time.Millisecond, 2*time.Second, time.Minute)
	}
	if mix.graces && !d.one(4) {
		op.Grace = time.Second // any but 0
	}
	return op
}

// faultOf draws a fault.
func faultOf(d *draw, s Setup, length time.Duration) Op {
	op := Op{Kind: lastWrite + 1 + OpKind(d.n(int(lastOp-lastWrite-1))), Replica: d.n(s.Replicas), Key: 1 + d.n(s.Keys)}
	op.At = d.span(0, length)
	op.For = d.span(10*time.Millisecond, 2*time.Second)
	op.N = 1 + d.n(8)
	if op.Kind == PostgresCrash || op.Kind == PostgresFailover || d.one(4) {
		op.For = d.span(0, pick(d, time.Millisecond, 20*time.Millisecond, 500*time.Millisecond))
	}
	switch op.Kind {
	case Stop, Restart, HintsAbsurd, HintsOfAnother, HintsFromBefore:
	default:
		if d.one(3) {
			op.Replica = -1
		}
	}
	return op
}
