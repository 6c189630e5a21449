package history

import (
	"maps"
	"slices"
	"testing"
	"time"
)

// twin judges I1 to I4 as the judge does, by looking at everything for everything.
func twin(h *History) map[Invariant]uint64 {
	type said struct {
		Read
		list  *List
		place int
	}
	found := map[Invariant]uint64{}
	keys := map[uint64]bool{}
	for _, c := range h.Commits {
		keys[c.Key] = true
	}
	for _, r := range h.Reads {
		keys[r.Key] = true
	}
	for key := range keys {
		line := []Commit{{Key: key, Absent: true, Sent: Always, Acked: Always}}
		for _, c := range h.Commits {
			if c.Key == key {
				line = append(line, c)
			}
		}
		var all []said
		for _, r := range h.Reads {
			if r.Key == key {
				all = append(all, said{Read: r})
			}
		}
		for i := range h.Lists {
			l := &h.Lists[i]
			s := said{Read: l.asRead(key, 0), list: l}
			for _, e := range l.Entries {
				if e.Key == key {
					s.Op = e.Op
				}
			}
			if s.Op != 0 || slices.ContainsFunc(line, func(c Commit) bool { return !c.Absent && c.Group == l.Group }) {
				all = append(all, s)
			}
		}
		slices.SortFunc(all, func(a, b said) int { return int(a.Invoked - b.Invoked) })
		for i := range all {
			r := &all[i]
			// least is the first place from one on that fits the answer; -1 = none.
			least := func(from int) int {
				for p, c := range line {
					possible := true
					for _, before := range line[:p+1] {
						possible = possible && before.Sent <= r.Returned
					}
					in := r.list != nil && !c.Absent && c.Group == r.list.Group
					var says bool
					switch {
					case r.list == nil && r.Op == 0:
						says = c.Absent
					case r.list == nil:
						says = !c.Absent && c.Op == r.Op
					case r.Op == 0:
						says = !in
					default:
						says = in && c.Op == r.Op
					}
					if p >= from && possible && says {
						return p
					}
				}
				return -1
			}
			if r.place = least(0); r.place < 0 {
				found[I4]++
				continue
			}
			acked, seen, replica, session := 0, 0, 0, 0
			for p, c := range line {
				if r.Fresh && c.Acked < r.Invoked-r.Budget {
					acked = p
				}
				if r.Session != 0 && c.Session == r.Session && c.Acked < r.Invoked {
					session = p
				}
			}
			for _, q := range all[:i] {
				if r.Fresh && q.Returned < r.Invoked-r.Budget {
					seen = max(seen, q.place)
				}
				if q.Returned >= r.Invoked {
					continue
				}
				same := (q.list == nil) == (r.list == nil) && (q.list == nil || q.list.Group == r.list.Group)
				if r.Fresh && q.Fresh && q.Replica == r.Replica && same {
					replica = max(replica, q.place)
				}
				if r.Session != 0 && q.Session == r.Session {
					session = max(session, q.place)
				}
			}
			broken := map[Invariant]bool{}
			broken[I1] = least(max(acked, seen)) < 0
			broken[I3] = least(replica) < 0
			broken[I2] = least(session) < 0
			all := 0
			for i, b := range broken {
				if b {
					found[i]++
					all++
				}
			}
			if all == 0 {
				r.place = least(max(acked, seen, replica, session))
			}
		}
	}
	return found
}

// The judge finds in random histories, right and wrong, exactly what the dumb one finds.
func TestSameVerdictsAsTheDumbTwin(t *testing.T) {
	total := map[Invariant]uint64{}
	for _, f := range []flaw{
		{},
		{older: 30 * time.Millisecond},
		{older: 300 * time.Millisecond},
		{backwards: true},
		{forgetful: true},
		{backwards: true, forgetful: true, older: 100 * time.Millisecond},
		{clairvoyant: true},
		{partial: true},
		{moved: true, older: 50 * time.Millisecond},
	} {
		for seed := range uint64(150) {
			h := newWorld(seed).run(f)
			got, want := Judge(h, Options{Keep: 1000}), twin(h)
			if !maps.Equal(got.ByInvariant, want) {
				t.Fatalf("%+v, seed %d: found %v, the dumb twin %v\n%v", f, seed, got.ByInvariant, want, got.Kept)
			}
			for i, n := range want {
				total[i] += n
			}
		}
	}
	for _, i := range []Invariant{I1, I2, I3, I4} {
		if total[i] < 100 {
			t.Errorf("%v was broken %d times: the test shows little", i, total[i])
		}
	}
}

