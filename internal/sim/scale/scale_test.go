package scale_test

import (
	"flag"
	"fmt"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"github.com/freshet-cache/freshet/internal/sim/scale"
)

var (
	replicasFlag = flag.String("replicas", "", "TestTable: numbers of replicas, with commas between; none = the test is skipped")
	writesFlag   = flag.String("writes", "0,10,100", "TestTable: writes per second, with commas between")
	forFlag      = flag.Duration("for", 5*time.Second, "TestTable: how much virtual time is counted")
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func run(t *testing.T, o scale.Options) (r scale.Result) {
	t.Helper()
	synctest.Test(t, func(*testing.T) { r = scale.Run(o) })
	if r.Unproven > 0 || r.Unknown > 0 {
		t.Errorf("%d samples without a poll, %d commits that were not known after a second", r.Unproven, r.Unknown)
	}
	if bound := oldest(o.Relays); r.Age.Max > bound {
		t.Errorf("knowledge is up to %v old, want at most %v", r.Age.Max, bound)
	}
	return r
}

// oldest is the bound of what a replica's latest poll is old, as long as nothing fails: a poll was sent,
// waited, came back; the next is sent an interval and its jitter later, waits, and is just not back. A relayed
// one waits its patience at most, then, if the relay's poll is under way, for that one and its own.
func oldest(relays bool) time.Duration {
	poll := scale.Postgres
	if relays {
		poll = 2*scale.Network + scale.Patience + 2*scale.Postgres
	}
	return scale.Interval*6/5 + 2*poll + time.Millisecond
}

// show runs and logs what matters.
func show(t *testing.T, o scale.Options) scale.Result {
	t.Helper()
	r := run(t, o)
	t.Logf("%d replicas, %d writes/s, relays %v: %.0f polls/s over %d connections, %.0f requests/s, age at most %v",
		o.Replicas, o.Writes, o.Relays, r.Polls, r.Connections, r.Requests, r.Age.Max)
	return r
}

// With relays, what reaches Postgres grows with them and not with the replicas; knowledge is not older
// than the bound, and no hint costs a poll.
func TestScale(t *testing.T) {
	few := show(t, scale.Options{Replicas: 10, Writes: 10, Relays: true, Warm: 2 * time.Second, For: 2 * time.Second})
	if few.Requests != 0 || few.Connections != 10 {
		t.Errorf("few replicas poll for themselves: %+v", few)
	}
	each := show(t, scale.Options{Replicas: 100, Writes: 10, Warm: time.Second, For: 2 * time.Second})
	if each.Polls < 300 || each.Connections != 100 {
		t.Errorf("without relays: %.0f polls per second over %d connections, want about 400 over 100", each.Polls, each.Connections)
	}
	for _, n := range []int{100, 200} {
		o := scale.Options{Replicas: n, Writes: 10, Relays: true, Warm: 2 * time.Second, For: 2 * time.Second}
		with := show(t, o)
		relays := (n + 63) / 64
		if with.Relaying != relays || with.Connections != relays {
			t.Errorf("%d of %d replicas relay and %d have connections, want %d", with.Relaying, n, with.Connections, relays)
		}
		// Those who ask wait for as long as their patience for others, so polls are about that far apart.
		if most := 1.25 * float64(relays) * float64(time.Second/scale.Patience); with.Polls > most {
			t.Errorf("%d replicas poll %.0f times per second by %d relays, want at most %.0f", n, with.Polls, relays, most)
		}
		if with.Hinted.Max > scale.Network+time.Millisecond {
			t.Errorf("a hint took %v to all", with.Hinted.Max)
		}
		if want := float64(n * (n - 1)); with.Heartbeats < 0.8*want || with.Heartbeats > 1.2*want {
			t.Errorf("%.0f heartbeats per second arrive, want about %.0f", with.Heartbeats, want)
		}
	}
}

func numbers(t *testing.T, list string) (n []int) {
	t.Helper()
	for text := range strings.SplitSeq(list, ",") {
		number, err := strconv.Atoi(strings.TrimSpace(text))
		if err != nil {
			t.Fatal(err)
		}
		n = append(n, number)
	}
	return n
}

// The table of docs/guarantee.md:
//
//	go test ./internal/sim/scale -run TestTable$ -v -replicas 10,32,100,300,1000
func TestTable(t *testing.T) {
	if *replicasFlag == "" {
		t.Skip("-replicas is not given")
	}
	fmt.Println("| replicas | writes/s | relays | polls/s on Postgres | connections for polls | relay requests/s | hints published/s | hints delivered/s | heartbeats delivered/s | age of knowledge p50 / p99 / max | a hinted commit is known to all: p50 / max | one without a hint: p50 / max |")
	fmt.Println("|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|")
	for _, n := range numbers(t, *replicasFlag) {
		for _, writes := range numbers(t, *writesFlag) {
			for _, relays := range []bool{false, true} {
				r := run(t, scale.Options{Replicas: n, Writes: writes, Relays: relays, Warm: 2 * time.Second, For: *forFlag})
				fmt.Printf("| %d | %d | %d | %.0f | %d | %.0f | %.0f | %.0f | %.0f | %d / %d / %d ms | %s | %s |\n",
					n, writes, r.Relaying, r.Polls, r.Connections, r.Requests, r.Published, r.Delivered, r.Heartbeats,
					r.Age.Quantile(0.5).Milliseconds(), r.Age.Quantile(0.99).Milliseconds(), r.Age.Max.Milliseconds(),
					spread(r.Hinted), spread(r.Polled))
			}
		}
	}
}

func spread(s scale.Spread) string {
	if s.Max == 0 {
		return "-"
	}
	return fmt.Sprintf("%d / %d ms", s.Quantile(0.5).Milliseconds(), s.Max.Milliseconds())
}
