package model

import (
	"cmp"
	"context"
	"database/sql"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/lib/pq"

	"github.com/freshet-cache/freshet/coherence"
	"github.com/freshet-cache/freshet/internal/devstack/stacktest"
)

var (
	schedules = flag.Int("model.schedules", 25, "random schedules per test of schedules; crash and failover run one for 40 of them")
	firstSeed = flag.Uint64("model.seed", 1, "the seed of the first schedule")
)

// product is the row of these tests; category 0 is null.
type product struct{ category, value uint64 }

func watch() Watch[product] {
	return Watch[product]{Namespace: "product", Fixed: []string{"all"}, Tags: func(_ uint64, p product) []string {
		if p.category == 0 {
			return nil
		}
		return []string{fmt.Sprintf("category:%d", p.category)}
	}}
}

const (
	writers  = 3
	reader   = writers // the connection at REPEATABLE READ
	observer = writers + 1
	keys     = 4
)

// server is the real Postgres: some connections, and the log as the library polls it.
type server struct {
	t     *testing.T
	name  string // of the database
	db    *sql.DB
	conns [observer + 1]*sql.Conn
	pids  [observer + 1]int
	log   *coherence.PostgresLog
}

func openServer(t *testing.T) *server {
	t.Helper()
	s := &server{t: t, name: "t_" + strings.ToLower(t.Name())}
	if _, err := stacktest.Stack().Postgres.CreateDatabase(t.Context(), s.name); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.disconnect)
	s.connect()
	if err := coherence.Migrate(t.Context(), s.db); err != nil {
		t.Fatal(err)
	}
	for _, statement := range []string{
		`alter system set autovacuum = off`, // it would draw transaction ids
		`select pg_reload_conf()`,
		`create table products (id bigint primary key, category bigint, value bigint not null)`,
		`select freshet.watch('products', 'product', 'id', array['all', 'category:{category}'])`,
	} {
		s.must(s.db.ExecContext(t.Context(), statement))
	}
	return s
}

// connect connects to the server that is the primary now.
func (s *server) connect() {
	s.t.Helper()
	stack := stacktest.Stack().Postgres
	dsn := stack.DSNVia(stack.Addr(), s.name)
	var err error
	if s.db, err = sql.Open("postgres", dsn); err != nil {
		s.t.Fatal(err)
	}
	for i := range s.conns {
		if s.conns[i], err = s.db.Conn(s.t.Context()); err != nil {
			s.t.Fatal(err)
		}
		s.must(s.conns[i].ExecContext(s.t.Context(), `set lock_timeout = '20s'`))
		if err := s.conns[i].QueryRowContext(s.t.Context(), `select pg_backend_pid()`).Scan(&s.pids[i]); err != nil {
			s.t.Fatal(err)
		}
	}
	if s.log, err = coherence.OpenLog(coherence.LogConfig{DSN: dsn, Timeout: 20 * time.Second}); err != nil {
		s.t.Fatal(err)
	}
}

func (s *server) disconnect() {
	_ = s.log.Close()
	for _, conn := range s.conns {
		_ = conn.Close()
	}
	_ = s.db.Close()
}

// fresh empties the server and makes a model in the same state.
func (s *server) fresh() *Postgres[product] {
	s.t.Helper()
	for _, conn := range s.conns {
		s.must(conn.ExecContext(s.t.Context(), `rollback`))
	}
	s.must(s.db.ExecContext(s.t.Context(), `
truncate products; truncate freshet.log, freshet.generation_history;
update freshet.generations set version = default, current = '{}', highest = '{}'`))
	var last uint64
	if err := s.db.QueryRowContext(s.t.Context(), `select pg_current_xact_id()::text`).Scan(&last); err != nil {
		s.t.Fatal(err)
	}
	p := NewPostgres(watch(), last+1)
	if err := s.log.Renew(s.t.Context(), s.timeline()); err != nil {
		s.t.Fatal(err)
	}
	p.Renew(0)
	return p
}

func (s *server) must(_ sql.Result, err error) {
	s.t.Helper()
	if err != nil {
		s.t.Fatal(err)
	}
}

func (s *server) timeline() (id uint64) {
	s.t.Helper()
	if err := s.db.QueryRowContext(s.t.Context(), `select freshet.current_timeline()`).Scan(&id); err != nil {
		s.t.Fatal(err)
	}
	return id
}

