package verify

import (
	"context"
	"crypto/rand"
	"database/sql"
	"errors"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/lib/pq"

	"github.com/freshet-cache/freshet/coherence"
	"github.com/freshet-cache/freshet/internal/devstack"
	"github.com/freshet-cache/freshet/internal/history"
)

// stand is everything that a run needs: the servers, the replicas, and the links between them.
type stand struct {
	options  Options
	stack    *devstack.Stack
	own      bool // the stack is this run's, and ends with it
	db       *sql.DB
	app      string
	database string
	service  *devstack.Proxy // to Postgres, for this process
	folder   string          // of the history files

	started atomic.Uint32 // replicas so far
	streams atomic.Uint64 // of choices so far
	ledger  ledger
	traffic sync.WaitGroup // sessions and writers of this process
	phase   uint64         // number of the one that runs

	mu        sync.Mutex
	sites     []*site                       // where replicas are
	loading   bool                          // replicas that start begin their load
	files     []string                      // the histories of the phase
	loads     []loadCounts                  // of the phase, of replicas that were stopped in order
	later     []func(context.Context) error // see afterwards
	notes     []string                      // of the phase
	lostUntil time.Duration                 // when the server that lost commits was gone

	known []history.Write        // of earlier phases
	lost  map[history.Entry]bool // acknowledged changes that Postgres does not have
}

// site is a place for a replica: its links, which stay, and the process that is there by now.
type site struct {
	stand *stand
	links links
	idle  bool // a replica here puts no load on itself

	mu      sync.Mutex
	process *process // nil = none
}

// links are one replica's ways to the servers.
type links struct {
	postgres *devstack.Proxy
	redis    *devstack.RedisProxies
	nats     *devstack.NATSProxy
}

func (l links) all() []*devstack.Proxy {
	var all []*devstack.Proxy
	if l.redis != nil {
		all = l.redis.All()
	}
	if l.postgres != nil {
		all = append(all, l.postgres)
	}
	if l.nats != nil {
		all = append(all, l.nats.Proxy)
	}
	return all
}

func (l links) close() {
	for _, p := range l.all() {
		p.Close() // also each of redis
	}
	if l.redis != nil {
		l.redis.Close()
	}
}

// raise starts everything. When it fails, or ctx ends, nothing is left.
func raise(ctx context.Context, o Options) (_ *stand, err error) {
	s := &stand{options: o, stack: o.Stack, lost: map[history.Entry]bool{}, app: "v" + strings.ToLower(rand.Text()[:10])}
	defer func() {
		if err != nil {
			err = errors.Join(err, s.lower())
		}
	}()
	if s.folder, err = os.MkdirTemp("", "freshet-verify-"); err != nil {
		return nil, fmt.Errorf("verify: %w", err)
	}
	if s.stack == nil {
		s.own = true
		if s.stack, err = devstack.Start(ctx, devstack.Options{}); err != nil {
			return nil, err
		}
	}
	s.database = "verify_" + s.app
	if _, err := s.stack.Postgres.CreateDatabase(ctx, s.database); err != nil {
		return nil, err
	}
	// An address that stays when another server becomes the primary.
	if s.service, err = s.stack.Postgres.Proxy(); err != nil {
		return nil, err
	}
	dsn := s.stack.Postgres.DSNVia(s.service.Addr(), s.database)
	pool, err := coherence.OpenPool(coherence.PoolConfig{DSN: dsn, MaxConns: 24, ReadTimeout: time.Minute})
	if err != nil {
		return nil, err
	}
	s.db = pool.DB
	if err := coherence.Migrate(ctx, s.db); err != nil {
		return nil, err
	}
	// Writers that lock rows in different orders shall not stand still for a second.
	if _, err := s.db.ExecContext(ctx, fmt.Sprintf(`alter database %s set deadlock_timeout = '50ms'`, pq.QuoteIdentifier(s.database))); err != nil {
		return nil, fmt.Errorf("verify: %w", err)
	}
	begun := Now()
	if err := CreateSchema(ctx, s.db, o.keys(), o.groups(), true); err != nil {
		return nil, err
	}
	for key := range o.keys() {
		s.known = append(s.known, history.Write{Op: key + 1, Keys: []uint64{key + 1}, Sent: begun, Acked: Now()})
	}
	for account := uint64(firstAccount); account < firstAccount+Accounts; account++ {
		s.known = append(s.known, history.Write{Op: account, Keys: []uint64{account}, Sent: begun, Acked: Now()})
	}
	for range o.replicas() {
		if _, err := s.addSite(); err != nil {
			return nil, err
		}
	}
	errs := make([]error, len(s.sites))
	var starting sync.WaitGroup
	for i, site := range s.sites {
		starting.Go(func() { errs[i] = site.start(ctx) })
	}
	starting.Wait()
	return s, errors.Join(errs...)
}

