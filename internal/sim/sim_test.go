package sim

import (
	"flag"
	"runtime"
	"testing"
	"testing/synctest"
	"time"
)

var (
	seedFlag = flag.Uint64("seed", 1, "the first seed")
	runsFlag = flag.Int("runs", 0, "how many histories; 0 = as many as belong to the tests")
)

// run runs a plan in a bubble of its own.
func run(t *testing.T, p Plan, transcript bool) (o Outcome) {
	t.Helper()
	synctest.Test(t, func(*testing.T) { o = Run(p, transcript) })
	return o
}

func TestSim(t *testing.T) {
	runtime.GOMAXPROCS(1)
	runs := max(*runsFlag, 300)
	began := time.Now()
	failed := 0
	for i := range runs {
		p := Generate(*seedFlag + uint64(i))
		o := run(t, p, false)
		if o.Failed() {
			t.Errorf("seed %d: %v", p.Seed, o.Violations)
			if failed++; failed == 5 {
				break
			}
		}
	}
	t.Logf("%d histories in %v", runs, time.Since(began))
}

func TestRepeat(t *testing.T) {
	runtime.GOMAXPROCS(1)
	differ := 0
	for i := range 500 {
		p := Generate(*seedFlag + uint64(i))
		if a, b := run(t, p, false), run(t, p, false); a.Digest != b.Digest {
			differ++
			t.Log(p.Seed)
		}
	}
	t.Logf("%d of 500 differ", differ)
}

var showFlag = flag.Bool("show", false, "print the plan and the transcript")

func TestShow(t *testing.T) {
	if !*showFlag {
		t.Skip()
	}
	runtime.GOMAXPROCS(1)
	p := Generate(*seedFlag)
	o := run(t, p, true)
	t.Logf("%v\n%s\n%v", p, o.Transcript, o.Violations)
}
