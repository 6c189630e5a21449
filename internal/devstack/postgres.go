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
	"slices"
	"strconv"
	"strings"
	"sync"
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
wal_keep_size = 64MB
wal_retrieve_retry_interval = 100ms
dynamic_shared_memory_type = mmap
log_line_prefix = '%%m [%%p] '
timezone = 'UTC'
log_timezone = 'UTC'
`

// Postgres is one private Postgres server with its own data, and, when asked
// for, an asynchronous standby that can take its place: see [Postgres.Standby].
// What is said of the server is about the primary of the moment.
type Postgres struct {
	site     *site
	program  postgresProgram
	initdb   *process
	password string

	// changing is held while standbys come and go.
	changing sync.Mutex

	mu      sync.Mutex
	primary *postgresServer
	standby *postgresServer // nil = none
	link    *Proxy          // from the standby to the primary; nil without a standby
	proxies []*Proxy        // of clients, to the primary
	made    int             // servers so far
}

// postgresServer is one server program with its data folder.
type postgresServer struct {
	process *process
	port    int    // offset in the stack's block
	data    string // the data folder
}

func newPostgres(s *site, program postgresProgram) (*Postgres, error) {
	p := &Postgres{site: s, program: program, password: rand.Text()}
	server, err := p.newServer(postgresPort)
	if err != nil {
		return nil, err
	}
	p.primary = server
	dir := filepath.Dir(server.data)
	secret := filepath.Join(dir, "password")
	if err := s.write(secret, p.password+"\n"); err != nil {
		return nil, err
	}
	p.initdb = &process{site: s, name: "initdb", path: program.initdb, dir: dir, args: []string{
		"--pgdata=" + server.data, "--username=" + postgresUser, "--pwfile=" + secret,
		"--auth=scram-sha-256", "--encoding=UTF8", "--locale=C", "--no-sync",
	}}
	return p, nil
}

// newServer makes the folder of another server: postgres, postgres-2, and so on.
func (p *Postgres) newServer(port int) (*postgresServer, error) {
	p.made++
	name := "postgres"
	if p.made > 1 {
		name += "-" + strconv.Itoa(p.made)
	}
	dir, err := p.site.mkdir(name)
	if err != nil {
		return nil, err
	}
	data := filepath.Join(dir, "data")
	return &postgresServer{port: port, data: data, process: &process{
		site: p.site, name: name, path: p.program.server, dir: dir,
		args: []string{"-D", data, "-c", "port=" + strconv.Itoa(p.site.ports.port(port))},
	}}, nil
}

// server returns the primary of the moment.
func (p *Postgres) server() *postgresServer {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.primary
}

func (s *postgresServer) addr() string { return s.process.site.ports.addr(s.port) }

// bootstrap makes the data folder, starts the server and creates the database.
func (p *Postgres) bootstrap(ctx context.Context) error {
	ctx, cancel := p.site.within(ctx, readyLimit)
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
	server := p.server()
	port := p.site.ports.port(server.port)
	socket := filepath.Dir(server.data)
	if len(filepath.Join(socket, ".s.PGSQL."+strconv.Itoa(port))) > socketPathLimit || strings.ContainsAny(socket, `',"\`) {
		socket = "" // none
	}
	f, err := os.OpenFile(filepath.Join(server.data, "postgresql.conf"), os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		return fmt.Errorf("devstack: postgres: %w", err)
	}
	_, err = fmt.Fprintf(f, postgresSettings, loopback, port, socket)
	if err := errors.Join(err, f.Close()); err != nil {
		return fmt.Errorf("devstack: postgres: %w", err)
	}
	return nil
}

// DSN returns the address of the database "freshet" as a URL for lib/pq and
// psql. It names the superuser of this private server, with the password, and
// stays the same for the life of the stack or until [Postgres.Failover].
func (p *Postgres) DSN() string { return p.dsn(postgresDatabase) }