// What a failover lost explains answers that show it, say that the key is gone, or leave it out of a list, as long as
// they may be from before; without a failover nothing is explained.
func TestJudgeFailover(t *testing.T) {
	const ms = time.Millisecond
	commits := []Commit{{Key: 1, Op: 1, Group: 5, Sent: Always, Acked: Always}}
	gone := Commit{Key: 1, Op: 2, Sent: 10 * ms, Acked: 11 * ms}
	unsettled := gone
	unsettled.Acked = Never
	read := func(op uint64, at time.Duration) History {
		return History{Reads: []Read{{Key: 1, Op: op, Fresh: true, Budget: 50 * ms, Invoked: at, Returned: at + ms}}}
	}
	list := func(at time.Duration, entries ...Entry) History {
		return History{Lists: []List{{Group: 5, Entries: entries, Fresh: true, Budget: 50 * ms, Invoked: at, Returned: at + ms}}}
	}
	for name, c := range map[string]struct {
		h      History
		broken Invariant // without a failover, or late
	}{
		"its number":            {read(2, 0), I4},
		"a deletion":            {read(0, 0), I4},
		"its number in a list":  {list(0, Entry{1, 2}), I4},
		"a key that left":       {list(0), I4},
		"the state that stayed": {read(1, 0), 0},
	} {
		for _, w := range []Commit{gone, unsettled} {
			h := c.h
			h.Commits = commits
			if w.Acked == Never {
				h.Unsettled = []Commit{w}
			} else {
				h.Lost = []Commit{w}
			}
			for _, anyKey := range []bool{false, true} {
				if anyKey {
					for _, all := range [][]Commit{h.Lost, h.Unsettled} {
						for i := range all {
							all[i].Key = 0
						}
					}
				}
				at := func(at time.Duration, o Options) Invariant {
					for i := range h.Reads {
						h.Reads[i].Invoked, h.Reads[i].Returned = at, at+ms
					}
					for i := range h.Lists {
						h.Lists[i].Invoked, h.Lists[i].Returned = at, at+ms
					}
					for i := range Judge(&h, o).ByInvariant {
						return i
					}
					return 0
				}
				lossy := Options{Lossy: true, LostUntil: 100 * ms}
				if got := at(120*ms, lossy); got != 0 {
					t.Errorf("%s: in time: %v", name, got)
				}
				if got := at(5*ms, lossy); got != c.broken {
					t.Errorf("%s: before it was sent: %v, want %v", name, got, c.broken)
				}
				if got := at(151*ms, lossy); (got != 0) != (c.broken != 0) {
					t.Errorf("%s: too late: %v", name, got)
				}
				if got := at(120*ms, Options{}); got != c.broken {
					t.Errorf("%s: without a failover: %v, want %v", name, got, c.broken)
				}
			}
		}
	}
}

