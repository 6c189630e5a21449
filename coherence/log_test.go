package coherence_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jmoiron/sqlx"

	"github.com/freshet-cache/freshet/coherence"
	"github.com/freshet-cache/freshet/coherence/logtest"
	"github.com/freshet-cache/freshet/internal/devstack/stacktest"
)

func TestMemoryLog(t *testing.T) {
	logtest.Exercise(t, func(*testing.T) (coherence.Log, logtest.Writer) {
		m := logtest.NewMemory()
		return m, memoryWriter{m}
	})
}

type memoryWriter struct{ *logtest.Memory }

func (w memoryWriter) Begin(*testing.T) logtest.Transaction { return w.Memory.Begin() }

func TestPostgresLog(t *testing.T) {
	logtest.Exercise(t, func(t *testing.T) (coherence.Log, logtest.Writer) {
		t.Helper()
		db, dsn := database(t)
		return openLog(t, dsn, 5*time.Second), postgresWriter{db}
	})
}

type postgresWriter struct{ *sqlx.DB }

func (w postgresWriter) Begin(t *testing.T) logtest.Transaction {
	t.Helper()
	p := &postgresTx{t: t, tx: begin(t, w.DB)}
	if err := p.tx.GetContext(t.Context(), &p.xid, `select pg_current_xact_id()::text::bigint`); err != nil {
		t.Fatal(err)
	}
	return p
}

type postgresTx struct {
	t   *testing.T
	tx  *sqlx.Tx
	xid uint64
}

func (p *postgresTx) XID() uint64 { return p.xid }
func (p *postgresTx) Commit()     { p.t.Helper(); commit(p.t, p.tx) }
func (p *postgresTx) Rollback() {
	p.t.Helper()
	if err := p.tx.Rollback(); err != nil {
		p.t.Fatal(err)
	}
}

func (p *postgresTx) Change(scopes ...coherence.Scope) {
	p.t.Helper()
	for _, s := range scopes {
		_, err := p.tx.ExecContext(p.t.Context(), `insert into freshet.log (kind, namespace, id, view) values ($1, $2, $3, $4)`,
			string(s.Kind), s.Namespace, s.ID, s.View)
		if err != nil {
			p.t.Fatal(err)
		}
	}
}

func (p *postgresTx) SetGeneration(namespace string, generation uint32) {
	p.t.Helper()
	if _, err := p.tx.ExecContext(p.t.Context(), `select freshet.set_generation($1, $2, 'a test')`, namespace, int64(generation)); err != nil {
		p.t.Fatal(err)
	}
}

func (p *postgresTx) Grace(d time.Duration) {
	p.t.Helper()
	if _, err := p.tx.ExecContext(p.t.Context(), `select freshet.grace(make_interval(secs => $1))`, d.Seconds()); err != nil {
		p.t.Fatal(err)
	}
}

// Several processes that start at once all migrate.
func TestMigrateConcurrently(t *testing.T) {
	dsn, err := stacktest.Stack().Postgres.CreateDatabase(t.Context(), "t_migrate_concurrently")
	if err != nil {
		t.Fatal(err)
	}
	var g sync.WaitGroup
	for range 6 {
		db := pool(t, dsn)
		g.Go(func() {
			if err := coherence.Migrate(t.Context(), db.DB); err != nil {
				t.Error(err)
			}
		})
	}
	g.Wait()
	poll(t, openLog(t, dsn, 5*time.Second), coherence.Snapshot{})
}

func TestBeginTimelineConcurrently(t *testing.T) {
	db, _ := database(t)
	db.SetMaxOpenConns(20)
	var g sync.WaitGroup
	var seen sync.Map
	for range 20 {
		g.Go(func() {
			var timeline int64
			if err := db.GetContext(t.Context(), &timeline, `select freshet.begin_timeline()`); err != nil || timeline == 0 {
				t.Error(timeline, err)
			}
			seen.Store(timeline, true)
		})
	}
	g.Wait()
	n := 0
	seen.Range(func(any, any) bool { n++; return true })
	if n != 1 {
		t.Errorf("20 sessions began %d timelines, want 1", n)
	}
	if a, b := ask[int64](t, db, `select freshet.current_timeline()`), ask[int64](t, db, `select freshet.begin_timeline(null)`); a != b {
		t.Errorf("current timeline %d, begun %d", a, b)
	}
}

