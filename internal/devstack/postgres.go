package devstack

import (
	"bufio"
	"context"
	"crypto/rand"
	"database/sql"
	"errors"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"time"

	_ "github.com/lib/pq" // the database/sql driver "postgres"
	"golang.org/x/sys/unix"
)

const (
	postgresUser     = "freshet"
	postgresDatabase = "freshet"

	// socketPathLimit is the longest path of a Unix socket that every system
	// takes (macOS 103 bytes, Linux 107).
	socketPathLimit = 103

	probeLimit = time.Second // for one question to a server that starts

	// immediateLimit is how long Close lets Postgres free its shared memory
	// itself before it kills it.
	immediateLimit = 3 * time.Second
)

// postgresSettings go to the end of postgresql.conf. fsync is off because what a
// stack keeps need not survive a crash of the operating system; commits still
// survive the death of Postgres itself, since the kernel holds its writes.
// Dynamic shared memory goes to files in the data folder, where a kill leaves
// nothing behind outside the stack's folder.
const postgresSettings = `
# Freshet's throw-away stack
listen_addresses = '%s'
port = %d
unix_socket_directories = '%s'
max_connections = 200
wal_level = replica
synchronous_commit = on
fsync = off
full_page_writes = off
dynamic_shared_memory_type = mmap
log_line_prefix = '%%m [%%p] '
timezone = 'UTC'
log_timezone = 'UTC'
`

// Postgres is one private Postgres server with its own data.
type Postgres struct {
	process  *process
	initdb   *process
	password string
	port     int
	data     string // the data folder
}

func newPostgres(s *site, program postgresProgram) (*Postgres, error) {
	dir, err := s.mkdir("postgres")
	if err != nil {
		return nil, err
	}
	p := &Postgres{password: rand.Text(), port: s.ports.port(postgresPort), data: filepath.Join(dir, "data")}
	secret := filepath.Join(dir, "password")
	if err := s.write(secret, p.password+"\n"); err != nil {
		return nil, err
	}
	p.initdb = &process{site: s, name: "initdb", path: program.initdb, dir: dir, args: []string{
		"--pgdata=" + p.data, "--username=" + postgresUser, "--pwfile=" + secret,
		"--auth=scram-sha-256", "--encoding=UTF8", "--locale=C", "--no-sync",
	}}
	p.process = &process{site: s, name: "postgres", path: program.server, dir: dir, args: []string{"-D", p.data}}
	return p, nil
}

// bootstrap makes the data folder, starts the server and creates the database.
func (p *Postgres) bootstrap(ctx context.Context) error {
	ctx, cancel := p.process.site.within(ctx, readyLimit)
	defer cancel()
	if err := p.initdb.finish(ctx); err != nil {
		return err
	}
	if err := p.configure(); err != nil {
		return err
	}
	if err := p.Start(ctx); err != nil {
		return err
	}
	if err := p.exec(ctx, "create database "+postgresDatabase+" template template0"); err != nil {
		return fmt.Errorf("devstack: postgres: create the database %q: %w", postgresDatabase, err)
	}
	return nil
}

