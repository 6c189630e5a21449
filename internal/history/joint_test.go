package history

import (
	"math/rand/v2"
	"slices"
	"testing"
	"time"
)

// joined is a random run of a system that answers about several keys as of one moment. Some writes change two keys.
type joined struct {
	*rand.Rand
	h      History
	states map[uint64][]happened // key -> in order
}

const joinedKeys = 3

func newJoined(seed uint64) *joined {
	w := &joined{Rand: rand.New(rand.NewPCG(seed, 2)), states: map[uint64][]happened{}}
	at := time.Duration(0)
	for op := uint64(1); op < 10; op++ {
		at += 1 + time.Duration(w.Int64N(int64(40*time.Millisecond)))
		keys := w.Perm(joinedKeys)[:1+w.IntN(2)]
		slices.Sort(keys)
		sent, acked := at-time.Duration(w.Int64N(int64(60*time.Millisecond))), at+time.Duration(w.Int64N(int64(60*time.Millisecond)))
		if w.IntN(4) == 0 {
			acked = Never
		}
		for _, key := range keys {
			c := happened{at: at, Commit: Commit{Key: uint64(key + 1), Op: op, Absent: w.IntN(3) == 0, Group: 1, Sent: sent, Acked: acked}}
			w.states[c.Key] = append(w.states[c.Key], c)
			w.h.Commits = append(w.h.Commits, c.Commit)
		}
	}
	return w
}

// answer adds answers that show each key as of an instant, and keys apart by up to so much.
func (w *joined) answer(apart time.Duration) *History {
	for range 12 {
		at := time.Duration(w.Int64N(int64(300 * time.Millisecond)))
		a := Joint{Fresh: true, Budget: time.Duration(w.IntN(3)) * 50 * time.Millisecond, Invoked: at, Returned: at + time.Duration(w.Int64N(int64(20*time.Millisecond)))}
		as := at - a.Budget + time.Duration(w.Int64N(int64(a.Returned-at+a.Budget)+1))
		for key := uint64(1); key <= joinedKeys; key++ {
			e := Entry{Key: key}
			mine := as
			if apart > 0 {
				mine += time.Duration(w.Int64N(int64(apart)))
			}
			for _, c := range w.states[key] {
				if c.at > mine {
					break
				}
				if e.Op = c.Op; c.Absent {
					e.Op = 0
				}
			}
			a.Entries = append(a.Entries, e)
		}
		w.h.Joints = append(w.h.Joints, a)
	}
	return &w.h
}

// twinJoint tries all places of all keys: whether there are some that each key alone may be of, and some that all may be
// of at one instant.
func twinJoint(h *History, a *Joint) (each, all bool) {
	lines := make([][]Commit, len(a.Entries))
	for i, e := range a.Entries {
		lines[i] = []Commit{{Key: e.Key, Absent: true, Sent: Always, Acked: Always}}
		for _, c := range h.Commits {
			if c.Key == e.Key {
				lines[i] = append(lines[i], c)
			}
		}
	}
	places := make([]int, len(lines))
	alone := make([]bool, len(lines))
	var try func(i int)
	try = func(i int) {
		if i == len(lines) {
			all = all || fits(a, lines, places)
			return
		}
		for p, c := range lines[i] {
			if c.Absent != (a.Entries[i].Op == 0) || !c.Absent && c.Op != a.Entries[i].Op {
				continue
			}
			places[i] = p
			if !fits(a, lines[i:i+1], places[i:i+1]) {
				continue
			}
			alone[i] = true
			try(i + 1)
		}
	}
	try(0)
	if !all { // alone is complete only if no key before has stopped the search
		for i := range lines {
			for p, c := range lines[i] {
				says := c.Absent == (a.Entries[i].Op == 0) && (c.Absent || c.Op == a.Entries[i].Op)
				alone[i] = alone[i] || says && fits(a, lines[i:i+1], []int{p})
			}
		}
	}
	return !slices.Contains(alone, false), all
}

// fits reports whether the lines can have been at the places at one instant of the answer.
func fits(a *Joint, lines [][]Commit, places []int) bool {
	earliest, latest := a.Invoked-a.Budget, a.Returned
	seen, unseen := map[uint64]bool{}, map[uint64]bool{}
	for i, line := range lines {
		for p, c := range line {
			if p <= places[i] {
				earliest = max(earliest, c.Sent)
				seen[c.Op] = true
			} else {
				latest = min(latest, c.Acked)
				unseen[c.Op] = true
			}
		}
	}
	for op := range seen {
		if op != 0 && unseen[op] {
			return false
		}
	}
	return earliest <= latest
}

