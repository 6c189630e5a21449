package coherence_test

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"testing"
	"time"

	"github.com/freshet-cache/freshet/coherence"
)

// startTracker makes a tracker that the test closes.
func startTracker(t testing.TB, c coherence.TrackerConfig) *coherence.Tracker {
	t.Helper()
	if c.Boot == 0 {
		c.Boot = 1
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	tracker := coherence.NewTracker(c)
	t.Cleanup(func() {
		if err := tracker.Close(); err != nil {
			t.Error(err)
		}
	})
	return tracker
}

// barriers calls so many barriers at once and wants all to come back.
func barriers(t testing.TB, tracker *coherence.Tracker, n int) {
	t.Helper()
	var g sync.WaitGroup
	start := make(chan struct{})
	for range n {
		g.Go(func() {
			<-start
			if _, err := tracker.Barrier(t.Context()); err != nil {
				t.Error(err)
			}
		})
	}
	close(start)
	g.Wait()
}

var errAway = errors.New("the log is away")

// failing is a log that is always away.
type failing struct{}

func (failing) Poll(context.Context, coherence.Snapshot, int) (coherence.PollResult, error) {
	return coherence.PollResult{}, errAway
}
func (failing) Renew(context.Context, uint64) error              { return errAway }
func (failing) Trim(context.Context, time.Duration) (int, error) { return 0, errAway }
func (failing) Close() error                                     { return nil }
