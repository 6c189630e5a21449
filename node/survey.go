package node

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jmoiron/sqlx"
	"github.com/lib/pq"

	"github.com/freshet-cache/freshet/coherence"
	"github.com/freshet-cache/freshet/tiers"
)

const (
	// maxSurveys bounds the surveys of one node under way; others wait.
	maxSurveys = 4
	// A survey of Postgres takes at most surveyTimeout, on a connection of its own on which nothing waits for an
	// answer longer than surveyRead.
	surveyTimeout, surveyRead = 4 * time.Second, 2 * time.Second
)

// RedisSurvey is what the servers of the Redis Cluster say of themselves and of each other.
type RedisSurvey = tiers.Survey

// RedisServer is one of them.
type RedisServer = tiers.ServerState

// surveyor is the shared tier as a survey needs it. [*tiers.L2] is the real one.
type surveyor interface {
	Survey(ctx context.Context) tiers.Survey
}

// Redis asks every server of the Redis Cluster, replicas too, within 3 s, over connections of its own. A server
// that does not answer is in the survey, with the reason. Without Redis there is no server in it.
func (n *Node) Redis(ctx context.Context) (RedisSurvey, error) {
	s, ok := n.parts.L2.(surveyor)
	if !ok {
		return RedisSurvey{State: "none", Servers: []RedisServer{}}, nil
	}
	end, err := n.survey(ctx)
	if err != nil {
		return RedisSurvey{}, err
	}
	defer end()
	return s.Survey(ctx), nil
}

// survey waits until one may begin, for no longer than one takes; end ends it.
func (n *Node) survey(ctx context.Context) (end func(), err error) {
	ctx, cancel := context.WithTimeout(ctx, surveyTimeout)
	defer cancel()
	select {
	case n.surveys <- struct{}{}:
		return func() { <-n.surveys }, nil
	case <-ctx.Done():
		return nil, fmt.Errorf("node: %d surveys are under way: %w", maxSurveys, ErrOverloaded)
	}
}

// PostgresSurvey is what Postgres says of itself, and of what Freshet has there. What it does not say is zero, and
// Problems say why. It is made for JSON.
type PostgresSurvey struct {
	// Answers is false if Postgres gave no answer at all; all else is then zero.
	Answers bool `json:"answers"`
	// Problems name the parts that could not be had; none = all of them could.
	Problems []string `json:"problems"`

	Version  string    `db:"version" json:"version"`
	Database string    `db:"database" json:"database"`
	Primary  bool      `db:"is_primary" json:"primary"` // it takes writes
	Started  time.Time `db:"started" json:"started"`
	// Connections are those of all databases, of MaxConnections.
	Connections    int64 `db:"connections" json:"connections"`
	MaxConnections int64 `db:"max_connections" json:"max_connections"`
	// OldestTransaction is for how many seconds the oldest transaction of any database has been open: as long as it
	// is, the log keeps what it wrote as unseen. Of other roles' the user sees it with pg_read_all_stats only.
	OldestTransaction float64 `db:"oldest_transaction" json:"oldest_transaction_seconds"`

	// Schema is the version of the schema freshet, WantedSchema that of this build of the library.
	Schema       int64 `json:"schema_version"`
	WantedSchema int64 `json:"wanted_schema_version"`
	// Timeline names one unbroken history of transaction ids, in decimal; "0" = none has begun, as on a standby. A
	// new one makes every replica look at all it has as changed.
	Timeline string    `json:"timeline"`
	Log      LogSurvey `json:"log"`

	// Clients are the connections to this database, by application_name, at most 50 names.
	Clients []PostgresClients `json:"clients"`
	// Standbys are attached to this primary, at most 50.
	Standbys []PostgresStandby `json:"standbys"`
}

