package coherence_test

import (
	"fmt"
	"log/slog"
	"testing"
	"time"

	"github.com/freshet-cache/freshet/coherence"
)

// A barrier on an idle stack beside the bare round trip that it cannot do without: the same server, the
// same driver, a prepared statement on one connection. The metric "ratio" is the one to the other, taken
// in turns of one run.
func BenchmarkBarrier(b *testing.B) {
	_, dsn := database(b)
	bare, err := coherence.OpenPool(coherence.PoolConfig{DSN: dsn, MaxConns: 1})
	if err != nil {
		b.Fatal(err)
	}
	defer bare.Close()
	conn, err := bare.Connx(b.Context())
	if err != nil {
		b.Fatal(err)
	}
	defer conn.Close()
	selectOne, err := conn.PreparexContext(b.Context(), `select 1`) //nolint:sqlclosecheck // closed below
	if err != nil {
		b.Fatal(err)
	}
	defer selectOne.Close()
	tracker := startTracker(b, coherence.TrackerConfig{Log: openLog(b, dsn, time.Second)})
	if _, err := tracker.Barrier(b.Context()); err != nil {
		b.Fatal(err)
	}
	polled := openLog(b, dsn, time.Second)
	since := poll(b, polled, coherence.Snapshot{}).Snapshot

	var roundTrips, polls, barriers time.Duration
	n := 0
	for b.Loop() {
		start := time.Now()
		rows, err := selectOne.QueryContext(b.Context())
		if err != nil {
			b.Fatal(err)
		}
		var one int
		for rows.Next() {
			if err := rows.Scan(&one); err != nil {
				b.Fatal(err)
			}
		}
		if err := rows.Close(); err != nil {
			b.Fatal(err)
		}
		middle := time.Now()
		if _, err := tracker.Barrier(b.Context()); err != nil {
			b.Fatal(err)
		}
		end := time.Now()
		if _, err := polled.Poll(b.Context(), since, 1000); err != nil {
			b.Fatal(err)
		}
		roundTrips += middle.Sub(start)
		barriers += end.Sub(middle)
		polls += time.Since(end)
		n++
	}
	b.ReportMetric(float64(roundTrips.Nanoseconds())/float64(n), "select1-ns/op")
	b.ReportMetric(float64(polls.Nanoseconds())/float64(n), "poll-ns/op")
	b.ReportMetric(float64(barriers.Nanoseconds())/float64(n), "barrier-ns/op")
	b.ReportMetric(float64(barriers)/float64(roundTrips), "ratio")
}

// How many polls a thousand barriers at once cost.
func BenchmarkBarriersAtOnce(b *testing.B) {
	_, dsn := database(b)
	tracker := startTracker(b, coherence.TrackerConfig{Log: openLog(b, dsn, time.Second)})
	before := tracker.Stats().Polls
	n := 0
	for b.Loop() {
		barriers(b, tracker, 1000)
		n++
	}
	b.ReportMetric(float64(tracker.Stats().Polls-before)/float64(n), "polls/op")
}

func BenchmarkDirectoryCheck(b *testing.B) {
	dir := coherence.NewDirectory(0)
	snapshot := coherence.Snapshot{Timeline: 1, Xmin: 1000, Xmax: 1010, Xip: []uint64{1000, 1003, 1007}}
	dir.Reset(coherence.Snapshot{Timeline: 1, Xmin: 1, Xmax: 1})
	scopes := make([]coherence.ScopeHash, 1024)
	for i := range scopes {
		scopes[i] = coherence.Entity("product", fmt.Sprint(i)).Hash()
		if i%2 == 0 {
			dir.Raise(scopes[i], 1001)
		}
	}
	i := 0
	for b.Loop() {
		if !dir.Check(scopes[i&1023], snapshot) {
			b.Fatal("not valid")
		}
		i++
	}
}

// The stamps of an entity with two tags: its view, itself, the tags, its namespace, everything.
func BenchmarkStampsSum(b *testing.B) {
	tracker := coherence.NewTracker(coherence.TrackerConfig{Log: failing{}, Logger: slog.New(slog.DiscardHandler)})
	defer tracker.Close()
	var scopes []coherence.ScopeHash
	for _, s := range []coherence.Scope{
		coherence.View("product", "42", "detail"), coherence.Entity("product", "42"), coherence.Tag("category:7"),
		coherence.Tag("brand:9"), coherence.Namespace("product"), coherence.Everything(),
	} {
		scopes = append(scopes, s.Hash())
	}
	set := coherence.StampsOf(scopes)
	var sum uint64
	for b.Loop() {
		sum += tracker.Stamps().Sum(&set)
	}
	_ = sum
}
