package cluster

import (
	"cmp"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"
)

const testExpire = 3500 * time.Millisecond

var epoch = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)

func at(ms int) time.Time { return epoch.Add(time.Duration(ms) * time.Millisecond) }

func beatOf(id string, boot, seq uint64) heartbeat {
	return heartbeat{member: Member{ID: id, Boot: boot}, seq: seq}
}

func leaveOf(id string, boot, seq uint64) heartbeat {
	h := beatOf(id, boot, seq)
	h.leaving = true
	return h
}

// runs lists who is in the view, as id/boot.
func runs(v *View) []string {
	var s []string
	for _, m := range v.Members {
		s = append(s, fmt.Sprintf("%s/%d", m.ID, m.Boot))
	}
	return s
}

func TestTableTellsNewsFromTheRest(t *testing.T) {
	type step struct {
		ms   int
		h    heartbeat
		want outcome
		view string
	}
	moved := beatOf("b", 2, 9)
	moved.member.Address = "10.0.0.9:80"
	for name, steps := range map[string][]step{
		"a member joins, stays and leaves": {
			{0, beatOf("b", 1, 1), joined, "[b/1 me/5]"},
			{1000, beatOf("b", 1, 2), noted, "[b/1 me/5]"},
			{2000, leaveOf("b", 1, 3), departed, "[me/5]"},
		},
		"doubled and overtaken heartbeats": {
			{0, beatOf("b", 1, 2), joined, "[b/1 me/5]"},
			{10, beatOf("b", 1, 2), late, "[b/1 me/5]"},
			{20, beatOf("b", 1, 1), late, "[b/1 me/5]"},
		},
		"the announcement of leaving is overtaken, doubled, and comes alone": {
			{0, leaveOf("b", 1, 3), noted, "[me/5]"},
			{10, beatOf("b", 1, 2), late, "[me/5]"},
			{20, leaveOf("b", 1, 3), late, "[me/5]"},
			{30, beatOf("b", 1, 4), late, "[me/5]"},
			{40, beatOf("b", 2, 1), joined, "[b/2 me/5]"},
		},
		"a later boot replaces at once, an earlier one does not come back": {
			{0, beatOf("b", 1, 70), joined, "[b/1 me/5]"},
			{10, beatOf("b", 2, 1), joined, "[b/2 me/5]"},
			{20, beatOf("b", 1, 71), late, "[b/2 me/5]"},
			{30, leaveOf("b", 1, 72), late, "[b/2 me/5]"},
			{40, moved, joined, "[b/2 me/5]"},
			{50, leaveOf("b", 3, 1), departed, "[me/5]"},
		},
		"silence": {
			{0, beatOf("b", 1, 1), joined, "[b/1 me/5]"},
			{1, beatOf("c", 1, 1), joined, "[b/1 c/1 me/5]"},
			{3499, beatOf("d", 1, 1), joined, "[b/1 c/1 d/1 me/5]"},
			{3500, beatOf("d", 1, 2), noted, "[c/1 d/1 me/5]"},
			{3501, beatOf("d", 1, 3), noted, "[d/1 me/5]"},
			{9000, beatOf("b", 1, 2), joined, "[b/1 me/5]"},
		},
		"oneself": {
			{0, beatOf("me", 5, 1), echo, "[me/5]"},
			{1, leaveOf("me", 5, 2), echo, "[me/5]"},
			{2, beatOf("me", 6, 1), conflict, "[me/5]"},
			{3, leaveOf("me", 4, 1), conflict, "[me/5]"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			table := newTable(Member{ID: "me", Boot: 5}, testExpire, MaxMembers)
			before := table.view()
			for _, s := range steps {
				table.expireSilent(at(s.ms))
				if got := table.hear(s.h, at(s.ms)); got != s.want {
					t.Errorf("%d ms: outcome %d, want %d", s.ms, got, s.want)
				}
				v := table.view()
				if got := fmt.Sprint(runs(v)); got != s.view {
					t.Errorf("%d ms: view %s, want %s", s.ms, got, s.view)
				}
				checkNumbers(t, before, v)
				before = v
			}
		})
	}
}