// The judge finds joint answers guilty that the dumb twin does, and no others; a correct system is never blamed.
func TestI8SameVerdictsAsTheDumbTwin(t *testing.T) {
	found, others := 0, 0
	for _, apart := range []time.Duration{0, 5 * time.Millisecond, 60 * time.Millisecond} {
		for seed := range uint64(400) {
			h := newJoined(seed).answer(apart)
			for i := range h.Joints {
				one := &History{Commits: h.Commits, Joints: h.Joints[i : i+1]}
				got := Judge(one, Options{})
				each, all := twinJoint(h, &h.Joints[i])
				if guilty := got.ByInvariant[I8] > 0; guilty != (each && !all) {
					t.Fatalf("apart by %v, seed %d, answer %d: guilty %t, the twin says %t and %t\n%+v\n%v", apart, seed, i, guilty, each, all, h.Joints[i], got.Kept)
				}
				if alone := got.ByInvariant[I1]+got.ByInvariant[I4] > 0; alone == each {
					t.Fatalf("apart by %v, seed %d, answer %d: each key alone: %t, the twin says %t\n%v", apart, seed, i, !alone, each, got.Kept)
				}
				if got.ByInvariant[I8] > 0 {
					found++
				} else if !each {
					others++
				}
				if apart == 0 && !all {
					t.Fatalf("seed %d, answer %d: a correct answer does not fit: %+v", seed, i, h.Joints[i])
				}
			}
		}
	}
	if found < 300 || others < 100 {
		t.Errorf("%d broken promises, and %d answers that break others: the test shows little", found, others)
	}
}

// A transfer changes two keys at one instant, and the sum does not waver.
func TestJudgeI8(t *testing.T) {
	const ms = time.Millisecond
	commits := []Commit{
		{Key: 1, Op: 1, Sent: Always, Acked: Always},
		{Key: 2, Op: 2, Sent: Always, Acked: Always},
		{Key: 1, Op: 3, Sent: 10 * ms, Acked: 30 * ms},
		{Key: 2, Op: 3, Sent: 10 * ms, Acked: 30 * ms},
		{Key: 1, Op: 4, Sent: 40 * ms, Acked: 50 * ms},
		{Key: 2, Op: 5, Sent: 60 * ms, Acked: 70 * ms},
	}
	joint := func(ops ...uint64) Joint {
		return Joint{Entries: []Entry{{1, ops[0]}, {2, ops[1]}}, Fresh: true, Budget: time.Second, Invoked: 100 * ms, Returned: 101 * ms}
	}
	for name, c := range map[string]struct {
		joint Joint
		bad   uint64
	}{
		"before":                              {joint(1, 2), 0},
		"after":                               {joint(3, 3), 0},
		"one half of the transfer":            {joint(3, 2), 1},
		"the other half":                      {joint(1, 3), 1},
		"one change later":                    {joint(4, 3), 0},
		"both":                                {joint(4, 5), 0},
		"the later change without the former": {joint(3, 5), 1},
		"a key answered twice, differently":   {Joint{Entries: []Entry{{1, 3}, {1, 4}}, Returned: time.Second}, 1},
		"a key answered twice":                {Joint{Entries: []Entry{{1, 4}, {1, 4}}, Returned: time.Second}, 0},
		"a sum that wavers":                   {Joint{Sum: 99, Total: 100}, 1},
	} {
		h := &History{Commits: commits, Joints: []Joint{c.joint}}
		got := Judge(h, Options{})
		if got.ByInvariant[I8] != c.bad || got.Violations != c.bad || got.Joints != 1 {
			t.Errorf("%s: %v", name, got.Kept)
		}
		h.Unsettled = []Commit{{Key: 0, Op: 9, Sent: ms, Acked: Never}}
		if got := Judge(h, Options{Lossy: true}); len(c.joint.Entries) > 0 && (got.Violations != 0 || got.Excused != 1) {
			t.Errorf("%s, after a failover that may have lost anything: %v", name, got.Kept)
		}
	}
}
