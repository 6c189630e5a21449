package coherence_test

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/freshet-cache/freshet/coherence"
)

// moment is a snapshot of a model history beside what it says: all transactions that had finished.
type moment struct {
	coherence.Snapshot
	finished map[uint64]bool
}

// history makes the snapshots of a random history of transactions, in the order they were taken.
func history(random *rand.Rand, steps int) []moment {
	next := uint64(random.IntN(1000) + 3)
	xmax := next
	var open []uint64
	var order []uint64 // as they finished
	var moments []moment
	for range steps {
		switch n := random.IntN(10); {
		case n < 4 && len(open) < 12:
			open = append(open, next)
			next++
		case n < 7 && len(open) > 0:
			i := random.IntN(len(open))
			if random.IntN(3) > 0 {
				i = len(open) - 1 // the older ones stay long
			}
			order = append(order, open[i])
			xmax = max(xmax, open[i]+1)
			open = slices.Delete(open, i, i+1)
		default:
			s := coherence.Snapshot{Timeline: 5, Xmin: xmax, Xmax: xmax}
			for _, xid := range open {
				s.Xmin = min(s.Xmin, xid)
				if xid < xmax {
					s.Xip = append(s.Xip, xid)
				}
			}
			m := moment{s, map[uint64]bool{}}
			for _, xid := range order {
				m.finished[xid] = true
			}
			moments = append(moments, m)
		}
	}
	return moments
}

// Snapshots are prefixes of the order in which transactions finish, and so totally ordered.
func TestSnapshotOrder(t *testing.T) {
	for seed := range uint64(200) {
		moments := history(rand.New(rand.NewPCG(seed, 1)), 120)
		for i, a := range moments {
			for xid := range a.Xmax + 3 {
				// What finished before the history began counts as seen.
				want := a.finished[xid] || (xid < a.Xmax && !a.finished[xid] && !slices.Contains(a.Xip, xid))
				if a.Sees(xid) != want {
					t.Fatalf("seed %d: %s sees %d: %t", seed, a, xid, a.Sees(xid))
				}
			}
			for j, b := range moments {
				same := len(a.finished) == len(b.finished)
				if want := i >= j || same; a.Includes(b.Snapshot) != want {
					t.Fatalf("seed %d: number %d %s includes number %d %s: %t, want %t", seed, i, a, j, b, !want, want)
				}
				if a.Includes(b.Snapshot) {
					for xid := range b.finished {
						if !a.Sees(xid) {
							t.Fatalf("seed %d: %s includes %s and does not see %d", seed, a, b, xid)
						}
					}
				}
			}
			other := a.Snapshot
			other.Timeline++
			if a.Includes(other) || other.Includes(a.Snapshot) {
				t.Fatalf("%s and %s include each other", a, other)
			}
		}
	}
}

func TestSnapshotZero(t *testing.T) {
	var zero coherence.Snapshot
	if zero.Sees(0) || zero.Sees(1) || zero.Includes(zero) {
		t.Error("the zero snapshot proves something")
	}
	if s := (coherence.Snapshot{Xmin: 10, Xmax: 20}); s.Sees(5) || s.Sees(15) {
		t.Error("a snapshot without a timeline sees something")
	}
}

func TestSnapshotForms(t *testing.T) {
	random := rand.New(rand.NewPCG(2, 2))
	moments := history(random, 400)
	moments = append(moments, moment{}, moment{Snapshot: coherence.Snapshot{Timeline: 1<<64 - 1, Xmin: 0, Xmax: 1<<64 - 1, Xip: []uint64{0, 1<<64 - 2}}})
	for _, m := range moments {
		text := fmt.Sprintf("%d:%d:", m.Xmin, m.Xmax)
		for i, xid := range m.Xip {
			if i > 0 {
				text += ","
			}
			text += fmt.Sprint(xid)
		}
		if got, err := coherence.ParseSnapshot(m.Timeline, text); err != nil || !got.Equal(m.Snapshot) {
			t.Errorf("parse %q: %s, %v", text, got, err)
		}
		if want := fmt.Sprintf("%x/%s", m.Timeline, text); m.String() != want {
			t.Errorf("text %q, want %q", m, want)
		}
		b, err := m.AppendBinary([]byte("x"))
		if err != nil {
			t.Fatal(err)
		}
		got, rest, err := coherence.DecodeSnapshot(append(b[1:], "rest"...))
		if err != nil || !got.Equal(m.Snapshot) || string(rest) != "rest" {
			t.Errorf("decode %s: %s, rest %q, %v", m, got, rest, err)
		}
		for cut := range len(b) - 1 {
			if _, _, err := coherence.DecodeSnapshot(b[1 : 1+cut]); err == nil {
				t.Errorf("%s decodes from %d of its %d bytes", m, cut, len(b)-1)
			}
		}
	}
}

func TestParseSnapshotErrors(t *testing.T) {
	for _, text := range []string{
		"", ":", "::", "1:2", "1::", ":2:", "a:2:", "1:b:", "-1:2:", "2:1:", "1:5:0", "1:5:5", "1:5:3,2", "1:5:2,2", "1:5:,", "1:5:2,", "1:5:x",
		"1:5:2 ", "1:2::", "18446744073709551616:18446744073709551617:",
	} {
		if s, err := coherence.ParseSnapshot(1, text); err == nil {
			t.Errorf("%q parses as %s", text, s)
		}
	}
}

func FuzzParseSnapshot(f *testing.F) {
	for _, text := range []string{"1:1:", "100:200:100,150,199", "1:5:3,2", "0:18446744073709551615:", "x"} {
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		s, err := coherence.ParseSnapshot(1, text)
		if err != nil {
			return
		}
		again, err := coherence.ParseSnapshot(1, s.String()[2:])
		if err != nil || !again.Equal(s) {
			t.Errorf("%q parses as %s, and that as %s, %v", text, s, again, err)
		}
	})
}

func FuzzDecodeSnapshot(f *testing.F) {
	for _, s := range []coherence.Snapshot{{}, {Timeline: 7, Xmin: 100, Xmax: 200, Xip: []uint64{100, 150, 199}}, {Timeline: 1, Xmin: 5, Xmax: 5}} {
		b, err := s.AppendBinary(nil)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Add([]byte("\x01\x01\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01\x00")) // xmax overflows
	f.Add([]byte("\x01\x01\x05\xff\xff\xff\xff\x0f"))                     // more in progress than bytes
	f.Fuzz(func(t *testing.T, b []byte) {
		s, rest, err := coherence.DecodeSnapshot(b)
		if err != nil {
			return
		}
		again, err := s.AppendBinary(nil)
		if err != nil {
			t.Fatal(err)
		}
		if len(again) > len(b)-len(rest) {
			t.Errorf("%x decodes to %s, which takes %x", b, s, again)
		}
		back, none, err := coherence.DecodeSnapshot(again)
		if err != nil || len(none) != 0 || !back.Equal(s) || !s.Equal(s) {
			t.Errorf("%s comes back as %s, %v", s, back, err)
		}
		s.Includes(back)
		s.Sees(s.Xmax)
	})
}