// A clean restart keeps the timeline, a crash does not: Postgres may give transaction ids twice.
func TestTimelineRestart(t *testing.T) {
	db, dsn := database(t)
	postgres := stacktest.Stack().Postgres
	log := openLog(t, dsn, 5*time.Second)
	first := poll(t, log, coherence.Snapshot{})
	do(t, db, `select freshet.invalidate('p', '1')`)

	if err := postgres.Stop(); err != nil {
		t.Fatal(err)
	}
	if _, err := log.Poll(t.Context(), first.Snapshot, 10); err == nil {
		t.Error("a stopped Postgres was polled")
	}
	if err := postgres.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	second := poll(t, log, first.Snapshot)
	if second.Snapshot.Timeline != first.Snapshot.Timeline || len(second.Changes) != 1 || !second.Snapshot.Includes(first.Snapshot) {
		t.Errorf("after a clean restart %+v, before %+v; want the same timeline and the change between", second, first)
	}

	do(t, db, `select freshet.invalidate('p', '2')`)
	if err := postgres.Kill(); err != nil {
		t.Fatal(err)
	}
	if err := postgres.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	if timeline := ask[int64](t, pool(t, dsn), `select freshet.current_timeline()`); timeline != 0 {
		t.Errorf("timeline %d right after a crash, want 0: nobody has begun one", timeline)
	}
	if _, err := log.Poll(t.Context(), second.Snapshot, 10); err == nil {
		t.Error("the connection outlived a crash")
	}
	third := poll(t, log, second.Snapshot)
	if third.Snapshot.Timeline == first.Snapshot.Timeline || third.Snapshot.Timeline == 0 {
		t.Errorf("timeline %d after a crash, %d before", third.Snapshot.Timeline, first.Snapshot.Timeline)
	}
	// Values of the new timeline see all that was committed before it.
	var row uint64
	if row = ask[uint64](t, pool(t, dsn), `select xid::text::bigint from freshet.log where id = '2'`); !third.Horizon.Sees(row) {
		t.Errorf("horizon %s of the new timeline does not see %d of the one before", third.Horizon, row)
	}
}