// lower ends everything, in the reverse order.
func (s *stand) lower() error {
	var problems []error
	s.mu.Lock()
	sites := s.sites
	s.sites = nil
	s.mu.Unlock()
	errs := make([]error, len(sites))
	var ending sync.WaitGroup
	for i, site := range sites {
		ending.Go(func() { errs[i] = site.close() })
	}
	ending.Wait()
	problems = append(problems, errs...)
	if s.db != nil {
		problems = append(problems, s.db.Close())
	}
	if s.service != nil {
		s.service.Close()
	}
	if s.own && s.stack != nil {
		problems = append(problems, s.stack.Close())
	}
	if s.folder != "" {
		problems = append(problems, os.RemoveAll(s.folder))
	}
	return errors.Join(problems...)
}

// addSite makes a place for a replica, with links of its own and without a process.
func (s *stand) addSite() (*site, error) {
	site := &site{stand: s}
	var err, redis, nats error
	site.links.postgres, err = s.stack.Postgres.Proxy()
	site.links.redis, redis = s.stack.Redis.Proxies()
	site.links.nats, nats = devstack.NewNATSProxy(hostOf(s.stack.NATS.URL()), s.options.Seed)
	if err := errors.Join(err, redis, nats); err != nil {
		site.links.close()
		return nil, err
	}
	s.mu.Lock()
	s.sites = append(s.sites, site)
	s.mu.Unlock()
	return site, nil
}

func hostOf(text string) string {
	u, err := url.Parse(text)
	if err != nil {
		return ""
	}
	return u.Host
}

// via is a URL with another host.
func via(text, host string) string {
	u, err := url.Parse(text)
	if err != nil {
		return text
	}
	u.Host = host
	return u.String()
}

// start starts a replica at the site, which has none.
func (s *site) start(ctx context.Context) error {
	at := Endpoints{
		Replica: s.stand.started.Add(1), App: s.stand.app, Groups: s.stand.options.groups(),
		Postgres: s.stand.stack.Postgres.DSNVia(s.links.postgres.Addr(), s.stand.database),
		NATS:     via(s.stand.stack.NATS.URL(), s.links.nats.Addr()),
		Redis:    []string{s.links.redis.Service().Addr()}, RedisDial: s.links.redis.Map(),
	}
	p, err := startProcess(ctx, s.stand.options.Program, s.stand.setup(at), s.stand.options.Log)
	if err != nil {
		return err
	}
	s.mu.Lock()
	s.process = p
	s.mu.Unlock()
	s.stand.mu.Lock()
	loading := s.stand.loading
	s.stand.mu.Unlock()
	if loading && !s.idle {
		return s.begin(ctx)
	}
	return nil
}

