package coherence_test

import (
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/freshet-cache/freshet/coherence"
)

// A merged token asks for all that both ask for, and so does what comes back from its text; and when a
// state meets a token that was made of what had finished by then, it says so.
func TestTokenMerge(t *testing.T) {
	for seed := range uint64(100) {
		random := rand.New(rand.NewPCG(seed, 3))
		moments := history(random, 200)
		if len(moments) < 2 {
			continue
		}
		var token coherence.Token
		var parts []coherence.Token
		latest := 0 // the newest moment that the session has heard of
		for range 1 + random.IntN(12) {
			i := random.IntN(len(moments))
			part := coherence.TokenOf(moments[i].Snapshot)
			if finished := moments[i].finished; random.IntN(2) == 0 && len(finished) > 0 {
				for xid := range finished {
					part = coherence.TokenOfWrite(moments[i].Timeline, xid)
					break
				}
			}
			parts = append(parts, part)
			token = token.Merge(part)
			latest = max(latest, i)
			again, err := coherence.ParseToken(token.String())
			if err != nil {
				t.Fatalf("seed %d: %v", seed, err)
			}
			token = again
		}
		for i, m := range moments {
			for _, part := range parts {
				if token.SeenBy(m.Snapshot) && !part.SeenBy(m.Snapshot) {
					t.Fatalf("seed %d: %s meets the merged token and not each of its parts", seed, m)
				}
			}
			if i >= latest && len(parts) <= 8 && !token.SeenBy(m.Snapshot) {
				t.Fatalf("seed %d: %s does not meet a token of moments up to %s", seed, m, moments[latest])
			}
		}
	}
}

func TestTokenForms(t *testing.T) {
	var zero coherence.Token
	if !zero.IsZero() || zero.String() != "" || !zero.SeenBy(coherence.Snapshot{}) {
		t.Error("the zero token asks for something")
	}
	wide := coherence.Snapshot{Timeline: 1, Xmin: 1, Xmax: 1 << 40}
	for xid := uint64(1); xid < 1<<40; xid += 1 << 24 {
		wide.Xip = append(wide.Xip, xid)
	}
	text := coherence.TokenOf(wide).String()
	if len(text) > 2048 {
		t.Errorf("a token of %d bytes", len(text))
	}
	token, err := coherence.ParseToken(text)
	if err != nil || token.SeenBy(coherence.Snapshot{Timeline: 1, Xmin: 1, Xmax: 1 << 39}) || !token.SeenBy(coherence.Snapshot{Timeline: 1, Xmin: 1 << 40, Xmax: 1 << 40}) {
		t.Errorf("a token too long for its text: %v, %v", token, err)
	}
	for _, text := range []string{"x", "????", "AQ", text[:len(text)-1], "A" + text, strings.Repeat("A", 3000), coherence.TokenOfWrite(1, 7).String() + "AA"} {
		if token, err := coherence.ParseToken(text); err == nil {
			t.Errorf("%.60q parses as %v", text, token)
		}
	}
	early, err := coherence.ParseToken(coherence.TokenOfWrite(0, 7).String())
	if err != nil || early.IsZero() || early.SeenBy(wide) {
		t.Errorf("a write before the timeline began: token %q, %v, seen by any snapshot %v", early, err, early.SeenBy(wide))
	}
	if token := coherence.TokenOfWrite(2, 7); token.SeenBy(wide) {
		t.Error("a token of another timeline is met")
	}
}

func FuzzParseToken(f *testing.F) {
	f.Add("")
	f.Add(coherence.TokenOfWrite(1, 7).String())
	f.Add(coherence.TokenOf(coherence.Snapshot{Timeline: 9, Xmin: 5, Xmax: 9, Xip: []uint64{5, 7}}).Merge(coherence.TokenOfWrite(9, 12)).String())
	f.Fuzz(func(t *testing.T, text string) {
		token, err := coherence.ParseToken(text)
		if err != nil {
			return
		}
		again, err := coherence.ParseToken(token.String())
		if err != nil || again.String() != token.String() {
			t.Errorf("%q parses to %v, whose text %q parses to %v, %v", text, token, token.String(), again, err)
		}
	})
}

// A place in a queue of puts travels with a token and asks nothing of a snapshot; tokens without one look as ever.
func TestTokenOfPut(t *testing.T) {
	state := coherence.TokenOfWrite(1, 7)
	put := coherence.TokenOfPut(5, 30)
	if merged := put.Merge(state); merged.SeenBy(coherence.Snapshot{Timeline: 1, Xmin: 1, Xmax: 1}) {
		t.Error("a merged token forgets the write")
	}
	if put.IsZero() || !put.SeenBy(coherence.Snapshot{}) {
		t.Error("a put's token asks for nothing, or for a state")
	}
	for _, c := range []struct {
		token        coherence.Token
		queue, place uint64
	}{
		{put, 5, 30},
		{put.Merge(state), 5, 30},
		{state.Merge(put), 5, 30},
		{put.Merge(coherence.TokenOfPut(5, 29)), 5, 30},
		{put.Merge(coherence.TokenOfPut(5, 31)), 5, 31},
		{put.Merge(coherence.TokenOfPut(6, 1)), 6, 1},
		{state, 0, 0},
	} {
		again, err := coherence.ParseToken(c.token.String())
		if queue, place := again.Queue(); err != nil || queue != c.queue || place != c.place {
			t.Errorf("place %d of queue %d, %v; want %d of %d", place, queue, err, c.place, c.queue)
		}
		before := coherence.Snapshot{Timeline: 1, Xmin: 1, Xmax: 1}
		if again.SeenBy(before) != c.token.SeenBy(before) {
			t.Errorf("what the token says of the state changes on the way: seen %v", again.SeenBy(before))
		}
	}
	for _, cut := range []int{1, 8, 20} {
		text := put.String()
		if token, err := coherence.ParseToken(text[:len(text)-cut]); err == nil {
			t.Errorf("%d characters less parse as %v", cut, token)
		}
	}
}
