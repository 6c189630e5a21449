package history

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/anishathalye/porcupine"
)

// world is a random run of a system over a few keys. What the system answers is up to the system's rules; the commits and
// the instants at which they really happen are drawn first.
type world struct {
	*rand.Rand
	h       History
	commits map[uint64][]happened // key -> in order
	ticks   int
}

type happened struct {
	Commit
	at time.Duration
}

const (
	worldKeys   = 4
	worldGroups = 2
	worldEnd    = 1000 * time.Millisecond
)

// instant is one that no other event of the world has.
func (w *world) instant(from, to time.Duration) time.Duration {
	w.ticks++
	if to <= from {
		return from
	}
	return from + time.Duration(w.Int64N(int64(to-from)))/4096*4096 + time.Duration(w.ticks%4096)
}

func newWorld(seed uint64) *world {
	w := &world{Rand: rand.New(rand.NewPCG(seed, 1)), commits: map[uint64][]happened{}}
	op := uint64(0)
	for key := uint64(1); key <= worldKeys; key++ {
		var at []time.Duration
		for range w.IntN(9) {
			at = append(at, w.instant(0, worldEnd))
		}
		slices.Sort(at)
		for i, t := range at {
			op++
			c := happened{at: t, Commit: Commit{Key: key, Op: op, Absent: w.IntN(4) == 0, Group: 1 + w.Uint64N(worldGroups)}}
			c.Sent, c.Acked = w.instant(t-50*time.Millisecond, t), w.instant(t, t+50*time.Millisecond)
			if i > 0 && w.IntN(3) == 0 {
				c.Sent = w.instant(t-400*time.Millisecond, t) // it waited for the row's lock
			}
			if w.IntN(6) == 0 {
				c.Acked = Never
			} else if w.IntN(2) == 0 {
				c.Session = 1 + w.Uint64N(3)
			}
			w.commits[key] = append(w.commits[key], c)
			w.h.Commits = append(w.h.Commits, c.Commit)
		}
	}
	return w
}

// state is the place of the key's state at the instant; 0 = before its first commit.
func (w *world) state(key uint64, at time.Duration) int {
	i := 0
	for i < len(w.commits[key]) && w.commits[key][i].at <= at {
		i++
	}
	return i
}

func (w *world) op(key uint64, place int) uint64 {
	if place == 0 || w.commits[key][place-1].Absent {
		return 0
	}
	return w.commits[key][place-1].Op
}

// flaw is how a system breaks its promise; each is zero in a correct one.
type flaw struct {
	older       time.Duration // FRESH answers are that much older than their budget
	backwards   bool          // a replica forgets what it answered
	forgetful   bool          // sessions carry nothing
	clairvoyant bool          // answers from before the commit was sent
	partial     bool          // lists lack a key
	moved       bool          // lists keep a key that has moved to another group
}

// run lets three replicas answer.
func (w *world) run(f flaw) *History {
	type who struct{ replica, key, group uint64 }
	served := map[who]time.Duration{}  // FRESH answers' instants
	session := map[who]time.Duration{} // by session and key
	budgets := []time.Duration{0, 50 * time.Millisecond, 200 * time.Millisecond}
	at := time.Duration(0)
	for range 60 {
		at = w.instant(at, at+30*time.Millisecond)
		end := w.instant(at, at+40*time.Millisecond)
		r := Read{Fresh: w.IntN(5) > 0, Replica: 1 + w.Uint32N(3), Budget: budgets[w.IntN(3)], Invoked: at, Returned: end, Session: w.Uint64N(4), Tier: 1}
		from := at - r.Budget - f.older
		if !r.Fresh {
			from = 0
		}
		keys := []uint64{1 + w.Uint64N(worldKeys)}
		group := uint64(0)
		if w.IntN(4) == 0 {
			group = 1 + w.Uint64N(worldGroups)
			keys = []uint64{1, 2, 3, 4}
		}
		for _, key := range keys {
			if !f.backwards && r.Fresh {
				from = max(from, served[who{uint64(r.Replica), key, group}])
			}
			if !f.forgetful && r.Session != 0 {
				from = max(from, session[who{replica: r.Session, key: key}])
				for _, c := range w.commits[key] {
					if c.Session == r.Session && c.Acked < at {
						from = max(from, c.at)
					}
				}
			}
		}
		as := w.instant(min(from, end), end)
		if f.clairvoyant {
			as += 500 * time.Millisecond
		}
		for _, key := range keys {
			if r.Fresh {
				served[who{uint64(r.Replica), key, group}] = max(served[who{uint64(r.Replica), key, group}], as)
			}
			if r.Session != 0 {
				session[who{replica: r.Session, key: key}] = max(session[who{replica: r.Session, key: key}], as)
			}
		}
		if group == 0 {
			r.Key = keys[0]
			r.Op = w.op(r.Key, w.state(r.Key, as))
			w.h.Reads = append(w.h.Reads, r)
		} else {
			w.list(r, group, keys, as, f)
		}
		if r.Session != 0 {
			at = end // a session does one thing at a time
		}
	}
	return &w.h
}