// outcome is what came of a statement, in words that both sides can say.
func outcome(n int, err error) string {
	if err == nil {
		return fmt.Sprintf("%d rows", n)
	}
	if answer, ok := errors.AsType[*pq.Error](err); ok {
		switch answer.Code {
		case "23505":
			err = ErrDuplicate
		case "25P02":
			err = ErrFailed
		case "3B001":
			err = ErrNoSavepoint
		}
	}
	return err.Error()
}

func (s *server) exec(conn int, statement string) string {
	result, err := s.conns[conn].ExecContext(s.t.Context(), statement)
	if err != nil {
		return outcome(0, err)
	}
	n, err := result.RowsAffected()
	return outcome(int(n), err)
}

// look is the snapshot and the rows as a statement of the connection sees them.
func (s *server) look(conn int, table bool) string {
	from := `''`
	if table {
		from = `coalesce((select string_agg(id || ':' || coalesce(category, 0) || ':' || value, ' ' order by id) from products), '')`
	}
	var snapshot, rows string
	err := s.conns[conn].QueryRowContext(s.t.Context(), `select pg_current_snapshot()::text, `+from).Scan(&snapshot, &rows)
	if err != nil {
		return outcome(0, err)
	}
	return snapshot + " " + rows
}

func text(s coherence.Snapshot, rows []string) string {
	_, numbers, _ := strings.Cut(s.String(), "/")
	return numbers + " " + strings.Join(rows, " ")
}

// looks is what [server.look] should say to a transaction, or outside of any.
func looks(p *Postgres[product], tx *Tx[product], table bool) string {
	var rows []string
	row := func(key uint64, r product) { rows = append(rows, fmt.Sprintf("%d:%d:%d", key, r.category, r.value)) }
	if tx == nil {
		for key, r := range p.All() {
			if table {
				row(key, r)
			}
		}
		return text(p.Snapshot(), rows)
	}
	for _, key := range p.keys {
		r, ok, err := tx.Get(key)
		if err != nil {
			return outcome(0, err)
		}
		if ok {
			row(key, r)
		}
	}
	if err := tx.usable(); err != nil {
		return outcome(0, err)
	}
	tx.uses()
	return text(tx.Snapshot(), rows)
}

// polled is a poll's result as text.
func polled(r coherence.PollResult, err error) string {
	if err != nil {
		return err.Error()
	}
	slices.SortFunc(r.Changes, func(a, b coherence.Change) int {
		return strings.Compare(fmt.Sprint(a.XID, a.Scope, a.Grace), fmt.Sprint(b.XID, b.Scope, b.Grace))
	})
	return fmt.Sprint(text(r.Snapshot, nil), text(r.Horizon, nil), r.Changes, r.Overrun, r.Snapshot.Timeline != 0,
		r.Generations.Of("product"), r.Generations.Of("other"))
}

type action uint8

const (
	doBegin action = iota
	doInsert
	doUpsert
	doUpdate
	doUpdateMany
	doDelete
	doRekey
	doTruncate
	doInvalidate
	doSavepoint
	doRelease
	doRollbackTo
	doCommit
	doRollback
	doLook
	doReaderBegin
	doReaderLook
	doReaderEnd
	doTrim
	doTrimNothing
	doRenew
	doGeneration
)

// weights: how often each action is drawn.
var weights = [...]int{
	doBegin: 10, doInsert: 8, doUpsert: 8, doUpdate: 16, doUpdateMany: 4, doDelete: 6, doRekey: 3, doTruncate: 1,
	doInvalidate: 3, doSavepoint: 8, doRelease: 3, doRollbackTo: 6, doCommit: 8, doRollback: 3, doLook: 5,
	doReaderBegin: 2, doReaderLook: 4, doReaderEnd: 1, doTrim: 2, doTrimNothing: 1, doRenew: 1,
	doGeneration: 2,
}

// step is one of a schedule. What cannot be done in the present state is left out.
type step struct {
	action action
	conn   int
	key    uint64
	to     uint64
	row    product
	since  int // which of the snapshots seen the poll after the step starts from
	limit  int
}

func randomSteps(seed uint64, n int) []step {
	r := rand.New(rand.NewPCG(seed, 0))
	sum := 0
	for _, w := range weights {
		sum += w
	}
	steps := make([]step, n)
	for i := range steps {
		s := step{
			conn: r.IntN(writers), key: 1 + r.Uint64N(keys), to: 1 + r.Uint64N(keys),
			row: product{r.Uint64N(3), r.Uint64N(1000)}, since: r.IntN(1 << 20), limit: []int{3, 1000, 1000}[r.IntN(3)],
		}
		for draw := r.IntN(sum); draw >= weights[s.action]; s.action++ {
			draw -= weights[s.action]
		}
		steps[i] = s
	}
	return steps
}