// LogSurvey describes the table freshet.log.
type LogSurvey struct {
	Bytes int64 `db:"bytes" json:"bytes"` // with its indexes
	Rows  int64 `db:"rows" json:"rows"`   // an estimate
	// Oldest is how old the row of the oldest transaction is, in seconds; 0 if there is none.
	Oldest float64 `db:"oldest" json:"oldest_seconds"`
	// Horizon is a transaction id, in decimal: all rows below it may be gone. HorizonNext is how long ago, in
	// seconds, the one that replaces it was taken.
	Horizon     string  `db:"horizon" json:"horizon"`
	HorizonNext float64 `db:"horizon_next" json:"horizon_next_seconds"`
}

// PostgresClients are the connections of one application_name: of a node freshet-log, freshet-load and freshet-APP.
type PostgresClients struct {
	Application string `db:"application" json:"application"`
	Connections int64  `db:"connections" json:"connections"`
	Active      int64  `db:"active" json:"active"` // that run a statement
	InWait      int64  `db:"in_wait" json:"idle_in_transaction"`
}

// PostgresStandby is a server that replicates the primary.
type PostgresStandby struct {
	Application string `db:"application" json:"application"`
	State       string `db:"state" json:"state"`
	Sync        string `db:"sync" json:"sync"`
	// Lag is how long ago the primary wrote what it has replayed last, in seconds, and Behind the bytes between.
	Lag    float64 `db:"lag" json:"lag_seconds"`
	Behind int64   `db:"behind" json:"behind_bytes"`
}

// Postgres asks the database, within some 5 s, over a connection of its own, so that it answers also when the
// others are all in use. What could not be had, for want of a right or of an answer, is among the survey's Problems.
// The error says that the node has no Postgres, or too many surveys under way.
func (n *Node) Postgres(ctx context.Context) (PostgresSurvey, error) {
	s := PostgresSurvey{
		Problems: []string{}, WantedSchema: coherence.SchemaVersion(), Clients: []PostgresClients{}, Standbys: []PostgresStandby{},
	}
	err := n.surveyPostgres(ctx, func(ctx context.Context, conn *sqlx.Conn) error {
		if err := conn.GetContext(ctx, &s, postgresServer); err != nil {
			return err
		}
		s.Answers = true
		for _, part := range []struct {
			name string
			get  func() error
		}{
			{"schema version", func() error { return conn.GetContext(ctx, &s.Schema, postgresSchema) }},
			{"timeline", func() error { return conn.GetContext(ctx, &s.Timeline, `select freshet.current_timeline()::text`) }},
			{"log", func() error { return conn.GetContext(ctx, &s.Log, postgresLog) }},
			{"clients", func() error { return conn.SelectContext(ctx, &s.Clients, postgresClients) }},
			{"standbys", func() error { return conn.SelectContext(ctx, &s.Standbys, postgresStandbys) }},
		} {
			if err := part.get(); err != nil {
				s.Problems = append(s.Problems, part.name+": "+err.Error())
			}
		}
		return nil
	})
	if errors.Is(err, errNoAnswer) {
		s.Problems, err = append(s.Problems, err.Error()), nil
	}
	return s, err
}

// WatchedTable is a table that freshet.watch watches: its changes are those of the namespace's entities, and of the
// tags.
type WatchedTable struct {
	Table     string         `db:"relation" json:"table"`
	Namespace string         `db:"namespace" json:"namespace"`
	ID        pq.StringArray `db:"id" json:"id"`     // the columns of the id; none = not known
	Tags      pq.StringArray `db:"tags" json:"tags"` // as they were given to freshet.watch; none, too, = not known
}

// Watches lists the tables that tell of their changes, at most 1,000, in the order of their names. Whether they do
// is in [Stats]. It asks Postgres as [Node.Postgres] does; the error says why there is no answer.
func (n *Node) Watches(ctx context.Context) ([]WatchedTable, error) {
	tables := []WatchedTable{}
	err := n.surveyPostgres(ctx, func(ctx context.Context, conn *sqlx.Conn) error {
		return conn.SelectContext(ctx, &tables, `
select w.relation::text as relation, w.namespace, coalesce(w.id, '{}') as id, coalesce(w.tags, '{}') as tags
  from freshet.watches w order by 1 limit 1000`)
	})
	return tables, err
}