// begin has the replica put its load on itself.
func (s *site) begin(ctx context.Context) error {
	p := s.here()
	if p == nil {
		return errGone
	}
	o := s.stand.options
	s.stand.mu.Lock()
	file := filepath.Join(s.stand.folder, fmt.Sprintf("%d-%d.history", p.number, len(s.stand.files)))
	s.stand.files = append(s.stand.files, file)
	nth := uint64(len(s.stand.files))
	s.stand.mu.Unlock()
	_, err := p.ask(ctx, request{Verb: verbLoad, Load: loadConfig{
		File: file, Seed: o.Seed ^ s.stand.phase<<8 ^ nth, Rate: o.rate(), Writes: o.writes(),
		Base: uint64(p.number)<<replicaBits | s.stand.phase<<(replicaBits-12),
	}})
	return err
}

// end has the replica end its load; one that is gone has none.
func (s *site) end(ctx context.Context) error {
	p := s.here()
	if p == nil {
		return nil
	}
	answer, err := p.ask(ctx, request{Verb: verbStop})
	if errors.Is(err, errGone) {
		return nil
	}
	s.stand.mu.Lock()
	defer s.stand.mu.Unlock()
	s.stand.loads = append(s.stand.loads, answer.Load)
	return err
}

// leave ends the replica in good order, and its load before.
func (s *site) leave(ctx context.Context) error {
	err := s.end(ctx)
	s.mu.Lock()
	p := s.process
	s.process = nil
	s.mu.Unlock()
	if p == nil {
		return err
	}
	return errors.Join(err, p.close())
}

func (s *stand) setup(at Endpoints) setup {
	return setup{At: at, Keys: s.options.keys(), Groups: s.options.groups()}
}

// here is the replica at the site; nil = none.
func (s *site) here() *process {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.process
}

// kill ends the replica at the site, if there is one, as a crash would.
func (s *site) kill() {
	s.mu.Lock()
	p := s.process
	s.process = nil
	s.mu.Unlock()
	if p != nil {
		p.kill()
	}
}

// close ends the replica in good order, and the links.
func (s *site) close() error {
	s.mu.Lock()
	p := s.process
	s.process = nil
	s.mu.Unlock()
	var err error
	if p != nil {
		for _, l := range s.links.all() {
			l.Heal()
		}
		err = p.close()
	}
	s.links.close()
	return err
}

// all are the sites by now.
func (s *stand) all() []*site {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.sites)
}

// removeSite forgets a site, whose replica has left, and closes its links.
func (s *stand) removeSite(gone *site) {
	s.mu.Lock()
	s.sites = slices.DeleteFunc(s.sites, func(o *site) bool { return o == gone })
	s.mu.Unlock()
	gone.kill()
	gone.links.close()
}

// mend puts right whatever may be broken.
func (s *stand) mend(ctx context.Context) error {
	errs := []error{
		s.stack.Postgres.Start(ctx), s.stack.NATS.LimitPending(0, 0),
		s.stack.Redis.StartAll(ctx), s.stack.Redis.HealReplication(ctx), s.stack.Redis.LimitMemory(ctx, 0),
	}
	s.afterwards(s.stack.Redis.WaitReady)
	for _, site := range s.all() {
		for _, l := range site.links.all() {
			l.Heal()
		}
		site.links.nats.Meddle(devstack.Down, devstack.Mishaps{})
		if p := site.here(); p == nil {
			errs = append(errs, site.start(ctx))
		} else {
			_ = p.signal(syscall.SIGCONT) // one that has ended is missed when it is asked something
		}
	}
	return errors.Join(errs...)
}

// afterwards has something done when the phase's load has ended.
func (s *stand) afterwards(do func(context.Context) error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.later = append(s.later, do)
}

// note says something of the phase in its report.
func (s *stand) note(format string, args ...any) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.notes = append(s.notes, fmt.Sprintf(format, args...))
}

func (s *stand) outside() outside { return outside{s.db, &s.ledger} }

// choices are new ones of the run.
func (s *stand) choices() *choices {
	return newChoices(s.options.Seed, 1<<32+s.streams.Add(1), s.options.keys(), s.options.groups())
}
