package tiers

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"sync/atomic"
)

// ErrOverloaded says that a bound on concurrent work was reached; nothing was tried.
var ErrOverloaded = errors.New("overloaded")

// Bulkhead bounds how many loads run at once and how many may wait for their turn, so that Postgres
// sees no more than that whatever fails in front of it.
type Bulkhead struct {
	places  chan struct{} // one token for each load that runs
	queue   int64
	waiting atomic.Int64
	refused atomic.Uint64
	peak    atomic.Int64
}

// NewBulkhead allows the given number of loads at once, 0 = 16, and as many to wait, 0 = 256.
func NewBulkhead(places, queue int) *Bulkhead {
	return &Bulkhead{places: make(chan struct{}, cmp.Or(places, 16)), queue: int64(cmp.Or(queue, 256))}
}

// Enter waits for a place. It fails with [ErrOverloaded] when the queue is full, and with the
// context's cause when that ends first. After a nil error the caller must call [Bulkhead.Leave].
func (b *Bulkhead) Enter(ctx context.Context) error {
	select {
	case b.places <- struct{}{}:
		b.notePeak()
		return nil
	default:
	}
	defer b.waiting.Add(-1)
	if b.waiting.Add(1) > b.queue {
		b.refused.Add(1)
		return fmt.Errorf("tiers: %d loads run and %d wait: %w", cap(b.places), b.queue, ErrOverloaded)
	}
	select {
	case b.places <- struct{}{}:
		b.notePeak()
		return nil
	case <-ctx.Done():
		return fmt.Errorf("tiers: waiting for a load's turn: %w", context.Cause(ctx))
	}
}

// Leave gives the place back.
func (b *Bulkhead) Leave() { <-b.places }

// busy reports whether whoever enters now would wait.
func (b *Bulkhead) busy() bool { return len(b.places) == cap(b.places) }

func (b *Bulkhead) notePeak() {
	n := int64(len(b.places))
	for {
		peak := b.peak.Load()
		if n <= peak || b.peak.CompareAndSwap(peak, n) {
			return
		}
	}
}

// BulkheadStats describes a bulkhead by now; Peak is the most loads that ever ran at once.
type BulkheadStats struct {
	Running, Waiting, Places, Peak int64
	Refused                        uint64
}

// Stats describes the bulkhead by now.
func (b *Bulkhead) Stats() BulkheadStats {
	return BulkheadStats{
		Running: int64(len(b.places)), Waiting: b.waiting.Load(), Places: int64(cap(b.places)),
		Peak: b.peak.Load(), Refused: b.refused.Load(),
	}
}
