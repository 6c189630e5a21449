package node

import (
	"context"
	"errors"
	"log/slog"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// A duty runs about as often as it says, at once when it is woken, sooner after a failure, and ends with
// its context.
func TestDuty(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := &Node{log: slog.New(slog.DiscardHandler)}
		ctx, end := context.WithCancel(t.Context())
		var runs atomic.Int64
		var fails atomic.Bool
		d := duty{name: "test", every: 10 * time.Second, wake: make(chan struct{}, 1), run: func(context.Context) error {
			runs.Add(1)
			if fails.Load() {
				return errors.New("planted")
			}
			return nil
		}}
		n.dutyWork.Go(func() { n.serve(ctx, d) })

		runsWithin := func(wait time.Duration, low, high int64) {
			t.Helper()
			before := runs.Load()
			<-time.After(wait)
			synctest.Wait()
			if got := runs.Load() - before; got < low || got > high {
				t.Errorf("%d runs within %v; want %d to %d", got, wait, low, high)
			}
		}
		runsWithin(100*time.Second, 8, 13)
		before := runs.Load()
		d.wake <- struct{}{}
		synctest.Wait()
		if got := runs.Load() - before; got != 1 {
			t.Errorf("%d runs when it was woken; want 1", got)
		}
		fails.Store(true)
		runsWithin(100*time.Second, 12, 20) // 100 ms after the first, then twice as long each time, up to 10 s
		fails.Store(false)
		runsWithin(20*time.Second, 1, 3)
		end()
		n.dutyWork.Wait()
	})
}
