package coherence

import (
	"cmp"
	"context"
	"database/sql"
	"embed"
	"fmt"
	"io/fs"
	"maps"
	"net"
	"path"
	"slices"
	"sync/atomic"
	"time"

	"github.com/jmoiron/sqlx"
	"github.com/lib/pq"
	"github.com/pressly/goose/v3"
	"github.com/pressly/goose/v3/lock"
)

//go:embed migrations/*.sql
var migrations embed.FS

// Migrate brings the schema freshet of the database to this version of the library. It is safe to
// run from several processes at once, and does nothing when there is nothing to do. The role needs
// the right to create a schema.
func Migrate(ctx context.Context, db *sql.DB) error {
	return migrate(ctx, db, func(p *goose.Provider) error {
		_, err := p.Up(ctx)
		return err
	})
}

// SchemaVersion is that of the schema that [Migrate] brings about: the number of its last migration.
func SchemaVersion() int64 {
	names, err := fs.Glob(migrations, "migrations/*.sql")
	if err != nil || len(names) == 0 { // cannot be: they are embedded
		return 0
	}
	version, err := goose.NumericComponent(path.Base(slices.Max(names)))
	if err != nil { // likewise
		return 0
	}
	return version
}

// migrate is Migrate with what the provider of the migrations is to do.
func migrate(ctx context.Context, db *sql.DB, do func(*goose.Provider) error) error {
	if _, err := db.ExecContext(ctx, `create schema if not exists freshet`); err != nil && !exists(ctx, db) {
		return fmt.Errorf("coherence: create schema freshet: %w", err)
	}
	steps, err := fs.Sub(migrations, "migrations")
	if err != nil {
		return fmt.Errorf("coherence: embedded migrations: %w", err)
	}
	locker, err := lock.NewPostgresSessionLocker(lock.WithLockTimeout(1, 60))
	if err != nil {
		return fmt.Errorf("coherence: migration lock: %w", err)
	}
	provider, err := goose.NewProvider(goose.DialectPostgres, db, steps,
		goose.WithTableName("freshet.migrations"), goose.WithSessionLocker(locker), goose.WithDisableGlobalRegistry(true))
	if err != nil {
		return fmt.Errorf("coherence: migrations: %w", err)
	}
	if err := do(provider); err != nil {
		return fmt.Errorf("coherence: migrate: %w", err)
	}
	return nil
}

// exists reports whether the schema is there: two processes that create it at once may both fail to
// see it and one of them then fails on its unique name.
func exists(ctx context.Context, db *sql.DB) bool {
	var there bool
	err := db.QueryRowContext(ctx, `select exists (select from pg_namespace where nspname = 'freshet')`).Scan(&there)
	return err == nil && there
}

// PoolConfig describes a pool of connections to Postgres.
type PoolConfig struct {
	DSN string // lib/pq URL or key=value text; required
	// MaxConns bounds the open connections; 0 = 16.
	MaxConns int
	// ReadTimeout bounds the wait for each answer of the server, on the socket, so that a server that
	// is stopped or cut off cannot hold a caller for ever; 0 = 60 s.
	ReadTimeout time.Duration
	// ConnectTimeout bounds the dialling of one connection; 0 = 2 s.
	ConnectTimeout time.Duration
	// Runtime are server settings of every connection, such as statement_timeout.
	Runtime map[string]string

	// until, when it is set and holds a time, bounds all waits on the pool's sockets together.
	until *atomic.Pointer[time.Time]
}

// OpenPool prepares a pool. It does not connect: Postgres may be down. The error is about the DSN.
func OpenPool(c PoolConfig) (*sqlx.DB, error) {
	settings, err := pq.NewConfig(c.DSN)
	if err != nil {
		return nil, fmt.Errorf("coherence: postgres DSN: %w", err)
	}
	settings.Runtime = maps.Clone(settings.Runtime)
	if settings.Runtime == nil {
		settings.Runtime = map[string]string{}
	}
	maps.Copy(settings.Runtime, c.Runtime)
	settings.ConnectTimeout = cmp.Or(c.ConnectTimeout, 2*time.Second)
	connector, err := pq.NewConnectorConfig(settings)
	if err != nil {
		return nil, fmt.Errorf("coherence: postgres DSN: %w", err)
	}
	connector.Dialer(dialer{
		connect: cmp.Or(c.ConnectTimeout, 2*time.Second),
		read:    cmp.Or(c.ReadTimeout, time.Minute),
		until:   c.until,
	})
	db := sqlx.NewDb(sql.OpenDB(connector), "postgres")
	conns := cmp.Or(c.MaxConns, 16)
	db.SetMaxOpenConns(conns)
	db.SetMaxIdleConns(conns)
	db.SetConnMaxIdleTime(5 * time.Minute)
	return db, nil
}

// dialer makes connections on which no single read or write waits longer than a bound. lib/pq's own
// answer to a cancelled context is to ask the server to cancel and to go on waiting for it, for ever
// when the server is stopped.
type dialer struct {
	connect, read time.Duration
	until         *atomic.Pointer[time.Time] // nil = no bound over several waits
}

func (d dialer) Dial(network, address string) (net.Conn, error) {
	return d.DialTimeout(network, address, d.connect)
}

func (d dialer) DialTimeout(network, address string, timeout time.Duration) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	defer cancel()
	return d.DialContext(ctx, network, address)
}

func (d dialer) DialContext(ctx context.Context, network, address string) (net.Conn, error) {
	conn, err := (&net.Dialer{Timeout: d.connect}).DialContext(ctx, network, address)
	if err != nil {
		return nil, err
	}
	return &boundedConn{Conn: conn, bound: d.read, until: d.until}, nil
}

type boundedConn struct {
	net.Conn
	bound time.Duration
	until *atomic.Pointer[time.Time]
}

func (c *boundedConn) deadline() time.Time {
	deadline := time.Now().Add(c.bound)
	if c.until != nil {
		if until := c.until.Load(); until != nil && until.Before(deadline) {
			return *until
		}
	}
	return deadline
}

func (c *boundedConn) Read(b []byte) (int, error) {
	if err := c.SetReadDeadline(c.deadline()); err != nil {
		return 0, err
	}
	return c.Conn.Read(b)
}

func (c *boundedConn) Write(b []byte) (int, error) {
	if err := c.SetWriteDeadline(c.deadline()); err != nil {
		return 0, err
	}
	return c.Conn.Write(b)
}