// checkNumbers: the number rises exactly if who is in the view changed.
func checkNumbers(t *testing.T, before, after *View) {
	t.Helper()
	same := slices.EqualFunc(before.Members, after.Members, func(a, b Member) bool {
		return a.ID == b.ID && a.Boot == b.Boot && a.Address == b.Address
	})
	if same != (before.Number == after.Number) || after.Number < before.Number {
		t.Fatalf("view %d %v became %d %v", before.Number, before.Members, after.Number, after.Members)
	}
}

func TestTableNotesReports(t *testing.T) {
	table := newTable(Member{ID: "me", Boot: 5}, testExpire, MaxMembers)
	table.hear(beatOf("b", 1, 1), at(0))
	old := table.view()
	h := beatOf("b", 1, 2)
	h.member.PollAge, h.member.Load = time.Minute, 42
	table.hear(h, at(1000))
	if got := table.view().Members[0]; got != h.member {
		t.Errorf("member is %+v, want %+v", got, h.member)
	}
	if old.Members[0].Load != 0 {
		t.Error("a view changed after it was handed out")
	}
}

func TestTableHasRoomForSoMany(t *testing.T) {
	const limit = 4
	table := newTable(Member{ID: "me", Boot: 5}, testExpire, limit)
	hear := func(ms int, h heartbeat, want outcome) {
		t.Helper()
		if got := table.hear(h, at(ms)); got != want {
			t.Errorf("%s at %d ms: outcome %d, want %d", h.member.ID, ms, got, want)
		}
		if n := 1 + len(table.others); n > limit {
			t.Errorf("%d members are known, more than %d", n, limit)
		}
	}
	hear(0, beatOf("b", 1, 1), joined)
	hear(0, beatOf("c", 1, 1), joined)
	hear(0, beatOf("d", 1, 1), joined)
	hear(1, beatOf("e", 1, 1), crowded)
	hear(1, leaveOf("e", 1, 2), crowded)
	hear(2, beatOf("b", 1, 2), noted)
	hear(3, beatOf("b", 2, 1), joined)
	hear(4, leaveOf("c", 1, 2), departed)
	hear(5, leaveOf("d", 1, 2), departed)
	hear(6, beatOf("e", 1, 3), joined) // in the place of c, which left first
	hear(7, beatOf("d", 1, 1), late)   // d is still remembered
	hear(8, beatOf("f", 1, 1), joined) // in the place of d
	hear(9, beatOf("g", 1, 1), crowded)
	if got, want := fmt.Sprint(runs(table.view())), "[b/2 e/1 f/1 me/5]"; got != want {
		t.Errorf("view %s, want %s", got, want)
	}
}

func TestTableNextExpiry(t *testing.T) {
	table := newTable(Member{ID: "me", Boot: 5}, testExpire, MaxMembers)
	if got := table.nextExpiry(at(9000)); !got.Equal(at(9000)) {
		t.Errorf("alone: %v", got)
	}
	table.hear(beatOf("b", 1, 1), at(100))
	table.hear(leaveOf("c", 1, 1), at(50))
	if got := table.nextExpiry(at(9000)); !got.Equal(at(3550)) {
		t.Errorf("next expiry is %v, want that of c", got)
	}
	if got := table.nextExpiry(at(1000)); !got.Equal(at(1000)) {
		t.Errorf("next expiry is %v, want the bound", got)
	}
	if silent := table.expireSilent(at(3550)); len(silent) != 0 || len(table.others) != 1 {
		t.Errorf("at 3550 ms %v were silent, %d known", silent, len(table.others))
	}
	if silent := table.expireSilent(at(3600)); len(silent) != 1 || silent[0].ID != "b" || len(table.others) != 0 {
		t.Errorf("at 3600 ms %v were silent, %d known", silent, len(table.others))
	}
}

// A seeded history of replicas that start, leave, die, restart and reuse IDs, over a bus that loses,
// doubles and delays (by less than expire) what they say. After each step the table is checked
// against the plain history of what was delivered; after the last, everything heals and it must agree
// with the truth.
func TestTableUnderLossReorderAndDuplication(t *testing.T) {
	for seed := range uint64(100) {
		t.Run(fmt.Sprint("seed ", seed), func(t *testing.T) {
			tableHistory(t, rand.New(rand.NewPCG(seed, 0)))
		})
	}
}

