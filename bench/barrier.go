package main

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"sync"

	_ "github.com/lib/pq" // the driver "postgres"

	"github.com/freshet-cache/freshet/coherence"
	"github.com/freshet-cache/freshet/node"
)

// trip is the shortest round trip to Postgres: select 1, prepared, over one connection.
type trip struct {
	db   *sql.DB
	stmt *sql.Stmt
}

func openTrip(ctx context.Context, s *site) (*trip, error) {
	db, err := sql.Open("postgres", s.dsn)
	if err != nil {
		return nil, err
	}
	db.SetMaxOpenConns(1)
	stmt, err := db.PrepareContext(ctx, `select 1`)
	if err != nil {
		return nil, errors.Join(err, db.Close())
	}
	return &trip{db, stmt}, nil
}

func (t *trip) close() error { return errors.Join(t.stmt.Close(), t.db.Close()) }

func (t *trip) plain(ctx context.Context) side {
	return side{run: func(_, n int) error {
		for range n {
			var one int
			if err := t.stmt.QueryRowContext(ctx).Scan(&one); err != nil {
				return err
			}
		}
		return nil
	}}
}

// openTracker follows the site's log, as a node does.
func openTracker(ctx context.Context, s *site) (*coherence.Tracker, error) {
	log, err := coherence.OpenLog(coherence.LogConfig{DSN: s.dsn})
	if err != nil {
		return nil, err
	}
	t := coherence.NewTracker(coherence.TrackerConfig{Log: log, Boot: 1}) //nolint:contextcheck // it ends by Close
	if _, err := t.Barrier(ctx); err != nil {
		return nil, errors.Join(err, t.Close())
	}
	return t, nil
}

func barriers(ctx context.Context, t *coherence.Tracker) side {
	return side{run: func(_, n int) error {
		for range n {
			if _, err := t.Barrier(ctx); err != nil {
				return err
			}
		}
		return nil
	}}
}

// linearizable reads one product Within(0).
func linearizable(ctx context.Context, r *replica) side {
	return side{run: func(_, n int) error {
		for range n {
			if _, err := r.products.Lookup(ctx, productID(0), node.Within(0)); err != nil {
				return err
			}
		}
		return nil
	}}
}

func barrierAlone(ctx context.Context, l *lab) (n number, err error) {
	return l.compareTrip(ctx, func(s *site) (side, func() error, error) {
		t, err := openTracker(ctx, s)
		if err != nil {
			return side{}, nil, err
		}
		return barriers(context.WithoutCancel(ctx), t), t.Close, nil
	})
}

func barrierRead(ctx context.Context, l *lab) (n number, err error) {
	return l.compareTrip(ctx, func(s *site) (side, func() error, error) {
		r, err := s.open(ctx, nil)
		if err != nil {
			return side{}, nil, err
		}
		_, err = r.products.Get(ctx, productID(0))
		return linearizable(context.WithoutCancel(ctx), r), r.Close, err
	})
}

// compareTrip compares what open returns with the bare round trip.
func (l *lab) compareTrip(ctx context.Context, open func(*site) (side, func() error, error)) (n number, err error) {
	s, err := l.open(ctx)
	if err != nil {
		return n, err
	}
	defer func() { err = errors.Join(err, s.close()) }()
	ours, end, err := open(s)
	if err != nil {
		return n, err
	}
	defer func() { err = errors.Join(err, end()) }()
	bare, err := openTrip(ctx, s)
	if err != nil {
		return n, err
	}
	defer func() { err = errors.Join(err, bare.close()) }()
	c, err := compare(ctx, ours, bare.plain(context.WithoutCancel(ctx)), tripSlice, l.length)
	return c.number(), err
}

const (
	pollRounds = 20
	pollReads  = 1000
)

func barrierPolls(ctx context.Context, l *lab) (n number, err error) {
	s, err := l.open(ctx)
	if err != nil {
		return n, err
	}
	defer func() { err = errors.Join(err, s.close()) }()
	r, err := s.open(ctx, nil)
	if err != nil {
		return n, err
	}
	var worst, sum uint64
	for range pollRounds {
		polls, err := pollsOf(ctx, r)
		if err != nil {
			return n, err
		}
		worst, sum = max(worst, polls), sum+polls
	}
	return number{Value: float64(worst), Detail: fmt.Sprintf("mean %.1f of %d rounds", float64(sum)/pollRounds, pollRounds)}, nil
}

// pollsOf is how many polls as many reads Within(0) cost that begin at once.
func pollsOf(ctx context.Context, r *replica) (uint64, error) {
	if _, err := r.products.Get(ctx, productID(0)); err != nil {
		return 0, err
	}
	var work, ready sync.WaitGroup
	gate := make(chan struct{}) // closed when all readers stand before it
	failures := make([]error, pollReads)
	for reader := range pollReads {
		ready.Add(1)
		work.Go(func() {
			ready.Done()
			<-gate
			_, failures[reader] = r.products.Lookup(ctx, productID(0), node.Within(0))
		})
	}
	ready.Wait()
	before := r.Stats().Polls
	close(gate)
	work.Wait()
	return r.Stats().Polls - before, errors.Join(failures...)
}