func (w *world) list(r Read, group uint64, keys []uint64, as time.Duration, f flaw) {
	l := List{Group: group, Fresh: r.Fresh, Replica: r.Replica, Session: r.Session, Budget: r.Budget, Invoked: r.Invoked, Returned: r.Returned, Tier: 1}
	for _, key := range keys {
		place := w.state(key, as)
		op := w.op(key, place)
		if op == 0 || (w.commits[key][place-1].Group != group && !f.moved) || (f.partial && w.IntN(2) == 0) {
			continue
		}
		l.Entries = append(l.Entries, Entry{key, op})
	}
	w.h.Lists = append(w.h.Lists, l)
}

// A correct system is never blamed, whatever the scheduling.
func TestJudgeBlamesNobody(t *testing.T) {
	for seed := range uint64(1500) {
		report := Judge(newWorld(seed).run(flaw{}), Options{})
		if report.Violations > 0 {
			t.Fatalf("seed %d: %v", seed, report.Kept)
		}
		if report.Reads != 60 {
			t.Fatalf("seed %d: %d answers judged", seed, report.Reads)
		}
	}
}

// Each kind of broken system is found out.
func TestJudgeFinds(t *testing.T) {
	for name, c := range map[string]struct {
		flaw flaw
		want Invariant
	}{
		"I1 an answer older than its budget":   {flaw{older: 300 * time.Millisecond}, I1},
		"I1 a list that lacks a key":           {flaw{partial: true}, I1},
		"I2 a session without its token":       {flaw{forgetful: true}, I2},
		"I3 a replica that goes back":          {flaw{backwards: true}, I3},
		"I4 an answer from the future":         {flaw{clairvoyant: true}, I4},
		"I4 a list with keys of another group": {flaw{moved: true}, I4},
	} {
		t.Run(name, func(t *testing.T) {
			found := 0
			for seed := range uint64(200) {
				if Judge(newWorld(seed).run(c.flaw), Options{}).ByInvariant[c.want] > 0 {
					found++
				}
			}
			if found < 20 {
				t.Errorf("found in %d of 200 histories", found)
			}
		})
	}
}

// With a budget of 0 and one key, the judge and a search for a linearization agree.
func TestJudgeAgreesWithPorcupine(t *testing.T) {
	// The state is how many writes have happened; they have one order, which the row's lock gave them.
	linearizable := porcupine.Model{
		Init: func() any { return 0 },
		Step: func(state, in, out any) (bool, any) {
			if write := in.(int); write > 0 {
				return state == write-1, write
			}
			return state == out, state
		},
	}
	verdicts := map[bool]int{}
	for seed := range uint64(1500) {
		w := newWorld(seed)
		key := uint64(1)
		for i := range w.commits[key] {
			w.commits[key][i].Absent = false
		}
		h := History{}
		var ops []porcupine.Operation
		for i, c := range w.commits[key] {
			c.Absent = false
			h.Commits = append(h.Commits, c.Commit)
			end := int64(c.Acked)
			if c.Acked == Never {
				end = int64(2 * worldEnd)
			}
			ops = append(ops, porcupine.Operation{ClientId: i, Input: i + 1, Call: int64(c.Sent), Output: 0, Return: end})
		}
		for i := range 5 {
			from := w.instant(0, worldEnd)
			to := w.instant(from, from+100*time.Millisecond)
			place := w.state(key, w.instant(from-120*time.Millisecond, to+80*time.Millisecond))
			h.Reads = append(h.Reads, Read{Key: key, Op: w.op(key, place), Fresh: true, Invoked: from, Returned: to})
			ops = append(ops, porcupine.Operation{ClientId: 100 + i, Input: 0, Call: int64(from), Output: place, Return: int64(to)})
		}
		report := Judge(&h, Options{})
		right := report.ByInvariant[I1]+report.ByInvariant[I4] == 0
		if want := porcupine.CheckOperations(linearizable, ops); right != want {
			t.Fatalf("seed %d: the judge says %v, a search %v: %v\n%v", seed, right, want, report.Kept, ops)
		}
		verdicts[right]++
	}
	if verdicts[true] < 100 || verdicts[false] < 100 {
		t.Errorf("verdicts %v: want both often", verdicts)
	}
}

// Commits that a failover lost may be shown until the budget after its end, and not later.
func TestJudgeLostCommits(t *testing.T) {
	ms := time.Millisecond
	h := History{
		Commits: []Commit{{Key: 1, Op: 1, Acked: ms}},
		Lost:    []Commit{{Key: 1, Op: 2, Sent: 10 * ms, Acked: 11 * ms}},
		Reads: []Read{
			{Key: 1, Op: 2, Fresh: true, Budget: 50 * ms, Invoked: 149 * ms, Returned: 150 * ms},
			{Key: 1, Op: 2, Fresh: true, Budget: 50 * ms, Invoked: 151 * ms, Returned: 152 * ms},
			{Key: 1, Op: 2, Invoked: 900 * ms, Returned: 901 * ms},
		},
	}
	report := Judge(&h, Options{Lossy: true, LostUntil: 100 * ms})
	if report.Violations != 1 || report.Kept[0].Read.Invoked != 151*ms {
		t.Errorf("%v", report.Kept)
	}
}