type delivery struct {
	ms int
	h  heartbeat
}

func tableHistory(t *testing.T, random *rand.Rand) {
	t.Helper()
	const (
		step    = 100 // ms
		chaos   = 30_000
		expire  = int(testExpire / time.Millisecond)
		maxLate = expire - step
	)
	type replica struct {
		boot, seq uint64
		alive     bool
	}
	replicas := map[string]*replica{"a": {}, "b": {}, "c": {}, "d": {}}
	ids := []string{"a", "b", "c", "d"}
	table := newTable(Member{ID: "me", Boot: 5}, testExpire, MaxMembers)
	var transit, delivered []delivery
	boots := uint64(0)
	before := table.view()

	for ms := 0; ms < chaos+2*expire; ms += step {
		quiet := ms >= chaos
		say := func(id string, leaving bool) {
			r := replicas[id]
			r.seq++
			h := beatOf(id, r.boot, r.seq)
			h.leaving = leaving
			copies := 1
			if !quiet {
				copies = random.IntN(3) // lost, once, twice
			}
			for range copies {
				delay := 0
				if !quiet && random.IntN(3) == 0 {
					delay = random.IntN(maxLate)
				}
				transit = append(transit, delivery{ms + delay, h})
			}
		}
		for _, id := range ids {
			r := replicas[id]
			switch {
			case !r.alive && !quiet && random.IntN(20) == 0:
				boots++
				*r = replica{boot: boots, alive: true}
				say(id, false)
			case r.alive && !quiet && random.IntN(60) == 0: // dies without a word
				r.alive = false
			case r.alive && !quiet && random.IntN(60) == 0:
				say(id, true)
				r.alive = false
			case r.alive && ms%1000 == 0:
				say(id, false)
			}
		}

		table.expireSilent(at(ms))
		v := table.view()
		checkNumbers(t, before, v)
		due := slices.DeleteFunc(slices.Clone(transit), func(d delivery) bool { return d.ms > ms })
		transit = slices.DeleteFunc(transit, func(d delivery) bool { return d.ms <= ms })
		random.Shuffle(len(due), func(i, j int) { due[i], due[j] = due[j], due[i] })
		for _, d := range due {
			delivered = append(delivered, delivery{ms, d.h})
			table.hear(d.h, at(ms))
			before, v = v, table.view()
			checkNumbers(t, before, v)
		}
		before = v
		if !slices.IsSortedFunc(v.Members, func(a, b Member) int { return cmp.Or(cmp.Compare(a.ID, b.ID), 1) }) {
			t.Fatalf("%d ms: %v is not sorted or has an ID twice", ms, runs(v))
		}
		if want := shouldBeInView(delivered, ms, expire); !slices.Equal(runs(v), want) {
			t.Fatalf("%d ms: view is %v, want %v", ms, runs(v), want)
		}
	}

	truth := []string{"me/5"}
	for id, r := range replicas {
		if r.alive {
			truth = append(truth, fmt.Sprintf("%s/%d", id, r.boot))
		}
	}
	slices.Sort(truth)
	if got := runs(before); !slices.Equal(got, truth) {
		t.Errorf("after all healed the view is %v, want %v", got, truth)
	}
}

// shouldBeInView is the table's dumb twin, with perfect memory: of each ID, the last thing it said
// among all that was ever delivered decides; it is in the view unless that was to leave, or was first
// delivered too long ago.
func shouldBeInView(delivered []delivery, now, expire int) []string {
	last := map[string]delivery{}
	for _, d := range delivered {
		l, known := last[d.h.member.ID]
		if !known || cmp.Or(cmp.Compare(d.h.member.Boot, l.h.member.Boot), cmp.Compare(d.h.seq, l.h.seq)) > 0 {
			last[d.h.member.ID] = d
		}
	}
	in := []string{"me/5"}
	for id, d := range last {
		if !d.h.leaving && d.ms > now-expire {
			in = append(in, fmt.Sprintf("%s/%d", id, d.h.member.Boot))
		}
	}
	slices.Sort(in)
	return in
}
