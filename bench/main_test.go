package main

import (
	"io"
	"strings"
	"testing"
	"time"

	"github.com/freshet-cache/freshet/internal/devstack"
	"github.com/freshet-cache/freshet/internal/devstack/stacktest"
)

func TestMain(m *testing.M) { stacktest.Main(m, devstack.Options{}) }

// testLab is the one of all tests and benchmarks: its sites have names of their own.
var testLab lab

// open makes a site for a test or benchmark.
func open(tb testing.TB) *site {
	tb.Helper()
	testLab.stack = stacktest.Stack()
	s, err := testLab.open(tb.Context())
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		if err := s.close(); err != nil {
			tb.Error(err)
		}
	})
	return s
}

// The numbers that hold on any machine, however busy, are tests as well.

func TestI7_AHitInL1AllocatesNothing(t *testing.T) {
	inner, err := openL1(t.Context(), open(t), nil)
	if err != nil {
		t.Fatal(err)
	}
	if n := inner.allocations(t.Context()); n != 0 {
		t.Errorf("a hit in L1 allocates %v times", n)
	}
}

func TestI6_OneLoadInTheCluster(t *testing.T) {
	loads, err := stampedes(t.Context(), open(t), stampedeKeys)
	if err != nil {
		t.Fatal(err)
	}
	for key, n := range loads {
		if n != 1 {
			t.Errorf("key %d: %d goroutines on each of 3 replicas caused %d loads", key, stampedeReaders, n)
		}
	}
}

func TestConcurrentBarriersSharePolls(t *testing.T) {
	r, err := open(t).open(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	for range 5 {
		polls, err := pollsOf(t.Context(), r)
		if err != nil {
			t.Fatal(err)
		}
		if polls > 20 {
			t.Errorf("%d concurrent reads Within(0) cost %d polls, want at most 20", pollReads, polls)
		}
	}
}

func TestFlags(t *testing.T) {
	for _, test := range []struct {
		args string
		code int
		says string
	}{
		{"-h", 0, "-strict"},
		{"-only l1,l9", exitUsage, "-only l9: there is no such number; there are l1-allocations"},
		{"-for 1ms", exitUsage, "-for 1ms: want 100ms to 1h"},
		{"l1-hit", exitUsage, `"l1-hit": want flags only`},
		{"-loose", exitUsage, "not defined: -loose"},
	} {
		var said strings.Builder
		if code := run(t.Context(), strings.Fields(test.args), io.Discard, &said); code != test.code {
			t.Errorf("bench %s: exit code %d, want %d", test.args, code, test.code)
		}
		if !strings.Contains(said.String(), test.says) {
			t.Errorf("bench %s says %q, want %q in it", test.args, said.String(), test.says)
		}
	}
}

// A side that takes twice as long costs twice as much, whatever else the machine does.
func TestCompare(t *testing.T) {
	work := func(weight int) side {
		return side{run: func(_, n int) error {
			sum := 0
			for i := range n * weight * 1000 {
				sum += i * i
			}
			if sum == 1 {
				t.Error("the sum is odd") // never: it keeps the loop from being left out
			}
			return nil
		}}
	}
	c, err := compare(t.Context(), work(2), work(1), 200*time.Microsecond, 200*time.Millisecond)
	if err != nil {
		t.Fatal(err)
	}
	if c.ratio < 1.6 || c.ratio > 2.4 || c.low > c.ratio || c.high < c.ratio {
		t.Errorf("compare says %+v, want a ratio of 2", c)
	}
}

func TestReport(t *testing.T) {
	r := report{Seconds: 3, Numbers: []number{
		{Name: "fast", Title: "fast / slow", Value: 0.5, Target: 1, Unit: "x", Met: true, Command: "make bench ARGS='-only fast'"},
		{Name: "many", Title: "loads", Value: 3, Target: 1, Unit: "loads", Detail: "of 10 keys"},
	}}
	var b strings.Builder
	r.print(&b)
	for _, line := range []string{
		"pass  0.50x     1.00x    fast / slow              make bench ARGS='-only fast'\n",
		"MISS  3 loads   1 loads  loads        of 10 keys",
		"1 of 2 targets met in 3 s\n",
	} {
		if !strings.Contains(b.String(), line) {
			t.Errorf("the table has no line %q:\n%s", line, b.String())
		}
	}
}
