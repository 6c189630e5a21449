package model

import (
	"context"
	"errors"
	"time"

	"github.com/freshet-cache/freshet/coherence"
)

// TrimAtMost is how many changes [coherence.PostgresLog] deletes in one go.
const TrimAtMost = 5000

var errConnection = errors.New("model: the connection is broken")

// Log is a connection to the server's log as [coherence.PostgresLog] keeps it: it begins a timeline when
// it connects, and the first call after a crash fails. Each call is one step, and is done when it returns.
type Log[R any] struct {
	Server *Postgres[R]
	// Now is the time, as [Postgres.Trim] counts it; nil = it stands still, and the horizon does not move.
	Now func() time.Duration

	connected bool
	epoch     int
}

// Log is a connection to the server's log.
func (p *Postgres[R]) Log(now func() time.Duration) *Log[R] { return &Log[R]{Server: p, Now: now} }

func (l *Log[R]) connect() error {
	switch {
	case !l.connected:
		l.connected, l.epoch = true, l.Server.epoch
		l.Server.Renew(0)
	case l.epoch != l.Server.epoch:
		l.connected = false
		return errConnection
	}
	return nil
}

// Poll implements [coherence.Log].
func (l *Log[R]) Poll(_ context.Context, since coherence.Snapshot, limit int) (coherence.PollResult, error) {
	if err := l.connect(); err != nil {
		return coherence.PollResult{}, err
	}
	return l.Server.Poll(since, limit), nil
}

// Renew implements [coherence.Log].
func (l *Log[R]) Renew(_ context.Context, broken uint64) error {
	if err := l.connect(); err != nil {
		return err
	}
	l.Server.Renew(broken)
	return nil
}

// Trim implements [coherence.Log].
func (l *Log[R]) Trim(_ context.Context, keep time.Duration) (int, error) {
	if err := l.connect(); err != nil {
		return 0, err
	}
	var now time.Duration
	if l.Now != nil {
		now = l.Now()
	}
	return l.Server.Trim(now, keep, TrimAtMost), nil
}

// Close implements [coherence.Log].
func (l *Log[R]) Close() error {
	l.connected = false
	return nil
}

var _ coherence.Log = (*Log[int])(nil)