func (p *Postgres) configure() error {
	socket := filepath.Dir(p.data)
	if len(filepath.Join(socket, ".s.PGSQL."+strconv.Itoa(p.port))) > socketPathLimit || strings.ContainsAny(socket, `',"\`) {
		socket = "" // none
	}
	f, err := os.OpenFile(filepath.Join(p.data, "postgresql.conf"), os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		return fmt.Errorf("devstack: postgres: %w", err)
	}
	_, err = fmt.Fprintf(f, postgresSettings, loopback, p.port, socket)
	if err := errors.Join(err, f.Close()); err != nil {
		return fmt.Errorf("devstack: postgres: %w", err)
	}
	return nil
}

// DSN returns the address of the database "freshet" as a URL for lib/pq and
// psql. It names the superuser of this private server, with the password, and
// stays the same for the life of the stack.
func (p *Postgres) DSN() string { return p.dsn(postgresDatabase) }

func (p *Postgres) dsn(database string) string {
	u := url.URL{
		Scheme: "postgres",
		User:   url.UserPassword(postgresUser, p.password),
		Host:   p.process.site.ports.addr(postgresPort),
		Path:   database,
		// The role's name is that of the library's schema, which "$user" would put before public.
		RawQuery: "sslmode=disable&search_path=public",
	}
	return u.String()
}

var databaseName = regexp.MustCompile(`^[a-z_][a-z0-9_]{0,62}$`)

// CreateDatabase creates an empty database for one test and returns its DSN. A
// database of that name is dropped first, with the connections to it, so that a
// test can run again (-count). The name must match [a-z_][a-z0-9_]{0,62} and not
// be one of the server's own: postgres, template0, template1, freshet.
func (p *Postgres) CreateDatabase(ctx context.Context, name string) (dsn string, err error) {
	if !databaseName.MatchString(name) {
		return "", fmt.Errorf("devstack: database name %q must be 1 to 63 of a-z, 0-9 and _, and not begin with a digit", name)
	}
	switch name {
	case "postgres", "template0", "template1", postgresDatabase:
		return "", fmt.Errorf("devstack: database name %q belongs to the server; choose another", name)
	}
	err = p.exec(ctx, `drop database if exists "`+name+`" with (force)`, `create database "`+name+`" template template0`)
	if err != nil {
		return "", fmt.Errorf("devstack: create database %q: %w", name, err)
	}
	return p.dsn(name), nil
}

// exec runs statements, one after the other, on a connection of its own to the
// maintenance database.
func (p *Postgres) exec(ctx context.Context, statements ...string) (err error) {
	db, err := sql.Open("postgres", p.dsn("postgres"))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, db.Close()) }()
	db.SetMaxOpenConns(1)
	for _, s := range statements {
		if _, err := db.ExecContext(ctx, s); err != nil {
			return err
		}
	}
	return nil
}

// Stop shuts the server down in its fast mode: open transactions are rolled
// back, connections closed, a checkpoint is written. A paused server is resumed
// first. Stop returns when the server has ended; one that has not after 10 s is
// killed, which is an error. Stopping a stopped server does nothing.
func (p *Postgres) Stop() error { return p.process.stop(syscall.SIGINT, stopLimit) }

// Kill ends the server and all its backends with SIGKILL and returns when they
// are gone. Committed transactions survive. Killing a stopped server does
// nothing.
func (p *Postgres) Kill() error { return p.process.kill() }

// Pause freezes every process of the server. Its connections stay open, and the
// kernel still accepts new ones, but nothing answers. Pausing a stopped server
// is an error.
func (p *Postgres) Pause() error { return p.process.pause() }

// Resume ends Pause. It does nothing to a server that runs; resuming a stopped
// one is an error.
func (p *Postgres) Resume() error { return p.process.unpause() }

// Start starts a stopped or killed server on the same port and data, and
// returns when it has recovered and answers a query. A server that runs is
// resumed if paused, and waited for. Start gives up when ctx ends, after 30 s,
// or when the stack is closed, and leaves the server as it is then.
func (p *Postgres) Start(ctx context.Context) error {
	ctx, cancel := p.process.site.within(ctx, readyLimit)
	defer cancel()
	r, err := p.process.start()
	if err != nil {
		return err
	}
	return p.process.ready(ctx, r, func(ctx context.Context) error {
		ctx, cancel := context.WithTimeout(ctx, probeLimit)
		defer cancel()
		return p.exec(ctx, "select 1")
	})
}

// end stops the server for good. In the immediate mode it drops everything but
// frees its shared memory.
func (p *Postgres) end() error {
	if err := p.initdb.kill(); err != nil {
		return err
	}
	r, err := p.process.ask(syscall.SIGQUIT)
	if err != nil {
		return err
	}
	if r != nil {
		select {
		case <-r.done:
		case <-time.After(immediateLimit):
		}
	}
	return errors.Join(p.process.kill(), p.freeSharedMemory())
}

// freeSharedMemory removes the segment of System V shared memory by which
// Postgres recognises a second server on its data folder, and which it cannot
// remove when it is killed. Line 7 of its lock file names it: "key id".
func (p *Postgres) freeSharedMemory() error {
	f, err := os.Open(filepath.Join(p.data, "postmaster.pid"))
	if errors.Is(err, os.ErrNotExist) {
		return nil // ended in order
	}
	if err != nil {
		return err
	}
	defer f.Close()
	lines := bufio.NewScanner(f)
	for n := 1; lines.Scan(); n++ {
		if n != 7 {
			continue
		}
		var key, id int
		if _, err := fmt.Sscan(lines.Text(), &key, &id); err != nil {
			return fmt.Errorf("%s line 7: %w", f.Name(), err)
		}
		// The segment is gone when another start has removed it already.
		if _, err := unix.SysvShmCtl(id, unix.IPC_RMID, nil); err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.EIDRM) {
			return fmt.Errorf("remove shared memory %d: %w", id, err)
		}
	}
	return lines.Err()
}
