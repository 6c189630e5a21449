package tiers

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"
)

// I6: never more than its places at once, never more than its queue waiting, and who waits gives up
// with its context.
func TestI6Bulkhead(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := NewBulkhead(2, 3)
		release := make(chan struct{})
		var overloaded, late int
		results := make(chan error)
		for range 7 { // 2 run, 3 wait, 2 too many
			go func() {
				ctx, cancel := context.WithTimeout(t.Context(), time.Second)
				defer cancel()
				err := b.Enter(ctx)
				if err == nil {
					<-release
					b.Leave()
				}
				results <- err
			}()
		}
		synctest.Wait()
		if s := b.Stats(); s.Running != 2 {
			t.Errorf("%d run, want 2", s.Running)
		}
		for range 5 { // those refused at once, then those that waited a second
			switch err := <-results; {
			case errors.Is(err, ErrOverloaded):
				overloaded++
			case errors.Is(err, context.DeadlineExceeded):
				late++
			default:
				t.Errorf("unexpected %v", err)
			}
		}
		if overloaded != 2 || late != 3 {
			t.Errorf("%d refused and %d late, want 2 and 3", overloaded, late)
		}
		close(release)
		for range 2 {
			if err := <-results; err != nil {
				t.Error(err)
			}
		}
		if s := b.Stats(); s.Running != 0 || s.Waiting != 0 || s.Peak != 2 || s.Refused != 2 {
			t.Errorf("at the end: %+v", s)
		}
	})
}
