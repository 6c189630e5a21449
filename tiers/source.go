package tiers

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"sync"

	"github.com/jmoiron/sqlx"
	"github.com/jmoiron/sqlx/reflectx"
	"github.com/lib/pq"
	"google.golang.org/protobuf/encoding/protojson"

	"github.com/freshet-cache/freshet/coherence"
)

// Batch is what a source knows of some ids.
type Batch[V any] struct {
	// Snapshot: the values are the state at this snapshot, or later. Without a timeline nothing is
	// proven of them: they are neither FRESH nor kept.
	Snapshot coherence.Snapshot
	// After is a poll that was sent after the values were read, so that it has seen all that they may
	// reflect. nil: they are exactly the state at Snapshot.
	After *coherence.Poll
	// Values: id -> value. An id that was asked for and is not here does not exist.
	Values map[string]V
}

// Source loads values from where they are authoritative.
type Source[V any] interface {
	// Load returns what there is of the ids. It must not return values older than its call: from a
	// replica of the database, say. An error is about all of the ids. It may be called concurrently.
	Load(ctx context.Context, ids []string) (Batch[V], error)
}

// statement is SQL prepared at its first use: Postgres may be down when a cache is made. lib/pq is
// several times slower without preparation.
type statement struct {
	db   *sqlx.DB
	text string

	mu   sync.Mutex
	stmt *sqlx.Stmt // nil until prepared
}

func (s *statement) prepare(ctx context.Context) (*sqlx.Stmt, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.stmt == nil {
		stmt, err := s.db.PreparexContext(ctx, s.text)
		if err != nil {
			return nil, fmt.Errorf("tiers: prepare the query of a source: %w", err)
		}
		s.stmt = stmt
	}
	return s.stmt, nil
}

// cachedPlan is the code of "cached plan must not change result type".
const cachedPlan = "0A000"

// outdated reports whether a prepared statement failed since a table of its query has changed. It is
// given up then, to be prepared anew.
func (s *statement) outdated(stmt *sqlx.Stmt, err error) bool {
	var answer *pq.Error
	if !errors.As(err, &answer) || answer.Code != cachedPlan {
		return false
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.stmt == stmt {
		// Not closed: others may be about to use it. It goes with its connections.
		s.stmt = nil
	}
	return true
}

func (s *statement) close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.stmt == nil {
		return nil
	}
	return s.stmt.Close()
}

// SQLSource loads entities by one query whose parameter $1 is the array of ids and which returns a
// column named id. The snapshot comes from the same statement, so it is exactly that of the rows.
type SQLSource[V any] struct {
	statement
	mapper *reflectx.Mapper
	// whole: V is not a struct of columns; the query returns id and one more column, scanned into V.
	whole bool
}

// NewSQLSource makes a source of the query. V is a struct whose fields are matched to columns as sqlx
// does it (db tags), or a type that one column scans into.
func NewSQLSource[V any](db *sqlx.DB, query string) (*SQLSource[V], error) {
	query = strings.TrimRight(strings.TrimSpace(query), "; \t\n")
	if query == "" || !strings.Contains(query, "$1") {
		return nil, fmt.Errorf("tiers: source query %.100q: want a select with $1 as the array of ids", query)
	}
	t := reflect.TypeFor[V]()
	var v V
	_, scans := any(&v).(sql.Scanner)
	return &SQLSource[V]{
		statement: statement{db: db, text: `
select freshet.current_timeline(), pg_current_snapshot()::text, q.*
  from (select 1) one left join lateral (select true as freshet_found, q.* from (` + query + `
) q) q on true`},
		mapper: db.Mapper,
		whole:  scans || t.Kind() != reflect.Struct,
	}, nil
}

// headColumns are the columns in front of the query's own: timeline, snapshot, found.
const headColumns = 3

// Load implements [Source].
func (s *SQLSource[V]) Load(ctx context.Context, ids []string) (Batch[V], error) {
	for again := true; ; again = false {
		stmt, err := s.prepare(ctx)
		if err != nil {
			return Batch[V]{}, err
		}
		batch, err := s.query(ctx, stmt, ids)
		if !again || !s.outdated(stmt, err) {
			return batch, err
		}
	}
}

