package main

import (
	"fmt"
	"testing"
)

// The benchmarks are for profiles and for benchstat, which compares two versions of the code: the
// ratios are the program's.

// benchmark runs one side.
func benchmark(b *testing.B, name string, s side) {
	b.Helper()
	b.Run(name, func(b *testing.B) {
		b.ReportAllocs()
		if _, err := s.cost(b.N); err != nil {
			b.Fatal(err)
		}
	})
}

func BenchmarkL1Hit(b *testing.B) {
	inner, err := openL1(b.Context(), open(b), nil)
	if err != nil {
		b.Fatal(err)
	}
	for _, goroutines := range []int{1, 2} {
		benchmark(b, fmt.Sprintf("freshet/goroutines=%d", goroutines), inner.ours(b.Context(), goroutines))
		benchmark(b, fmt.Sprintf("bare/goroutines=%d", goroutines), inner.plain(goroutines))
	}
}

func BenchmarkL2Hit(b *testing.B) {
	inner, err := openL2(b.Context(), open(b))
	if err != nil {
		b.Fatal(err)
	}
	defer inner.close()
	benchmark(b, "freshet", inner.ours(b.Context()))
	benchmark(b, "bare", inner.plain(b.Context(), inner.client))
}

func BenchmarkBarrier(b *testing.B) {
	s := open(b)
	bare, err := openTrip(b.Context(), s)
	if err != nil {
		b.Fatal(err)
	}
	defer bare.close() //nolint:errcheck // what it measured, it has said
	tracker, err := openTracker(b.Context(), s)
	if err != nil {
		b.Fatal(err)
	}
	defer tracker.Close()
	r, err := s.open(b.Context(), nil)
	if err != nil {
		b.Fatal(err)
	}
	benchmark(b, "tracker", barriers(b.Context(), tracker))
	benchmark(b, "read", linearizable(b.Context(), r))
	benchmark(b, "bare", bare.plain(b.Context()))
}

func BenchmarkConcurrentBarriers(b *testing.B) {
	r, err := open(b).open(b.Context(), nil)
	if err != nil {
		b.Fatal(err)
	}
	var sum uint64
	for b.Loop() {
		polls, err := pollsOf(b.Context(), r)
		if err != nil {
			b.Fatal(err)
		}
		sum += polls
	}
	b.ReportMetric(float64(sum)/float64(b.N), "polls/op")
}

func BenchmarkChange(b *testing.B) {
	for name, hints := range map[string]bool{"nats": true, "polling": false} {
		b.Run(name, func(b *testing.B) {
			c, err := openCrowd(b.Context(), open(b), hints)
			if err != nil {
				b.Fatal(err)
			}
			i := 0
			for b.Loop() {
				if _, err := c.follow(b.Context(), productID(i%writtenIDs)); err != nil {
					b.Fatal(err)
				}
				i++
			}
		})
	}
}

func BenchmarkOneLoad(b *testing.B) {
	s := open(b)
	replicas, err := openStampede(b.Context(), s)
	if err != nil {
		b.Fatal(err)
	}
	before, err := s.loads(b.Context())
	if err != nil {
		b.Fatal(err)
	}
	key := 0
	for b.Loop() {
		if key == products-len(replicas) {
			b.Fatalf("all %d products have been read: want a smaller -benchtime", key)
		}
		if err := stampede(b.Context(), replicas, productID(key)); err != nil {
			b.Fatal(err)
		}
		key++
	}
	after, err := s.loads(b.Context())
	if err != nil {
		b.Fatal(err)
	}
	b.ReportMetric(float64(after-before)/float64(b.N), "loads/op")
}