// Addr returns the primary's address, host:port.
func (p *Postgres) Addr() string { return p.server().addr() }

func (p *Postgres) dsn(database string) string { return p.DSNVia(p.Addr(), database) }

// DSNVia returns the address of a database by way of an address, host:port, that
// leads to the server, such as that of a proxy.
func (p *Postgres) DSNVia(addr, database string) string {
	u := url.URL{
		Scheme: "postgres",
		User:   url.UserPassword(postgresUser, p.password),
		Host:   addr,
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
// primary's maintenance database.
func (p *Postgres) exec(ctx context.Context, statements ...string) (err error) {
	return p.execOn(ctx, p.server(), statements...)
}

func (p *Postgres) execOn(ctx context.Context, s *postgresServer, statements ...string) (err error) {
	db, err := sql.Open("postgres", p.DSNVia(s.addr(), "postgres"))
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
func (p *Postgres) Stop() error { return p.server().process.stop(syscall.SIGINT, stopLimit) }

// Kill ends the server and all its backends with SIGKILL and returns when they
// are gone. Committed transactions survive. Killing a stopped server does
// nothing.
func (p *Postgres) Kill() error { return p.server().process.kill() }

// Pause freezes every process of the server. Its connections stay open, and the
// kernel still accepts new ones, but nothing answers. Pausing a stopped server
// is an error.
func (p *Postgres) Pause() error { return p.server().process.pause() }

// Resume ends Pause. It does nothing to a server that runs; resuming a stopped
// one is an error.
func (p *Postgres) Resume() error { return p.server().process.unpause() }

// Start starts a stopped or killed server on the same port and data, and
// returns when it has recovered and answers a query. A server that runs is
// resumed if paused, and waited for. Start gives up when ctx ends, after 30 s,
// or when the stack is closed, and leaves the server as it is then.
func (p *Postgres) Start(ctx context.Context) error { return p.startServer(ctx, p.server()) }

func (p *Postgres) startServer(ctx context.Context, s *postgresServer) error {
	ctx, cancel := p.site.within(ctx, readyLimit)
	defer cancel()
	r, err := s.process.start()
	if err != nil {
		return err
	}
	return s.process.ready(ctx, r, func(ctx context.Context) error {
		ctx, cancel := context.WithTimeout(ctx, probeLimit)
		defer cancel()
		return p.execOn(ctx, s, "select 1")
	})
}

// end stops the servers for good, and the proxies.
func (p *Postgres) end() error {
	if err := p.initdb.kill(); err != nil {
		return err
	}
	p.changing.Lock() // what held it was interrupted by the end of the stack
	defer p.changing.Unlock()
	p.mu.Lock()
	servers := []*postgresServer{p.primary, p.standby}
	proxies := append(slices.Clone(p.proxies), p.link)
	p.mu.Unlock()
	for _, proxy := range proxies {
		if proxy != nil {
			proxy.Close()
		}
	}
	errs := make([]error, len(servers))
	var g sync.WaitGroup
	for i, s := range servers {
		if s != nil {
			g.Go(func() { errs[i] = s.end() })
		}
	}
	g.Wait()
	return errors.Join(errs...)
}

// end stops the server for good. In the immediate mode it drops everything but
// frees its shared memory.
func (s *postgresServer) end() error {
	r, err := s.process.ask(syscall.SIGQUIT)
	if err != nil {
		return err
	}
	if r != nil {
		select {
		case <-r.done:
		case <-time.After(immediateLimit):
		}
	}
	return errors.Join(s.process.kill(), s.freeSharedMemory())
}

// freeSharedMemory removes the segment of System V shared memory by which
// Postgres recognises a second server on its data folder, and which it cannot
// remove when it is killed. Line 7 of its lock file names it: "key id".
func (s *postgresServer) freeSharedMemory() error {
	f, err := os.Open(filepath.Join(s.data, "postmaster.pid"))
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