func (s *SQLSource[V]) query(ctx context.Context, stmt *sqlx.Stmt, ids []string) (Batch[V], error) {
	rows, err := stmt.QueryxContext(ctx, pq.StringArray(ids))
	if err != nil {
		return Batch[V]{}, fmt.Errorf("tiers: source query: %w", err)
	}
	defer rows.Close()
	columns, err := rows.Columns()
	if err != nil {
		return Batch[V]{}, fmt.Errorf("tiers: source query: %w", err)
	}
	scan, err := s.plan(columns[headColumns:])
	if err != nil {
		return Batch[V]{}, err
	}
	batch := Batch[V]{Values: make(map[string]V, len(ids))}
	var timeline int64
	var snapshot string
	var found sql.NullBool
	var id idText
	look := make([]any, len(columns)) // the head and the id; when nothing was found, the rest is null
	look[0], look[1], look[2] = &timeline, &snapshot, &found
	for i := range columns[headColumns:] {
		look[headColumns+i] = skipped{}
	}
	look[headColumns+scan.id] = &id
	into := slices.Clone(look)
	for rows.Next() {
		if err := rows.Scan(look...); err != nil {
			return Batch[V]{}, fmt.Errorf("tiers: source query: %w", err)
		}
		if !found.Bool {
			break // no rows: the one row of the left join
		}
		var v V
		scan.targets(&v, into[headColumns:])
		if err := rows.Scan(into...); err != nil {
			return Batch[V]{}, fmt.Errorf("%w %T: %w", errRow, v, err)
		}
		batch.Values[string(id)] = v
	}
	if err := rows.Err(); err != nil {
		return Batch[V]{}, fmt.Errorf("tiers: source query: %w", err)
	}
	batch.Snapshot, err = coherence.ParseSnapshot(uint64(timeline), snapshot)
	return batch, err
}

// errRow: one row of the query cannot be a V.
var errRow = errors.New("tiers: a row of the source query is no")

// idText is a column's value as the text by which the application names the entity.
type idText string

// Scan implements [sql.Scanner].
func (t *idText) Scan(v any) error {
	switch v := v.(type) {
	case []byte:
		*t = idText(v)
	case string:
		*t = idText(v)
	default:
		*t = idText(fmt.Sprint(v))
	}
	return nil
}

// skipped is where a column goes that is not wanted.
type skipped struct{}

// Scan implements [sql.Scanner].
func (skipped) Scan(any) error { return nil }

// Close gives up the prepared query.
func (s *SQLSource[V]) Close() error { return s.close() }

// scanPlan says which column goes where.
type scanPlan[V any] struct {
	id     int     // the column named id
	fields [][]int // column -> field of V; nil = the column is not a field
	whole  int     // the column that is V itself; -1 = V is a struct of columns
}

func (s *SQLSource[V]) plan(columns []string) (scanPlan[V], error) {
	p := scanPlan[V]{id: -1, whole: -1}
	for i, name := range columns {
		if name == "id" && p.id < 0 {
			p.id = i
		}
	}
	if p.id < 0 {
		return p, fmt.Errorf("tiers: source query returns the columns %v: want one named id", columns)
	}
	if s.whole {
		if len(columns) != 2 {
			return p, fmt.Errorf("tiers: source query returns the columns %v: want id and one that scans into %T", columns, *new(V))
		}
		p.whole = 1 - p.id
		return p, nil
	}
	p.fields = s.mapper.TraversalsByName(reflect.TypeFor[V](), columns)
	for i, path := range p.fields {
		if len(path) == 0 && i != p.id {
			return p, fmt.Errorf("tiers: source query returns the column %q, which is no field of %T", columns[i], *new(V))
		}
	}
	return p, nil
}

// targets sets where each of the query's columns is scanned, for one row.
func (p *scanPlan[V]) targets(v *V, into []any) {
	if p.whole >= 0 {
		into[p.whole] = v
		return
	}
	dest := reflect.ValueOf(v).Elem()
	for i, path := range p.fields {
		if len(path) == 0 {
			continue // the id, of a V that has no such field
		}
		into[i] = reflectx.FieldByIndexes(dest, path).Addr().Interface()
	}
}

// FuncSource loads by a function. Since nobody knows when it reads, the snapshot is that of a barrier
// before it starts: the values are the state at that snapshot or later. A second barrier, when it has
// returned, makes known what the values may reflect beyond: nothing older is served after them, and
// the token of their reader covers them.
type FuncSource[V any] struct {
	Tracker *coherence.Tracker
	Func    func(ctx context.Context, ids []string) (map[string]V, error)
}

// Load implements [Source].
func (s FuncSource[V]) Load(ctx context.Context, ids []string) (Batch[V], error) {
	before, err := s.Tracker.Barrier(ctx)
	if err != nil {
		return Batch[V]{}, err
	}
	values, err := s.Func(ctx, ids)
	if err != nil {
		return Batch[V]{}, err
	}
	after, err := s.Tracker.Barrier(ctx)
	return Batch[V]{Snapshot: before.Snapshot, After: after, Values: values}, err
}

