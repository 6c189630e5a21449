package main

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// side is one of two ways to do a thing.
type side struct {
	goroutines int // that share the work; 0 = 1
	// run does it n times, as the worker of that number.
	run func(worker, n int) error
}

// comparison is how much one side costs in units of the other.
type comparison struct {
	ratio     float64 // median over the rounds
	low, high float64 // quartiles
	ours      time.Duration
	bare      time.Duration // medians for one time
	more      float64       // what ours costs beyond bare, in nanoseconds: median over the rounds
	rounds    int
}

func (c comparison) number() number {
	return number{Value: c.ratio, Detail: fmt.Sprintf("%v / %v; quartiles %.2f and %.2f of %d rounds", round(c.ours), round(c.bare), c.low, c.high, c.rounds)}
}

// round shortens a duration to what can be trusted of it.
func round(d time.Duration) time.Duration {
	switch {
	case d > 100*time.Microsecond:
		return d.Round(time.Microsecond)
	case d > 10*time.Microsecond:
		return d.Round(100 * time.Nanosecond)
	}
	return d
}

// minRounds is the least that a median is taken of.
const minRounds = 20

// compare runs both sides in turn, in slices of about the given length, for the given time.
func compare(ctx context.Context, ours, bare side, slice, length time.Duration) (comparison, error) {
	var c comparison
	oursTimes, err := ours.calibrate(slice)
	if err != nil {
		return c, err
	}
	bareTimes, err := bare.calibrate(slice)
	if err != nil {
		return c, err
	}
	var ratios, oursCosts, bareCosts, more []float64
	for end := time.Now().Add(length); len(ratios) < minRounds || time.Now().Before(end); {
		if ctx.Err() != nil {
			return c, context.Cause(ctx)
		}
		// Turn about, so that neither always runs in the other's wake.
		var o, b time.Duration
		if len(ratios)%2 == 0 {
			if o, err = ours.cost(oursTimes); err == nil {
				b, err = bare.cost(bareTimes)
			}
		} else {
			if b, err = bare.cost(bareTimes); err == nil {
				o, err = ours.cost(oursTimes)
			}
		}
		if err != nil {
			return c, err
		}
		oursCost, bareCost := float64(o)/float64(oursTimes), float64(b)/float64(bareTimes)
		ratios, oursCosts, bareCosts = append(ratios, oursCost/bareCost), append(oursCosts, oursCost), append(bareCosts, bareCost)
		more = append(more, oursCost-bareCost)
	}
	return comparison{
		ratio: quantile(ratios, 0.5), low: quantile(ratios, 0.25), high: quantile(ratios, 0.75),
		ours: time.Duration(quantile(oursCosts, 0.5)), bare: time.Duration(quantile(bareCosts, 0.5)), more: quantile(more, 0.5), rounds: len(ratios),
	}, nil
}

// calibrate finds how many times fit into a slice.
func (s side) calibrate(slice time.Duration) (int, error) {
	for n := max(1, s.goroutines); ; n *= 2 {
		fastest := time.Duration(1<<63 - 1)
		for range 3 {
			cost, err := s.cost(n)
			if err != nil {
				return 0, err
			}
			fastest = min(fastest, cost)
		}
		if fastest >= slice/2 {
			return n, nil
		}
	}
}

// cost is how long n times take.
func (s side) cost(n int) (time.Duration, error) {
	if s.goroutines <= 1 {
		began := time.Now()
		err := s.run(0, n)
		return time.Since(began), err
	}
	// The clock runs from when all are running until the last has done its part: waking threads is no
	// part of it.
	var ready atomic.Int64
	type span struct {
		from, to time.Time
		err      error
	}
	spans := make([]span, s.goroutines)
	var work sync.WaitGroup
	for worker := range spans {
		work.Go(func() {
			for ready.Add(1); ready.Load() < int64(len(spans)); {
				// It must spin: blocking would put the thread to sleep.
			}
			spans[worker].from = time.Now()
			spans[worker].err = s.run(worker, n/len(spans))
			spans[worker].to = time.Now()
		})
	}
	work.Wait()
	all := spans[0]
	for _, one := range spans {
		if one.err != nil {
			return 0, one.err
		}
		if one.from.Before(all.from) {
			all.from = one.from
		}
		if one.to.After(all.to) {
			all.to = one.to
		}
	}
	return all.to.Sub(all.from), nil
}

// quantile is that of the values, by the nearest rank; they are sorted.
func quantile[T float64 | time.Duration](values []T, q float64) T {
	slices.Sort(values)
	return values[min(int(q*float64(len(values))), len(values)-1)]
}