// Where several commits fit an answer, the least that all promises leave is taken, and what follows from it holds.
func TestJudgeAbsences(t *testing.T) {
	const ms = time.Millisecond
	commits := []Commit{
		{Key: 1, Op: 1, Sent: 10 * ms, Acked: Never},
		{Key: 1, Op: 2, Absent: true, Sent: 20 * ms, Acked: Never},
		{Key: 1, Op: 3, Sent: 30 * ms, Acked: Never},
		{Key: 1, Op: 4, Absent: true, Sent: 40 * ms, Acked: Never},
	}
	read := func(op uint64, at time.Duration) Read {
		return Read{Key: 1, Op: op, Fresh: true, Budget: time.Hour, Invoked: at, Returned: at + ms, Replica: 1}
	}
	for name, c := range map[string]struct {
		reads []Read
		want  map[Invariant]uint64
	}{
		"absent may be before the first":           {[]Read{read(0, 50*ms), read(1, 60*ms)}, nil},
		"absent after 1 is 2 at least":             {[]Read{read(1, 50*ms), read(0, 60*ms), read(1, 70*ms)}, map[Invariant]uint64{I3: 1}},
		"and may be 2, so that 3 may follow":       {[]Read{read(1, 50*ms), read(0, 60*ms), read(3, 70*ms)}, nil},
		"3 before the second absence was possible": {[]Read{read(3, 32*ms), read(0, 35*ms)}, map[Invariant]uint64{I3: 1}},
		"reads at the same time do not oblige":     {[]Read{read(3, 50*ms), read(1, 51*ms)}, nil},
		"a nanosecond later they do":               {[]Read{read(3, 50*ms), read(1, 51*ms+1)}, map[Invariant]uint64{I3: 1}},
		"sent when the answer is there":            {[]Read{read(1, 9*ms)}, nil},
		"sent a nanosecond after":                  {[]Read{read(1, 9*ms-1)}, map[Invariant]uint64{I4: 1}},
	} {
		h := History{Commits: commits, Reads: c.reads}
		if got := Judge(&h, Options{}); !maps.Equal(got.ByInvariant, c.want) || !maps.Equal(twin(&h), got.ByInvariant) {
			t.Errorf("%s: %v, want %v: %v", name, got.ByInvariant, c.want, got.Kept)
		}
	}
	// What was there from the beginning was never absent.
	h := History{Commits: []Commit{{Key: 1, Op: 1, Sent: Always, Acked: Always}}, Reads: []Read{{Key: 1}, {Key: 2}}}
	if got := Judge(&h, Options{}); got.ByInvariant[I4] != 1 || got.Violations != 1 {
		t.Errorf("absent from the beginning: %v", got.Kept)
	}
	// Acknowledged exactly as long ago as the budget obliges nobody; a nanosecond longer does.
	h = History{Commits: []Commit{{Key: 1, Op: 1, Sent: 1, Acked: ms}}, Reads: []Read{
		{Key: 1, Fresh: true, Budget: ms, Invoked: 2 * ms, Returned: 2 * ms},
		{Key: 1, Fresh: true, Budget: ms, Invoked: 2*ms + 1, Returned: 3 * ms, Replica: 1},
	}}
	if got := Judge(&h, Options{}); got.ByInvariant[I1] != 1 || got.Kept[0].Read.Invoked != 2*ms+1 {
		t.Errorf("at the edge of the budget: %v", got.Kept)
	}
	// A commit acknowledged before an earlier one was sent: the history is wrong.
	h = History{Commits: []Commit{{Key: 1, Op: 1, Sent: 9, Acked: 10}, {Key: 1, Op: 2, Sent: 1, Acked: 2}}}
	if got := Judge(&h, Options{}); got.Disordered != 1 {
		t.Errorf("%d commits in disorder, want 1", got.Disordered)
	}
}

// A write that changes several keys counts for each, and a session must see it everywhere.
func TestJudgeI2(t *testing.T) {
	const ms = time.Millisecond
	h := History{
		Commits: []Commit{{Key: 1, Op: 1, Group: 5, Acked: ms, Session: 7}, {Key: 2, Op: 1, Group: 5, Acked: ms, Session: 7}},
		Reads: []Read{
			{Key: 1, Op: 1, Session: 7, Invoked: 2 * ms, Returned: 3 * ms},
			{Key: 2, Session: 7, Invoked: 4 * ms, Returned: 5 * ms},
			{Key: 2, Session: 8, Invoked: 4 * ms, Returned: 5 * ms},
		},
		Lists: []List{{Group: 5, Session: 7, Entries: []Entry{{1, 1}}, Invoked: 6 * ms, Returned: 7 * ms}},
	}
	got := Judge(&h, Options{})
	if got.ByInvariant[I2] != 2 || got.Violations != 2 {
		t.Errorf("%v", got.Kept)
	}
}