// errNoAnswer says that Postgres was asked and did not answer.
var errNoAnswer = errors.New("no answer from Postgres")

// surveyPostgres runs the questions on a connection of their own, for a bounded time. The first that gets no answer
// ends it.
func (n *Node) surveyPostgres(ctx context.Context, questions func(ctx context.Context, conn *sqlx.Conn) error) error {
	fail := func(err error) error { return &Error{Op: "survey of Postgres", Err: err} }
	if n.parts.Loads == nil {
		return fail(errors.New("this node has none"))
	}
	end, err := n.survey(ctx)
	if err != nil {
		return fail(err)
	}
	defer end()
	ctx, cancel := context.WithTimeout(ctx, surveyTimeout)
	defer cancel()
	pool, err := coherence.OpenPool(coherence.PoolConfig{
		DSN: n.config.Postgres.DSN, MaxConns: 1, ReadTimeout: surveyRead, ConnectTimeout: time.Second,
		Runtime: map[string]string{"application_name": "freshet-admin", "statement_timeout": "2000"},
	})
	if err != nil {
		return fail(err)
	}
	defer pool.Close()
	conn, err := pool.Connx(ctx)
	if err == nil {
		defer conn.Close()
		err = questions(ctx, conn)
	}
	if err != nil {
		return fail(fmt.Errorf("%w: %w", errNoAnswer, err))
	}
	return nil
}

const (
	postgresServer = `
select current_setting('server_version') as version, current_database() as database, not pg_is_in_recovery() as is_primary,
       pg_postmaster_start_time() as started,
       (select count(*) from pg_stat_activity where backend_type = 'client backend') as connections,
       current_setting('max_connections')::bigint as max_connections,
       coalesce(extract(epoch from clock_timestamp() - least(
           (select min(a.xact_start) from pg_stat_activity a where a.pid <> pg_backend_pid() and a.backend_type = 'client backend'),
           (select min(p.prepared) from pg_prepared_xacts p)))::float8, 0) as oldest_transaction`

	postgresSchema = `select coalesce(max(version_id) filter (where is_applied), 0) from freshet.migrations`

	// The rows are those that vacuum or statistics know of, without reading the table.
	postgresLog = `
select pg_total_relation_size('freshet.log') as bytes,
       greatest(pg_stat_get_live_tuples('freshet.log'::regclass), c.reltuples::bigint, 0) as rows,
       coalesce(extract(epoch from clock_timestamp() - (select l.at from freshet.log l order by l.xid limit 1))::float8, 0) as oldest,
       pg_snapshot_xmin(h.kept_from)::text as horizon,
       extract(epoch from clock_timestamp() - h.next_at)::float8 as horizon_next
  from freshet.horizon h, pg_class c where c.oid = 'freshet.log'::regclass`

	postgresClients = `
select coalesce(a.application_name, '') as application, count(*) as connections,
       count(*) filter (where a.state = 'active') as active,
       count(*) filter (where a.state like 'idle in transaction%') as in_wait
  from pg_stat_activity a
 where a.datname = current_database() and a.backend_type = 'client backend' and a.pid <> pg_backend_pid()
 group by 1 order by 2 desc, 1 limit 50`

	postgresStandbys = `
select coalesce(r.application_name, '') as application, coalesce(r.state, '') as state, coalesce(r.sync_state, '') as sync,
       coalesce(extract(epoch from r.replay_lag)::float8, 0) as lag,
       coalesce(pg_wal_lsn_diff(case when pg_is_in_recovery() then pg_last_wal_receive_lsn() else pg_current_wal_lsn() end,
           r.replay_lsn)::bigint, 0) as behind
  from pg_stat_replication r order by 1, 2 limit 50`
)
