package verify_test

import (
	"context"
	"database/sql"
	"errors"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/lib/pq"

	"github.com/freshet-cache/freshet/coherence"
	"github.com/freshet-cache/freshet/internal/devstack/stacktest"
	"github.com/freshet-cache/freshet/internal/verify"
)

func subjects() map[string]verify.Open {
	return map[string]verify.Open{
		"freshet":   verify.Freshet,
		"apart":     verify.FreshetApart,
		"forgetful": openForgetful,
		"fails": func(context.Context, verify.Endpoints) (verify.Subject, error) {
			return nil, errors.New("it cannot be opened")
		},
	}
}

func options(t *testing.T, subject string, faults ...string) verify.Options {
	t.Helper()
	program, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	// Nothing may be left here in the end.
	dir := t.TempDir()
	t.Setenv("TMPDIR", dir)
	t.Cleanup(func() {
		left, err := os.ReadDir(dir)
		if err != nil || len(left) > 0 {
			t.Errorf("left behind: %v, %v", left, err)
		}
	})
	return verify.Options{
		Program: []string{program, asReplica, subject},
		Faults:  faults, Duration: time.Millisecond, Seed: 1, Keys: 400, Groups: 40, Rate: 1500, Writes: 40,
		Stack: stacktest.Stack(), Progress: t.Output(),
	}
}

// I1 to I5 and I8 on real processes: a short part of `make faults`.
func TestI1I2I3I4I5I8Faults(t *testing.T) {
	short(t)
	r, err := verify.Run(t.Context(), options(t, "freshet", "redis-flushed", "postgres-killed"))
	if err != nil {
		t.Fatal(err)
	}
	if r.Broken() > 0 {
		t.Errorf("%d promises were broken", r.Broken())
	}
	for _, p := range r.Phases {
		if p.Fresh < 200 || p.Swept == 0 || p.Joints < 10 {
			t.Errorf("%s: %d FRESH answers, %d about several rows and %d after the end are too few to show anything", p.Fault, p.Fresh, p.Joints, p.Swept)
		}
	}
}

// A cache that calls everything FRESH and deletes only its own copy on a write is found guilty.
func TestForgetfulCacheIsConvicted(t *testing.T) {
	short(t)
	o := options(t, "forgetful", "none")
	o.Progress = nil // they are many
	r, err := verify.Run(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	for _, invariant := range []string{"I1", "I2", "I5"} {
		if r.Phases[0].Violations[invariant] == 0 {
			t.Errorf("no violation of %s: %v", invariant, r.Phases[0].Violations)
		}
	}
}

// I8: the sum of all accounts wavers when each is read for itself, and is found out.
func TestI8ReadsApartAreConvicted(t *testing.T) {
	short(t)
	o := options(t, "apart", "none")
	o.Progress = nil
	r, err := verify.Run(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	p := r.Phases[0]
	if p.Violations["I8"] == 0 || p.Broken() != p.Violations["I8"] {
		t.Errorf("of %d answers about several rows, violations: %v, want some of I8", p.Joints, p.Violations)
	}
}

// When its context ends, a run ends, and leaves nothing behind.
func TestRunEndsWithItsContext(t *testing.T) {
	short(t)
	stop := errors.New("enough")
	ctx, cancel := context.WithTimeoutCause(t.Context(), 2*time.Second, stop)
	defer cancel()
	o := options(t, "freshet", "redis-half-open")
	o.Duration = time.Hour
	if _, err := verify.Run(ctx, o); !errors.Is(err, stop) {
		t.Errorf("the error is %v, want the cause of the context's end", err)
	}
}

func TestReplicaThatDoesNotStart(t *testing.T) {
	short(t)
	_, err := verify.Run(t.Context(), options(t, "fails"))
	if err == nil || !strings.Contains(err.Error(), "it cannot be opened") {
		t.Errorf("the error is %v, want the reason", err)
	}
}

func TestOptions(t *testing.T) {
	o := verify.Options{Replicas: 99, Duration: -1, Pairs: -1, Rate: -1, Keys: 10, Groups: 20, Faults: []string{"plague"}}
	err := o.Validate()
	if err == nil {
		t.Fatal("no error")
	}
	for _, field := range []string{"Program", "Replicas", "Duration", "Pairs", "Rate", "Keys", "Faults"} {
		if !strings.Contains(err.Error(), "Options."+field) {
			t.Errorf("%s is not named in\n%v", field, err)
		}
	}
}

// short leaves a test out that takes seconds.
func short(t *testing.T) {
	t.Helper()
	if testing.Short() {
		t.Skip("takes seconds")
	}
}

// forgetful is a cache of a process that deletes what it writes itself and knows nothing of others.
type forgetful struct {
	db *sql.DB

	mu    sync.Mutex
	rows  map[uint64]verify.Answer
	lists map[uint64]verify.ListAnswer
}

func openForgetful(_ context.Context, at verify.Endpoints) (verify.Subject, error) {
	pool, err := coherence.OpenPool(coherence.PoolConfig{DSN: at.Postgres})
	if err != nil {
		return nil, err
	}
	return &forgetful{db: pool.DB, rows: map[uint64]verify.Answer{}, lists: map[uint64]verify.ListAnswer{}}, nil
}

func (f *forgetful) Get(ctx context.Context, key uint64, _ verify.Want) (verify.Answer, error) {
	f.mu.Lock()
	a, cached := f.rows[key]
	f.mu.Unlock()
	if cached {
		return a, nil
	}
	a = verify.Answer{Fresh: true}
	err := f.db.QueryRowContext(ctx, verify.RowQuery, pq.Array([]int64{int64(key)})).Scan(new(uint64), &a.Op)
	if errors.Is(err, sql.ErrNoRows) {
		a.Absent, err = true, nil
	}
	if err != nil {
		return a, err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.rows[key] = a
	return a, nil
}

func (f *forgetful) List(ctx context.Context, group uint64, _ verify.Want) (verify.ListAnswer, error) {
	f.mu.Lock()
	a, cached := f.lists[group]
	f.mu.Unlock()
	if cached {
		return a, nil
	}
	a = verify.ListAnswer{Fresh: true}
	rows, err := f.db.QueryContext(ctx, verify.ListQuery, int64(group))
	if err != nil {
		return a, err
	}
	defer rows.Close()
	for rows.Next() {
		var r verify.ListRow
		if err := rows.Scan(&r.Key, &r.Op); err != nil {
			return a, err
		}
		a.Rows = append(a.Rows, r)
	}
	if err := rows.Err(); err != nil {
		return a, err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.lists[group] = a
	return a, nil
}

func (f *forgetful) Write(ctx context.Context, c verify.Change) (string, error) {
	tx, err := f.db.BeginTx(ctx, nil)
	if err != nil {
		return "", err
	}
	defer tx.Rollback() // nothing to roll back after a commit
	touched, err := c.Apply(ctx, tx)
	if err == nil {
		err = tx.Commit()
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, key := range touched.Keys {
		delete(f.rows, key)
	}
	for _, group := range touched.Groups {
		delete(f.lists, group)
	}
	return "", err
}

func (f *forgetful) Close() error { return f.db.Close() }