// A timeline that came with a dump or a copy proves nothing here, and neither do the ids that came
// with it.
func TestTimelineOfAnotherPlace(t *testing.T) {
	db, dsn := database(t)
	begun := openLog(t, dsn, 5*time.Second)
	first := poll(t, begun, coherence.Snapshot{})
	if err := begun.Close(); err != nil {
		t.Fatal(err)
	}
	for name, statements := range map[string][]string{
		"server":   {`update freshet.timeline set server = server + 1`},
		"database": {`update freshet.timeline set database = 1`},
		"restored": {
			`create table rows_of as select * from freshet.timeline`,
			`drop table freshet.timeline cascade`,
			`create unlogged table freshet.timeline (like rows_of including all)`,
			`alter table freshet.timeline add primary key (only_row), alter begun set default now(), alter only_row set default true`,
			`insert into freshet.timeline select * from rows_of`,
			`grant select on freshet.timeline to public`,
		},
	} {
		t.Run(name, func(t *testing.T) {
			// The dump was taken when the other server had given many more ids than this one.
			do(t, db, statements...)
			do(t, db,
				`insert into freshet.log (xid, kind, namespace, id) select '999999999999', 'e', 'p', i::text from generate_series(1, 100) i`,
				`update freshet.horizon set kept_from = '999999999999:999999999999:', next = '999999999999:999999999999:'`)
			log := openLog(t, dsn, 5*time.Second)
			second := poll(t, log, coherence.Snapshot{})
			if second.Snapshot.Timeline == first.Snapshot.Timeline || second.Snapshot.Timeline == 0 {
				t.Errorf("timeline %d, as at the place where it began", second.Snapshot.Timeline)
			}
			if !second.Snapshot.Includes(second.Horizon) {
				t.Errorf("poll at %s, horizon %s: no value can ever be valid", second.Snapshot, second.Horizon)
			}
			for _, c := range second.Changes {
				if !second.Snapshot.Sees(c.XID) {
					t.Fatalf("poll at %s brought transaction %d, which no value can see", second.Snapshot, c.XID)
				}
			}
			if n, err := log.Trim(t.Context(), time.Hour); n != 100 || err != nil {
				t.Errorf("trim deleted %d of the other server's 100 changes, %v", n, err)
			}
			first = second
		})
	}
	t.Run("template", func(t *testing.T) {
		if err := db.Close(); err != nil { // a template must not be in use
			t.Fatal(err)
		}
		maintenance := pool(t, strings.Replace(dsn, "/t_testtimelineofanotherplace?", "/postgres?", 1))
		do(t, maintenance, `drop database if exists t_copy`, `create database t_copy template t_testtimelineofanotherplace`)
		copied := strings.Replace(dsn, "/t_testtimelineofanotherplace?", "/t_copy?", 1)
		if timeline := ask[int64](t, pool(t, copied), `select freshet.current_timeline()`); timeline != 0 {
			t.Errorf("a copy of the database reads under timeline %d of the original", timeline)
		}
		if r := poll(t, openLog(t, copied, 5*time.Second), coherence.Snapshot{}); r.Snapshot.Timeline == first.Snapshot.Timeline {
			t.Error("a copy of the database has the timeline of the original")
		}
	})
}

// What a role or a database has as defaults does not break polling.
func TestPostgresLogDefaults(t *testing.T) {
	db, dsn := database(t)
	do(t, db,
		`alter database t_testpostgreslogdefaults set default_transaction_read_only = on`,
		`alter database t_testpostgreslogdefaults set default_transaction_isolation = 'serializable'`,
		`alter database t_testpostgreslogdefaults set statement_timeout = 1`)
	log := openLog(t, dsn, 5*time.Second)
	a := poll(t, log, coherence.Snapshot{})
	if _, err := log.Trim(t.Context(), time.Hour); err != nil {
		t.Error(err)
	}
	if b := poll(t, log, a.Snapshot); b.Snapshot.Timeline == 0 {
		t.Error("no timeline")
	}
}

// However Postgres is away, a poll comes back within its timeout.
func TestPollBound(t *testing.T) {
	_, dsn := database(t)
	const timeout = 300 * time.Millisecond
	postgres := stacktest.Stack().Postgres
	connected, fresh := openLog(t, dsn, timeout), openLog(t, dsn, timeout)
	since := poll(t, connected, coherence.Snapshot{}).Snapshot

	if err := postgres.Pause(); err != nil {
		t.Fatal(err)
	}
	resumed := sync.OnceFunc(func() {
		if err := postgres.Resume(); err != nil {
			t.Error(err)
		}
	})
	defer resumed()
	for name, log := range map[string]*coherence.PostgresLog{"connected": connected, "new": fresh} {
		for range 2 {
			start := time.Now()
			_, err := log.Poll(t.Context(), since, 10)
			if took := time.Since(start); err == nil || took > timeout+200*time.Millisecond {
				t.Errorf("%s: poll of a paused Postgres took %v (timeout %v), error %v", name, took, timeout, err)
			}
			if !errors.Is(err, os.ErrDeadlineExceeded) {
				t.Errorf("%s: error %v is not os.ErrDeadlineExceeded", name, err)
			}
		}
	}
	resumed()
	for _, log := range []*coherence.PostgresLog{connected, fresh} {
		r := poll(t, log, since)
		if !r.Snapshot.Includes(since) {
			t.Errorf("after the pause %s, before %s", r.Snapshot, since)
		}
	}

	// A lock that somebody holds is the server's bound to keep.
	db := pool(t, dsn)
	tx := begin(t, db)
	run(t, tx, `lock table freshet.log in access exclusive mode`)
	start := time.Now()
	_, err := connected.Poll(t.Context(), since, 10)
	if took := time.Since(start); !errors.Is(err, os.ErrDeadlineExceeded) || took > timeout+200*time.Millisecond {
		t.Errorf("poll of a locked log took %v (timeout %v), error %v", took, timeout, err)
	}

	// A poll that nobody wants any more is not sent.
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := connected.Poll(ctx, since, 10); !errors.Is(err, context.Canceled) {
		t.Errorf("poll under a cancelled context: %v", err)
	}
}