// statement is the step as one that changes the table, for the model and for the server.
func (s step) statement() (*statement[product], string) {
	category := "null"
	if s.row.category != 0 {
		category = fmt.Sprint(s.row.category)
	}
	set := func(_ uint64, old product) product { return product{s.row.category, old.value + s.row.value} }
	rows := []Row[product]{{s.key, s.row}}
	one := []uint64{s.key}
	insert := fmt.Sprintf(`insert into products values (%d, %s, %d)`, s.key, category, s.row.value)
	update := fmt.Sprintf(`update products set category = %s, value = value + %d where id`, category, s.row.value)
	switch s.action {
	case doInsert:
		return &statement[product]{kind: kindInsert, rows: rows}, insert
	case doUpsert:
		return &statement[product]{kind: kindUpsert, rows: rows, set: set},
			insert + ` on conflict (id) do update set category = excluded.category, value = products.value + excluded.value`
	case doUpdate:
		return &statement[product]{kind: kindUpdate, keys: one, set: set}, fmt.Sprintf(`%s = %d`, update, s.key)
	case doUpdateMany:
		return &statement[product]{kind: kindUpdate, keys: []uint64{1, 2, 3, 4}, set: set}, update + ` > 0`
	case doDelete:
		return &statement[product]{kind: kindDelete, keys: one}, fmt.Sprintf(`delete from products where id = %d`, s.key)
	case doRekey:
		return &statement[product]{kind: kindRekey, keys: one, to: s.to},
			fmt.Sprintf(`update products set id = %d where id = %d`, s.to, s.key)
	case doTruncate:
		return &statement[product]{kind: kindTruncate}, `truncate products`
	default:
		return nil, ""
	}
}

// difference is one run of a schedule on both sides.
type difference struct {
	server *server
	model  *Postgres[product]
	txs    [observer]*Tx[product]
	// waiting is the connection whose statement waits, -1 = none, and result is what comes of it.
	waiting int
	result  chan string
	seen    []coherence.Snapshot
	now     time.Duration // of the model; it counts steps
	trace   []string
}

// run runs the steps on both sides and says where they first disagree; "" = nowhere.
func run(s *server, steps []step) (failure string, trace []string) {
	d := newDifference(s)
	failure = d.play(steps)
	d.end()
	return failure, d.trace
}

func newDifference(s *server) *difference {
	return &difference{server: s, model: s.fresh(), waiting: -1, seen: []coherence.Snapshot{{}}}
}

func (d *difference) play(steps []step) (failure string) {
	for _, step := range steps {
		d.now++
		if failure = d.do(step); failure == "" {
			failure = d.compare(step)
		}
		if failure != "" {
			break
		}
	}
	return failure
}

// end leaves no statement running.
func (d *difference) end() {
	for i := range d.txs {
		if i != d.waiting {
			d.server.exec(i, `rollback`)
		}
	}
	if d.waiting >= 0 {
		<-d.result
		d.server.exec(d.waiting, `rollback`)
	}
}

func (d *difference) say(format string, args ...any) {
	d.trace = append(d.trace, fmt.Sprintf(format, args...))
}

// both notes what the sides said of a statement and compares it.
func (d *difference) both(conn int, statement, model, actual string) string {
	d.say("%d: %s -> %s", conn, statement, actual)
	if model != actual {
		return fmt.Sprintf("%q: the model says %q, the server %q", statement, model, actual)
	}
	return ""
}

