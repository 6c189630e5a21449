package tiers

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"time"
)

// strew puts keys with a new prefix on every primary and returns the prefix.
func strew(t *testing.T, l *L2, n int) (prefix string, keys []string) {
	t.Helper()
	prefix = fmt.Sprintf("sweep%x:", rand.Uint64())
	fillings := make([]Filling, n)
	for i := range fillings {
		keys = append(keys, fmt.Sprintf("%s{%d}", prefix, i))
		fillings[i] = Filling{Key: keys[i], Bytes: []byte("value"), TTL: time.Minute}
	}
	for _, err := range l.SetMany(t.Context(), fillings) {
		if err != nil {
			t.Fatal(err)
		}
	}
	return prefix, keys
}

// remain counts the keys that are there.
func remain(t *testing.T, l *L2, keys []string) (n int) {
	t.Helper()
	for _, r := range l.GetMany(t.Context(), keys) {
		if r.Err == nil {
			n++
		} else if !errors.Is(r.Err, ErrMiss) {
			t.Fatal(r.Err)
		}
	}
	return n
}

// A sweep removes what it is told to on every primary, says how far it is, and takes its time.
func TestSweep(t *testing.T) {
	l := openL2(t, patient)
	const n = 600
	prefix, keys := strew(t, l, n)
	var there int64
	look := Sweep{Match: prefix + "*", Take: func(context.Context, []string) ([]string, error) { return nil, nil }}
	look.Progress = func(p SweepProgress) {
		if p.Done {
			there += p.Keys
		}
	}
	if err := l.Sweep(t.Context(), look); err != nil || remain(t, l, keys) != n {
		t.Fatalf("of a sweep that takes nothing %d of %d remain: %v", remain(t, l, keys), n, err)
	}

	progress := map[string]SweepProgress{}
	began := time.Now()
	err := l.Sweep(t.Context(), Sweep{
		Match: prefix + "*", Rate: int(there),
		Take: func(_ context.Context, found []string) (taken []string, err error) {
			for _, key := range found {
				if !strings.HasPrefix(key, prefix) {
					t.Errorf("%q does not match", key)
				}
				if !strings.HasSuffix(key, "7}") {
					taken = append(taken, key)
				}
			}
			return taken, nil
		},
		Progress: func(p SweepProgress) {
			if before := progress[p.Primary]; p.Scanned < before.Scanned || p.Removed < before.Removed || p.Keys == 0 {
				t.Errorf("progress %+v after %+v", p, before)
			}
			progress[p.Primary] = p
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	if took := time.Since(began); took < 600*time.Millisecond { // the last step at a primary waits for nothing
		t.Errorf("%d keys at as many per second took %v", there, took)
	}
	var removed int64
	for _, p := range progress {
		removed += p.Removed
		if !p.Done || p.Err != nil || p.Removed == 0 || p.Matched < p.Removed {
			t.Errorf("in the end: %+v", p)
		}
	}
	if got := remain(t, l, keys); got != n/10 || removed != n-n/10 || len(progress) < 3 {
		t.Errorf("%d of %d keys are left, %d were removed on %d primaries; want a tenth left", got, n, removed, len(progress))
	}
}

func TestSweepEnds(t *testing.T) {
	l := openL2(t, patient)
	prefix, _ := strew(t, l, 30)
	all := func(_ context.Context, keys []string) ([]string, error) { return keys, nil }
	for name, c := range map[string]struct {
		sweep Sweep
		want  string
	}{
		"no Take":   {Sweep{}, "Take is nil"},
		"bad Rate":  {Sweep{Take: all, Rate: -1}, "1 to 1000000 keys per second"},
		"Take says": {Sweep{Match: prefix + "*", Take: func(context.Context, []string) ([]string, error) { return nil, errors.New("enough") }}, "enough"},
	} {
		if err := l.Sweep(t.Context(), c.sweep); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want an error with %q", name, err, c.want)
		}
	}
	ctx, cancel := context.WithCancelCause(t.Context())
	why := errors.New("the test has seen enough")
	slow := Sweep{Take: all, Match: "none", Rate: 1, Progress: func(SweepProgress) { cancel(why) }}
	if err := l.Sweep(ctx, slow); !errors.Is(err, why) {
		t.Errorf("cancelled: %v", err)
	}
}

// A primary dies while it is swept: the one that is promoted in its place is swept from its beginning.
func TestSweepPrimaryDies(t *testing.T) {
	l := openL2(t, patient)
	repair(t)
	prefix, keys := strew(t, l, 300)
	for _, s := range l.Shards() { // the replicas have it all
		c := bare(t, s.Name)
		if err := c.Do(t.Context(), c.B().Wait().Numreplicas(1).Timeout(10_000).Build()).Error(); err != nil {
			t.Fatal(err)
		}
	}
	killed := ""
	err := l.Sweep(t.Context(), Sweep{
		Match: prefix + "*", Rate: 2000,
		Take: func(_ context.Context, keys []string) ([]string, error) { return keys, nil },
		Progress: func(p SweepProgress) {
			if killed == "" && !p.Done && p.Removed > 0 {
				killed = p.Primary
				if err := nodeAt(t, killed).Kill(); err != nil {
					t.Error(err)
				}
			}
		},
	})
	if err != nil || killed == "" {
		t.Fatalf("killed %q: %v", killed, err)
	}
	if n := remain(t, l, keys); n > 0 {
		t.Errorf("%d keys are left", n)
	}
}