// The poll reads the end of an index, however long the log, under the plan that it really has.
func TestPollPlan(t *testing.T) {
	db, dsn := database(t)
	do(t, db,
		`do $$ begin for i in 1..200 loop
			insert into freshet.log (kind, namespace, id) select 'e', 'p', j::text from generate_series(1, 1000) j;
			commit;
		end loop; end $$`,
		`analyze freshet.log`)
	log := openLog(t, dsn, 20*time.Second)
	since := poll(t, log, coherence.Snapshot{})
	if len(since.Changes) != 200_000 {
		t.Fatalf("%d changes, want 200,000", len(since.Changes))
	}
	start := time.Now()
	const n = 100
	for range n {
		since = poll(t, log, since.Snapshot)
	}
	t.Logf("idle poll of a log of 200,000: %v", time.Since(start)/n)

	conn, err := db.Connx(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	for _, s := range []string{
		`set plan_cache_mode = force_generic_plan`, `set enable_seqscan = off`, `set enable_bitmapscan = off`, `set jit = off`,
		`prepare poll as ` + coherence.PollQuery,
	} {
		if _, err := conn.ExecContext(t.Context(), s); err != nil {
			t.Fatal(err)
		}
	}
	var lines []string
	err = conn.SelectContext(t.Context(), &lines, fmt.Sprintf(`explain (analyze, buffers) execute poll('%d', '{%d,%d}', 1000, '')`,
		since.Snapshot.Xmax, since.Snapshot.Xmax-2, since.Snapshot.Xmax-1))
	if err != nil {
		t.Fatal(err)
	}
	plan := strings.Join(lines, "\n")
	if strings.Contains(plan, "Seq Scan on log") || strings.Count(plan, "Index Scan using log_xid") != 2 {
		t.Errorf("the poll does not use the index:\n%s", plan)
	}
	if m := regexp.MustCompile(`Rows Removed by Filter: (\d+)`).FindString(plan); m != "" {
		t.Errorf("the poll reads rows that it does not want: %s\n%s", m, plan)
	}
}

// Trims go in bounded steps and in one session at a time.
func TestTrimSteps(t *testing.T) {
	db, dsn := database(t)
	do(t, db, `insert into freshet.log (kind, namespace, id) select 'e', 'p', j::text from generate_series(1, 20000) j`)
	log := openLog(t, dsn, 5*time.Second)
	for i := range 2 {
		if _, err := log.Trim(t.Context(), 0); err != nil {
			t.Fatal(i, err)
		}
	}
	if left := ask[int](t, db, `select count(*) from freshet.log`); left != 10000 {
		t.Errorf("%d changes left after two steps, want 10,000", left)
	}
	// The others' trims return at once while one runs.
	tx := begin(t, db)
	run(t, tx, `select freshet.trim('1 h', 1)`)
	if n, err := log.Trim(t.Context(), time.Hour); n != 0 || err != nil {
		t.Errorf("a second trim at a time: %d, %v", n, err)
	}
	commit(t, tx)
	var n, gone int
	var err error
	for ok := true; ok; ok = n > 0 {
		if n, err = log.Trim(t.Context(), time.Hour); err != nil {
			t.Fatal(err)
		}
		gone += n
	}
	if left := ask[int](t, db, `select count(*) from freshet.log`); left != 0 || gone != 9999 {
		t.Errorf("%d changes left, %d deleted; want 0 and 9,999", left, gone)
	}
}
