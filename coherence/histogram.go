package coherence

import (
	"sync/atomic"
	"time"
)

// buckets are those of a histogram, the one above all bounds included.
const buckets = 17

// Bounds are the upper bounds of the buckets of every [Histogram], inclusive; one more bucket is above them.
func Bounds() [buckets - 1]time.Duration {
	const us, ms = time.Microsecond, time.Millisecond
	return [...]time.Duration{
		50 * us, 100 * us, 250 * us, 500 * us, 1 * ms, 2500 * us, 5 * ms, 10 * ms, 25 * ms, 50 * ms, 100 * ms, 250 * ms, 500 * ms,
		1000 * ms, 2500 * ms, 5000 * ms,
	}
}

// Histogram counts durations in fixed buckets, from 50 µs to 5 s, as Prometheus wants them. The zero value is
// ready. It is safe for concurrent use; counting takes no lock and allocates nothing.
type Histogram struct {
	counts [buckets]atomic.Uint64
	sum    atomic.Int64 // ns
}

// Observe counts a duration; one below 0 counts as 0.
func (h *Histogram) Observe(d time.Duration) { h.ObserveMany(d, 1) }

// ObserveMany counts n things that took the same.
func (h *Histogram) ObserveMany(d time.Duration, n int) {
	d = max(d, 0)
	bucket := 0
	for _, bound := range Bounds() {
		if d <= bound {
			break
		}
		bucket++
	}
	h.counts[bucket].Add(uint64(n))
	h.sum.Add(int64(d) * int64(n))
}

// Durations is what a [Histogram] has counted.
type Durations struct {
	Counts [buckets]uint64 // by bucket; see [Bounds]
	Sum    time.Duration
}

// Count is how many were counted.
func (d Durations) Count() (n uint64) {
	for _, c := range d.Counts {
		n += c
	}
	return n
}

// Durations are the counts by now. What is being counted meanwhile may be in one of them and not in another.
func (h *Histogram) Durations() Durations {
	d := Durations{Sum: time.Duration(h.sum.Load())}
	for i := range h.counts {
		d.Counts[i] = h.counts[i].Load()
	}
	return d
}