func (d *difference) do(s step) string {
	p := d.model
	switch s.action {
	case doReaderBegin, doReaderLook, doReaderEnd:
		return d.read(s)
	case doTrim, doTrimNothing:
		keep := time.Duration(0)
		if s.action == doTrimNothing {
			keep = time.Hour
		}
		n, err := d.server.log.Trim(d.server.t.Context(), keep)
		return d.both(observer, fmt.Sprint("trim ", keep), outcome(p.Trim(d.now, keep, TrimAtMost), nil), outcome(n, err))
	case doRenew:
		err := d.server.log.Renew(d.server.t.Context(), d.server.timeline())
		p.Renew(p.Timeline())
		return d.both(observer, "renew", outcome(0, nil), outcome(0, err))
	case doGeneration:
		namespace, generation := []string{"", "product"}[s.key%2], 1+s.to%3
		p.SetGeneration(namespace, uint32(generation))
		statement := fmt.Sprintf(`select freshet.set_generation('%s', %d, 'a test')`, namespace, generation)
		return d.both(observer, statement, outcome(1, nil), d.server.exec(observer, statement))
	default:
	}
	tx := d.txs[s.conn]
	if s.conn == d.waiting || (tx == nil) != (s.action == doBegin) {
		return ""
	}
	if statement, sql := s.statement(); statement != nil {
		return d.change(s.conn, statement, sql)
	}
	actual := func(statement string, err error) string {
		return d.both(s.conn, statement, outcome(0, err), d.server.exec(s.conn, statement))
	}
	switch s.action {
	case doBegin:
		d.txs[s.conn] = p.Begin()
		return actual(`begin`, nil)
	case doInvalidate:
		scopes := []coherence.Scope{coherence.Entity("other", "1"), coherence.Tag("by hand")}
		err := cmp.Or(tx.Grace(2*time.Second), tx.Invalidate(scopes...))
		model := outcome(1, err)
		return d.both(s.conn, `invalidate`, model, d.server.exec(s.conn, `select freshet.grace('2 s'), freshet.invalidate('other', '1', '1'), freshet.invalidate_tag('by hand')`))
	case doSavepoint:
		return actual(`savepoint s`, tx.Savepoint())
	case doRelease:
		return actual(`release s`, tx.Release())
	case doRollbackTo:
		return actual(`rollback to s`, tx.RollbackTo())
	case doCommit:
		_ = tx.Commit() // the server answers to a failed one that it was rolled back
		d.txs[s.conn] = nil
		return actual(`commit`, nil)
	case doRollback:
		tx.Rollback()
		d.txs[s.conn] = nil
		return actual(`rollback`, nil)
	case doLook:
		if p.truncating != nil && p.truncating != tx {
			return ""
		}
		model := looks(p, tx, true)
		return d.both(s.conn, `look`, model, d.server.look(s.conn, true))
	default:
		return ""
	}
}

// read is what the connection at REPEATABLE READ does.
func (d *difference) read(s step) string {
	tx := d.txs[reader]
	switch {
	case (tx == nil) != (s.action == doReaderBegin):
	case s.action == doReaderBegin:
		d.txs[reader] = d.model.BeginFixed()
		d.server.exec(reader, `begin isolation level repeatable read`)
		return d.both(reader, `begin fixed`, looks(d.model, nil, false)[:0]+text(d.txs[reader].Snapshot(), nil), d.server.look(reader, false))
	case s.action == doReaderLook && d.model.truncating == nil:
		return d.both(reader, `look`, looks(d.model, tx, true), d.server.look(reader, true))
	case s.action == doReaderEnd:
		tx.Rollback()
		d.txs[reader] = nil
		return d.both(reader, `rollback`, outcome(0, nil), d.server.exec(reader, `rollback`))
	}
	return ""
}

// change runs a statement that may have to wait. Only one waits at a time, and only for one row: who of
// several comes first is the server's choice.
func (d *difference) change(conn int, s *statement[product], sql string) string {
	tx := d.txs[conn]
	if tx.usable() == nil {
		peek := *s
		peek.targets = tx.targets(s.keys)
		by := tx.blocker(&peek)
		if by != nil && (d.waiting >= 0 || s.kind == kindTruncate || s.kind == kindRekey || len(s.keys) > 1) {
			return ""
		}
	}
	n, err := tx.start(s)
	if !errors.Is(err, ErrBlocked) {
		return d.both(conn, sql, outcome(n, err), d.server.exec(conn, sql))
	}
	d.waiting, d.result = conn, make(chan string, 1)
	go func() { d.result <- d.server.exec(conn, sql) }()
	by := slices.Index(d.txs[:], tx.Waits())
	d.say("%d: %s -> waits for %d", conn, sql, by)
	for {
		select {
		case actual := <-d.result:
			d.result <- actual
			return fmt.Sprintf("%q: the model waits for %d, the server says %q", sql, by, actual)
		default:
		}
		var pids pq.Int64Array
		err := d.server.conns[observer].QueryRowContext(d.server.t.Context(), `select pg_blocking_pids($1)`, d.server.pids[conn]).Scan(&pids)
		if err != nil {
			return err.Error()
		}
		if len(pids) > 0 {
			if len(pids) != 1 || int(pids[0]) != d.server.pids[by] {
				return fmt.Sprintf("%q: the model waits for %d (%d), the server for %d", sql, by, d.server.pids[by], pids)
			}
			return ""
		}
	}
}

