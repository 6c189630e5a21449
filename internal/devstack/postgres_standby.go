package devstack

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"time"
)

// errNoStandby is what controls of the standby return without one.
var errNoStandby = errors.New("devstack: postgres: there is no standby: call Standby first")

// Proxy starts a proxy to the primary for one client: a service address, which
// [Postgres.Failover] leads to the new primary. It ends with its Close, or with
// the stack.
func (p *Postgres) Proxy() (*Proxy, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if err := context.Cause(p.site.life); err != nil {
		return nil, err
	}
	proxy, err := NewProxy(p.primary.addr())
	if err != nil {
		return nil, err
	}
	p.proxies = slices.DeleteFunc(p.proxies, func(o *Proxy) bool { return o.life.Err() != nil })
	p.proxies = append(p.proxies, proxy)
	return proxy, nil
}

// Standby starts an asynchronous standby of the primary: it has a copy of the
// data as of the start, receives every change after its commit, and takes a
// second or two to start. It returns when the standby streams. A standby that is
// there already is kept. Standby gives up when ctx ends, after 30 s, or when the
// stack is closed, and leaves none then. The program pg_basebackup must be
// installed beside the server's.
func (p *Postgres) Standby(ctx context.Context) (err error) {
	p.changing.Lock()
	defer p.changing.Unlock()
	ctx, cancel := p.site.within(ctx, readyLimit)
	defer cancel()
	if err := context.Cause(p.site.life); err != nil {
		return err
	}
	if p.standby != nil {
		return nil
	}
	if _, err := exec.LookPath(p.program.basebackup); err != nil {
		return &MissingError{Programs: []string{fmt.Sprintf("pg_basebackup (%v)", err)}, Install: "apt-get install postgresql (or your system's package manager)"}
	}
	port := standbyPort
	if p.primary.port == standbyPort {
		port = postgresPort
	}
	link, err := NewProxy(p.primary.addr())
	if err != nil {
		return err
	}
	s, err := p.newServer(port)
	if err != nil {
		link.Close()
		return err
	}
	if err := p.copyTo(ctx, s, link.Addr()); err != nil {
		link.Close()
		return errors.Join(err, s.remove())
	}
	p.mu.Lock()
	p.standby, p.link = s, link
	p.mu.Unlock()
	if err := p.startServer(ctx, s); err != nil {
		return errors.Join(err, p.dropStandby())
	}
	if err := p.caughtUp(ctx); err != nil {
		return errors.Join(err, p.dropStandby())
	}
	return nil
}

// copyTo fills the new server's folder with the primary's data and tells it whom
// to follow.
func (p *Postgres) copyTo(ctx context.Context, s *postgresServer, from string) error {
	dir := filepath.Dir(s.data)
	passfile := filepath.Join(dir, "passfile")
	if err := p.site.write(passfile, fmt.Sprintf("*:*:*:%s:%s\n", postgresUser, p.password)); err != nil {
		return err
	}
	conn := "postgres://" + postgresUser + "@" + from + "/?sslmode=disable&passfile=" + passfile
	backup := &process{site: p.site, name: s.process.name + "-copy", path: p.program.basebackup, dir: dir, args: []string{
		"--pgdata=" + s.data, "--write-recovery-conf", "--wal-method=stream", "--checkpoint=fast", "--no-sync", "--no-password", "--dbname=" + conn,
	}}
	return backup.finish(ctx)
}

// caughtUp waits until the standby has everything that the primary has
// committed before the call. p.changing is held.
func (p *Postgres) caughtUp(ctx context.Context) (err error) {
	db, err := sql.Open("postgres", p.dsn("postgres"))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, db.Close()) }()
	db.SetMaxOpenConns(1)
	var end string
	if err := db.QueryRowContext(ctx, "select pg_current_wal_flush_lsn()::text").Scan(&end); err != nil {
		return fmt.Errorf("devstack: postgres: where the primary is: %w", err)
	}
	for {
		var there bool
		err := db.QueryRowContext(ctx, "select exists (select from pg_stat_replication where state = 'streaming' and replay_lsn >= $1::pg_lsn)", end).Scan(&there)
		if err == nil && there {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("devstack: postgres: the standby does not catch up: %w\n%s", errors.Join(context.Cause(ctx), err), p.standby.process.tail())
		case <-time.After(probePause):
		}
	}
}