// The sweep wants the last commits, and nothing else.
func TestJudgeI5Sweep(t *testing.T) {
	commits := []Commit{{Key: 1, Op: 1, Group: 1}, {Key: 2, Op: 2, Group: 1}, {Key: 1, Op: 3, Group: 2}, {Key: 3, Op: 4, Absent: true}}
	for name, c := range map[string]struct {
		reads []Read
		lists []List
		bad   uint64
	}{
		"right":              {[]Read{{Key: 1, Op: 3}, {Key: 2, Op: 2}, {Key: 3}, {Key: 4}}, []List{{Group: 1, Entries: []Entry{{2, 2}}}, {Group: 2, Entries: []Entry{{1, 3}}}}, 0},
		"an old row":         {[]Read{{Key: 1, Op: 1}}, nil, 1},
		"a row that is gone": {[]Read{{Key: 3, Op: 9}}, nil, 1},
		"an old list":        {nil, []List{{Group: 1, Entries: []Entry{{1, 1}, {2, 2}}}}, 1},
		"a list that lacks":  {nil, []List{{Group: 2}}, 1},
	} {
		report := Judge(&History{Commits: commits, Sweep: c.reads, SweepLists: c.lists}, Options{})
		if report.ByInvariant[I5] != c.bad || report.Violations != c.bad {
			t.Errorf("%s: %v", name, report.Kept)
		}
	}
}

// What an answer lacks is measured from the acknowledgement of the first commit that it lacks.
func TestStaleness(t *testing.T) {
	ms := time.Millisecond
	h := History{
		Commits: []Commit{{Key: 1, Op: 1, Acked: ms}, {Key: 1, Op: 2, Sent: 90 * ms, Acked: Never}, {Key: 1, Op: 3, Sent: 95 * ms, Acked: 100 * ms}},
		Reads:   []Read{{Key: 1, Op: 1, Fresh: true, Budget: time.Second, Invoked: 350 * ms, Returned: 351 * ms}},
	}
	report := Judge(&h, Options{})
	if _, longest := report.Staleness(50); longest < 249*ms || longest > 252*ms || report.Violations > 0 {
		t.Errorf("staleness %v, want 250ms; %v", longest, report.Kept)
	}
}

// Recovery is over when the share stays, not when it first is there.
func TestRecovered(t *testing.T) {
	var h History
	add := func(ms int64, fresh bool) {
		h.Reads = append(h.Reads, Read{Invoked: time.Duration(ms) * time.Millisecond, Fresh: fresh})
	}
	for i := range int64(100) {
		add(i*10, i >= 35 && i != 62)
	}
	if d, ok := h.Recovered(0, time.Second, 0.99); !ok || d != 700*time.Millisecond {
		t.Errorf("recovered after %v, %v", d, ok)
	}
	h.Failures = []Failure{{At: 990 * time.Millisecond}}
	if d, ok := h.Recovered(0, time.Second, 0.99); ok {
		t.Errorf("recovered after %v with a failure at the end", d)
	}
}

func BenchmarkJudge(b *testing.B) {
	const keys, reads = 1000, 200_000
	r := rand.New(rand.NewPCG(1, 2))
	var h History
	at := make([]uint64, keys)
	for i := range reads {
		now := time.Duration(i) * 50 * time.Microsecond
		key := r.Uint64N(keys)
		if i%50 == 0 {
			op := uint64(i + 1)
			h.Commits = append(h.Commits, Commit{Key: key, Op: op, Sent: now, Acked: now + time.Millisecond, Group: key % 20})
			at[key] = op
		}
		h.Reads = append(h.Reads, Read{Key: key, Op: at[key], Fresh: true, Budget: time.Second, Invoked: now, Returned: now + 10*time.Microsecond, Replica: uint32(i % 3)})
	}
	b.ReportAllocs()
	for b.Loop() {
		if report := Judge(&h, Options{}); report.Violations > 0 {
			b.Fatal(report.Kept)
		}
	}
	b.ReportMetric(float64(reads)*float64(b.N)/b.Elapsed().Seconds(), "reads/s")
}

// A violation reads well enough to act on.
func ExampleViolation() {
	h := History{
		Commits: []Commit{{Key: 7, Op: 1, Sent: 0, Acked: 1}, {Key: 7, Op: 2, Sent: 2 * time.Second, Acked: 2100 * time.Millisecond}},
		Reads:   []Read{{Key: 7, Op: 1, Fresh: true, Budget: time.Second, Invoked: 4 * time.Second, Returned: 4001 * time.Millisecond, Replica: 2, Tier: 1}},
	}
	fmt.Println(Judge(&h, Options{}).Kept[0])
	// Output:
	// I1: key 7, op 1, FRESH with budget 1s from tier 1 of replica 2 (session 0), asked for at 4s and there at 4.001s: it shows #1 at most, and #2 had been acknowledged before the read was sent, less its budget; #0 nothing yet; #1 op 1, sent 0s, acked 1ns; #2 op 2, sent 2s, acked 2.1s
}