// compare lets what waited go on, and asks both sides for all that can be seen from outside.
func (d *difference) compare(s step) string {
	if d.waiting >= 0 {
		// It may have got the table, and now wait for a row.
		if n, err := d.txs[d.waiting].Resume(); !errors.Is(err, ErrBlocked) {
			conn := d.waiting
			d.waiting = -1
			if failure := d.both(conn, "goes on", outcome(n, err), <-d.result); failure != "" {
				return failure
			}
		}
	}
	p := d.model
	if model, actual := looks(p, nil, !p.Busy()), d.server.look(observer, !p.Busy()); model != actual {
		return fmt.Sprintf("seen from outside: by the model %q, by the server %q", model, actual)
	}
	since := d.seen[s.since%len(d.seen)]
	r, err := d.server.log.Poll(d.server.t.Context(), since, s.limit)
	if model, actual := polled(p.Poll(since, s.limit), nil), polled(r, err); model != actual {
		return fmt.Sprintf("poll since %s, at most %d:\nmodel  %s\nserver %s", since, s.limit, model, actual)
	}
	d.seen = append(d.seen, r.Snapshot)
	return ""
}

// shrink leaves out steps as long as the schedule fails without them.
func shrink(ctx context.Context, s *server, steps []step) ([]step, string, []string) {
	failure, trace := run(s, steps)
	for size := max(len(steps)/2, 1); size > 0; size /= 2 {
		for i := 0; i+size <= len(steps) && ctx.Err() == nil; {
			less := slices.Concat(steps[:i], steps[i+size:])
			if f, tr := run(s, less); f != "" {
				steps, failure, trace = less, f, tr
			} else {
				i += size
			}
		}
	}
	return steps, failure, trace
}

// Seeded schedules of concurrent transactions on the model and on the server: all that each statement,
// each snapshot and each poll says is the same, to the transaction id.
func TestPostgresAgrees(t *testing.T) {
	s := openServer(t)
	for seed := *firstSeed; seed < *firstSeed+uint64(*schedules); seed++ {
		steps := randomSteps(seed, 60)
		failure, trace := run(s, steps)
		if failure == "" {
			continue
		}
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
		defer cancel()
		short, again, shortTrace := shrink(ctx, s, steps)
		if again == "" {
			t.Fatalf("seed %d, only once: %s\n%s", seed, failure, strings.Join(trace, "\n"))
		}
		t.Fatalf("seed %d, shrunk to %d steps:\n%s\n%s", seed, len(short), strings.Join(shortTrace, "\n"), again)
	}
}

// Schedules that chance makes too rarely, most of them of what a writer that waits holds and finds.
func TestPostgresDirected(t *testing.T) {
	s := openServer(t)
	at := func(conn int, actions ...action) (steps []step) {
		for _, a := range actions {
			steps = append(steps, step{action: a, conn: conn, key: 1, to: 3, row: product{1, 10}, limit: 1000})
		}
		return steps
	}
	// A row that is committed, and one that another transaction commits while the first is locked.
	there := at(0, doBegin, doInsert, doCommit, doBegin)
	meanwhile := at(2, doBegin, doInvalidate, doCommit)
	for name, steps := range map[string][][]step{
		"an update that waits has its id":        {there, at(0, doUpdate), at(1, doBegin, doUpdate), meanwhile, at(0, doCommit), at(1, doCommit)},
		"an insert that waits has its id":        {at(0, doBegin, doInsert), at(1, doBegin, doInsert), meanwhile, at(0, doRollback), at(1, doCommit)},
		"an upsert that waits has none":          {at(0, doBegin, doInsert), at(1, doBegin, doUpsert), meanwhile, at(0, doCommit), at(1, doCommit)},
		"an update does not find a row put anew": {there, at(0, doDelete, doInsert), at(1, doBegin, doUpdate), at(0, doCommit), at(1, doCommit)},
		"a delete does not find a row put anew":  {there, at(0, doDelete, doInsert), at(1, doBegin, doDelete), at(0, doCommit), at(1, doCommit)},
		"an upsert finds a row put anew":         {there, at(0, doDelete, doInsert), at(1, doBegin, doUpsert), at(0, doCommit), at(1, doCommit)},
		"an old snapshot does not see what TRUNCATE took": {
			at(0, doBegin, doInsert, doCommit), at(reader, doReaderBegin), at(0, doBegin, doTruncate, doCommit), at(reader, doReaderLook, doReaderEnd),
		},
		"an update does not find a row of a new key": {there, at(0, doRekey), at(1, doBegin, doUpdate), at(0, doCommit), at(1, doCommit)},
	} {
		if failure, trace := run(s, slices.Concat(steps...)); failure != "" {
			t.Errorf("%s:\n%s\n%s", name, strings.Join(trace, "\n"), failure)
		}
	}
}
