package sim

import (
	"flag"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"
)

var (
	seedFlag = flag.Uint64("seed", 1, "TestSim: the first seed")
	runsFlag = flag.Int("runs", 0, "TestSim: how many histories; 0 = as many as belong to the tests, or as -for allows")
	forFlag  = flag.Duration("for", 0, "TestSim: for how long, if -runs is not given")
	showFlag = flag.Bool("show", false, "TestSim: print the plan and the transcript of the first seed")
	saveFlag = flag.String("save", "", "TestSim: the file in which the smallest plan that fails is kept")
)

func TestMain(m *testing.M) {
	flag.Parse()
	// One goroutine at a time, and no collection of garbage within a history: it would put goroutines
	// into another order.
	runtime.GOMAXPROCS(1)
	debug.SetGCPercent(-1)
	goleak.VerifyTestMain(m)
}

// play runs a plan in a bubble of its own.
func play(t *testing.T, p Plan, transcript bool) (o Outcome) {
	t.Helper()
	synctest.Test(t, func(*testing.T) { o = Run(p, transcript) })
	return o
}

// shortRuns is how many histories belong to the tests.
const shortRuns = 400

// I1, I2, I3, I4, I5: seeded histories of everything that may happen at once.
//
//	go test ./internal/sim -run TestSim$ -v -seed 1 -runs 100000
func TestSim(t *testing.T) {
	runs := *runsFlag
	switch {
	case runs == 0 && *forFlag > 0:
		runs = math.MaxInt
	case runs == 0:
		runs = shortRuns
		if raceEnabled || testing.Short() {
			runs /= 4
		}
	}
	if *showFlag {
		p := Generate(*seedFlag)
		o := play(t, p, true)
		fmt.Printf("%v\n%s", p, o.Transcript)
	}
	var sum summary
	began := time.Now()
	told := began
	for i := range runs {
		if runs == math.MaxInt && time.Since(began) > *forFlag {
			break
		}
		p := Generate(*seedFlag + uint64(i))
		o := play(t, p, false)
		sum.add(&o)
		if o.Failed() {
			explain(t, p, &o)
			break
		}
		if i%64 == 63 {
			runtime.GC()
		}
		if time.Since(told) > 10*time.Second && testing.Verbose() {
			told = time.Now()
			fmt.Printf("%8d histories, %v\n", sum.histories, told.Sub(began).Round(time.Second))
		}
	}
	if testing.Verbose() {
		fmt.Print(sum.text(time.Since(began)))
	}
}

// explain reports a history that broke a promise: the plan made as small as may be, its transcript, and
// what is wrong.
func explain(t *testing.T, p Plan, o *Outcome) {
	t.Helper()
	invariant := o.Violations[0].Invariant
	tried := 0
	small := Shrink(p, 3000, func(candidate Plan) bool {
		if tried++; tried%64 == 0 {
			runtime.GC()
		}
		o := play(t, candidate, false)
		return o.broke(invariant)
	})
	last := play(t, small, true)
	if !last.broke(invariant) {
		small, last = p, play(t, p, true)
	}
	if !last.broke(invariant) {
		last.Violations = append(last.Violations, o.Violations...) // of the first time: it does not repeat
	}
	if *saveFlag != "" {
		if err := os.WriteFile(*saveFlag, []byte(small.String()), 0o600); err != nil {
			t.Error(err)
		}
	}
	var b strings.Builder
	fmt.Fprintf(&b, "seed %d breaks %s. The smallest plan:\n\n%v\n%s\n", p.Seed, invariant, small, last.Transcript)
	for _, v := range last.Violations {
		fmt.Fprintf(&b, "%s: %s\n", v.Invariant, v.Text)
	}
	t.Error(b.String())
}

// broke reports whether the invariant was broken.
func (o *Outcome) broke(invariant string) bool {
	for _, v := range o.Violations {
		if v.Invariant == invariant {
			return true
		}
	}
	return false
}

// TestPlans runs the plans of testdata: histories that once broke a promise, and those that notice when
// a guard is taken away (see internal/mutants).
func TestPlans(t *testing.T) {
	files, err := filepath.Glob("testdata/*.txt")
	if err != nil || len(files) == 0 {
		t.Fatal("no plans in testdata", err)
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".txt"), func(t *testing.T) {
			text, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			p, err := Parse(string(text))
			if err != nil {
				t.Fatal(err)
			}
			if o := play(t, p, true); o.Failed() {
				t.Errorf("%v\n%s\n%v", p, o.Transcript, o.Violations)
			}
		})
	}
}

// The same seed gives the same history.
func TestRepeats(t *testing.T) {
	if raceEnabled {
		t.Skip("the race detector shuffles goroutines")
	}
	differ := 0
	const histories = 50
	for i := range histories {
		p := Generate(*seedFlag + uint64(i))
		if a, b := play(t, p, false), play(t, p, false); a.Digest != b.Digest {
			differ++
			t.Logf("seed %d differs", p.Seed)
		}
		if i%32 == 31 {
			runtime.GC()
		}
	}
	t.Logf("%d of %d histories differ", differ, histories)
}

// Plans survive their text.
func TestPlanText(t *testing.T) {
	for seed := range uint64(100) {
		p := Generate(seed)
		back, err := Parse(p.String())
		if err != nil || back.String() != p.String() {
			t.Fatalf("seed %d: %v\n%v\n%v", seed, err, p, back)
		}
	}
}