// QuerySource loads results of queries: an id is the text of a query's parameters, and the query
// returns one row of one JSON column, as encoding/json reads it, or protojson if V is a message.
type QuerySource[V any] struct {
	db *sqlx.DB
	// query gives the SQL and its arguments for an id.
	query func(id string) (string, []any, error)
	// read makes a V of the JSON.
	read func(result []byte, v *V) error

	mu         sync.Mutex
	statements map[string]*statement // SQL text -> prepared
}

// maxStatements bounds the prepared texts of one QuerySource; those beyond it run unprepared.
const maxStatements = 128

// NewQuerySource makes a source whose SQL text and arguments the function gives. Texts should be few:
// each is prepared once per connection.
func NewQuerySource[V any](db *sqlx.DB, query func(id string) (string, []any, error)) *QuerySource[V] {
	s := &QuerySource[V]{db: db, query: query, statements: map[string]*statement{}}
	s.read = func(result []byte, v *V) error { return json.Unmarshal(result, v) }
	if message, err := messageOf[V](); err == nil {
		s.read = func(result []byte, v *V) error {
			m := message.New().Interface()
			*v, _ = m.(V)
			return protojson.Unmarshal(result, m)
		}
	}
	return s
}

// Load implements [Source]. Several ids are read in one transaction: their results are of one snapshot.
func (s *QuerySource[V]) Load(ctx context.Context, ids []string) (Batch[V], error) {
	if len(ids) == 1 {
		return s.loadAll(ids, func(text string, args []any) (coherence.Snapshot, []byte, error) { return s.run(ctx, text, args) })
	}
	for again := true; ; again = false {
		tx, err := BeginSQL(ctx, s.db, nil)
		if err != nil {
			return Batch[V]{}, err
		}
		batch, err := s.LoadIn(ctx, tx, ids)
		tx.End()
		if !again || !planChanged(err) {
			return batch, err
		}
	}
}

// loadAll runs the query of each id, all under one snapshot.
func (s *QuerySource[V]) loadAll(ids []string, run func(text string, args []any) (coherence.Snapshot, []byte, error)) (Batch[V], error) {
	batch := Batch[V]{Values: make(map[string]V, len(ids))}
	for _, id := range ids {
		text, args, err := s.query(id)
		if err != nil {
			return Batch[V]{}, err
		}
		at, result, err := run(text, args)
		if err != nil {
			return Batch[V]{}, err
		}
		batch.Snapshot = at
		if result == nil {
			continue
		}
		var v V
		if err := s.read(result, &v); err != nil {
			return Batch[V]{}, fmt.Errorf("tiers: query: its column is not JSON of %T: %w", v, err)
		}
		batch.Values[id] = v
	}
	return batch, nil
}

// run returns the snapshot and the column of the text's one row; nil if there is none.
func (s *QuerySource[V]) run(ctx context.Context, text string, args []any) (coherence.Snapshot, []byte, error) {
	st, kept := s.statement(text)
	if !kept {
		return scanResult(s.db.QueryRowxContext(ctx, st.text, args...))
	}
	for again := true; ; again = false {
		stmt, err := st.prepare(ctx)
		if err != nil {
			return coherence.Snapshot{}, nil, err
		}
		at, result, err := scanResult(stmt.QueryRowxContext(ctx, args...))
		if !again || !st.outdated(stmt, err) {
			return at, result, err
		}
	}
}

// statement is that of the text, and whether it is kept.
func (s *QuerySource[V]) statement(text string) (st *statement, kept bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if st, kept = s.statements[text]; kept {
		return st, true
	}
	st = &statement{db: s.db, text: `select freshet.current_timeline(), pg_current_snapshot()::text, (` +
		strings.TrimRight(strings.TrimSpace(text), "; \t\n") + `
)`}
	if len(s.statements) < maxStatements {
		s.statements[text], kept = st, true
	}
	return st, kept
}

func scanResult(row *sqlx.Row) (coherence.Snapshot, []byte, error) {
	var timeline int64
	var snapshot string
	var result []byte
	if err := row.Scan(&timeline, &snapshot, &result); err != nil {
		return coherence.Snapshot{}, nil, fmt.Errorf("tiers: query: %w", err)
	}
	at, err := coherence.ParseSnapshot(uint64(timeline), snapshot)
	return at, result, err
}

// Close gives up the prepared queries.
func (s *QuerySource[V]) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	var errs []error
	for _, st := range s.statements {
		errs = append(errs, st.close())
	}
	return errors.Join(errs...)
}