// CutReplication cuts the standby off from the primary: it has every commit that
// was acknowledged before the call and gets none that is acknowledged after the
// return. Commits are acknowledged as ever. It first waits for the standby to
// catch up; it fails when ctx ends or after 30 s.
func (p *Postgres) CutReplication(ctx context.Context) error {
	p.changing.Lock()
	defer p.changing.Unlock()
	ctx, cancel := p.site.within(ctx, readyLimit)
	defer cancel()
	if p.standby == nil {
		return errNoStandby
	}
	if err := p.caughtUp(ctx); err != nil {
		return err
	}
	p.link.Cut()
	return nil
}

// HealReplication ends CutReplication and returns when the standby has
// everything that was committed before the call; it fails when ctx ends or after
// 30 s.
func (p *Postgres) HealReplication(ctx context.Context) error {
	p.changing.Lock()
	defer p.changing.Unlock()
	ctx, cancel := p.site.within(ctx, readyLimit)
	defer cancel()
	if p.standby == nil {
		return errNoStandby
	}
	p.link.Heal()
	return p.caughtUp(ctx)
}

// Failover is when the parts of a [Postgres.Failover] were.
type Failover struct {
	Began  time.Time // the primary still ran
	Killed time.Time // it was gone, and nobody served
	Serves time.Time // the standby was the primary, and all proxies lead to it
}

// Failover kills the primary with SIGKILL, makes the standby the primary and
// leads the clients' proxies there. Commits that had not reached the standby,
// such as those since [Postgres.CutReplication], are lost, and the contents of
// unlogged tables are. The old primary's data is removed: it never comes back,
// and there is no standby until Standby makes another. DSN and Addr change. When
// ctx ends, 30 s are over, or the stack is closed before the standby serves,
// nobody does; Failover can then be called again.
func (p *Postgres) Failover(ctx context.Context) (Failover, error) {
	p.changing.Lock()
	defer p.changing.Unlock()
	ctx, cancel := p.site.within(ctx, readyLimit)
	defer cancel()
	report := Failover{Began: time.Now()}
	old, next := p.primary, p.standby
	if next == nil {
		return report, errNoStandby
	}
	if err := old.process.kill(); err != nil {
		return report, err
	}
	report.Killed = time.Now()
	p.link.Cut()
	if err := p.startServer(ctx, next); err != nil {
		return report, err
	}
	if err := p.promote(ctx, next); err != nil {
		return report, err
	}
	p.mu.Lock()
	p.primary, p.standby = next, nil
	link := p.link
	p.link = nil
	var err error
	for _, proxy := range p.proxies {
		err = errors.Join(err, proxy.Target(next.addr()))
	}
	p.mu.Unlock()
	report.Serves = time.Now()
	link.Close()
	return report, errors.Join(err, old.remove())
}

// promote makes a standby a primary and returns when it takes writes.
func (p *Postgres) promote(ctx context.Context, s *postgresServer) error {
	if err := p.execOn(ctx, s, "select case when pg_is_in_recovery() then pg_promote(false) end"); err != nil {
		return fmt.Errorf("devstack: postgres: promote: %w", err)
	}
	for {
		// A standby refuses to assign a transaction id.
		err := p.execOn(ctx, s, "select pg_current_xact_id()")
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("devstack: postgres: the standby is no primary: %w\n%s", errors.Join(context.Cause(ctx), err), s.process.tail())
		case <-time.After(statePause):
		}
	}
}

// dropStandby ends the standby. p.changing is held.
func (p *Postgres) dropStandby() error {
	p.mu.Lock()
	s, link := p.standby, p.link
	p.standby, p.link = nil, nil
	p.mu.Unlock()
	link.Close()
	return s.remove()
}

// remove ends a server and removes its data.
func (s *postgresServer) remove() error {
	if err := s.end(); err != nil {
		return fmt.Errorf("devstack: %s: %w", s.process.name, err)
	}
	if err := os.RemoveAll(s.data); err != nil {
		return fmt.Errorf("devstack: %s: %w", s.process.name, err)
	}
	return nil
}
