package replay

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"github.com/freshet-cache/freshet/internal/check"
	"github.com/freshet-cache/freshet/internal/trace"
)

// Driver is one run. Use New.
type Driver struct {
	config   Config
	client   *http.Client
	checker  *check.Checker
	tally    *tally
	faults   faults
	prober   *prober
	restarts restarts
	servers  *servers
	bodies   sync.Pool // of *bytes.Buffer, for answers

	used   atomic.Bool
	enough chan struct{} // closed by Finish, once
	finish sync.Once
	// Set by Run before anything else starts.
	began      time.Time
	products   []int64 // ids
	absent     int64   // ids from here on do not exist
	categories []int64
}

// New checks the configuration, all of it at once, and touches nothing.
func New(c Config) (*Driver, error) {
	if err := c.validate(); err != nil {
		return nil, fmt.Errorf("replay: %w", err)
	}
	checker, err := check.New(check.Config{
		MaxBudget:   c.maxBudget(),
		Slack:       2*c.timeout() + c.probeLimit(),
		MaxProducts: c.maxProducts(),
	})
	if err != nil {
		return nil, fmt.Errorf("replay: %w", err)
	}
	d := &Driver{config: c, client: newClient(c), checker: checker, tally: newTally(), servers: newServers(), enough: make(chan struct{})}
	d.prober = newProber(d)
	return d, nil
}

// clock is the time since the run began, monotonic.
func (d *Driver) clock() time.Duration { return time.Since(d.began) }

// Run learns what Postgres holds, drives the load for Config.Duration, compares, and reports. It may
// be called once. When ctx ends early it stops at once, skips the comparison, and says so in the
// report.
//
// The error says that there could be no run: the database could not be read, the source failed.
// Whether the shop did well is in the report.
func (d *Driver) Run(ctx context.Context) (Report, error) {
	if d.used.Swap(true) {
		return Report{}, errors.New("replay: Run was called before: a Driver is good for one run")
	}
	defer d.client.CloseIdleConnections()
	if err := d.learn(ctx); err != nil {
		return Report{}, fmt.Errorf("replay: %w", err)
	}
	schedule, err := newSchedule(d)
	if err != nil {
		return Report{}, fmt.Errorf("replay: %w", err)
	}

	d.servers.read(ctx, d.client, d.config.replicas(), true)
	d.began = time.Now()
	background, stop := context.WithCancel(ctx)
	var aside sync.WaitGroup
	aside.Go(func() { d.servers.run(background, d.client, d.config.replicas) })
	probed := make(chan struct{})
	go func() { // ended by prober.close
		defer close(probed)
		d.prober.run(ctx)
	}()

	err = schedule.run(ctx)
	lasted := d.clock()
	d.prober.close()
	<-probed
	stop()
	aside.Wait()
	if err != nil {
		return Report{}, fmt.Errorf("replay: %w", err)
	}

	d.servers.read(ctx, d.client, d.config.replicas(), false)
	d.checker.Finish()
	comparison := d.compare(ctx)
	return d.report(schedule, comparison, lasted, ctx.Err() != nil), nil
}

// Finish ends the schedule before Config.Duration; the run goes on as it does at the end of it.
func (d *Driver) Finish() { d.finish.Do(func() { close(d.enough) }) }

func (d *Driver) finished() bool {
	select {
	case <-d.enough:
		return true
	default:
		return false
	}
}

// learn reads which products and categories there are.
func (d *Driver) learn(ctx context.Context) error {
	rows, err := d.config.DB.QueryContext(ctx, "select id, revision from products order by id")
	if err != nil {
		return fmt.Errorf("read the products: %w", err)
	}
	err = scan(rows, func(r *sql.Rows) error {
		var id, revision int64
		if err := r.Scan(&id, &revision); err != nil {
			return err
		}
		d.products = append(d.products, id)
		d.absent = id + 1
		return d.checker.Declare(id, revision)
	})
	if err != nil {
		return fmt.Errorf("read the products: %w", err)
	}
	if len(d.products) == 0 {
		return errors.New("the table products is empty: seed the shop first")
	}
	if d.config.lists() == 0 {
		return nil
	}
	if rows, err = d.config.DB.QueryContext(ctx, "select id from categories order by id limit 1000"); err != nil {
		return fmt.Errorf("read the categories: %w", err)
	}
	err = scan(rows, func(r *sql.Rows) error {
		var id int64
		d.categories = append(d.categories, 0)
		if err := r.Scan(&id); err != nil {
			return err
		}
		d.categories[len(d.categories)-1] = id
		return nil
	})
	if err == nil && len(d.categories) == 0 {
		err = errors.New("the table is empty: seed the shop first, or set Lists to none")
	}
	if err != nil {
		return fmt.Errorf("read the categories: %w", err)
	}
	return nil
}

func scan(rows *sql.Rows, row func(*sql.Rows) error) error {
	defer rows.Close()
	for rows.Next() {
		if err := row(rows); err != nil {
			return err
		}
	}
	return rows.Err()
}

// Progress is where a run is.
type Progress struct {
	Elapsed, Duration     time.Duration
	Reads, Writes         uint64
	Fresh, Stale          uint64
	Errors, Dropped       uint64
	Violations            uint64
	L1, L2, Owner, Source uint64        // answers to reads, by tier
	Latency               time.Duration // p99 of service over HTTP so far
	Staleness             time.Duration // largest of a FRESH answer so far
	Change                time.Duration // p99 of the change latency so far
	Fault                 string        // in force now; "" = none
}

// Progress may be called at any time, from any goroutine; before Run it is zero but for Duration.
func (d *Driver) Progress() Progress {
	p := Progress{Duration: d.config.Duration}
	if !d.tally.started.Load() {
		return p
	}
	p.Elapsed = min(d.clock(), d.config.Duration)
	s := d.checker.Summary()
	p.Violations, p.Staleness = s.Violations, s.Staleness.Max
	p.Fault = d.faults.current()
	d.tally.progress(&p)
	return p
}

// kind is what an access is turned into.
type kind uint8

const (
	readDetail kind = iota
	readAbsent
	readList
	writeHTTP
	writeSQL
)

// access is one thing to do.
type access struct {
	kind   kind
	number uint64        // of the access
	id     int64         // product, or category of a list
	budget time.Duration // negative = ask for none
	due    time.Duration
}

// schedule hands accesses to workers when they are due.
type schedule struct {
	d       *Driver
	mapping *trace.Mapping
	random  *rand.Rand
	weights float64 // sum of the budgets'
	writes  uint64  // so far

	scheduled, dropped uint64
	late               histogram // from due to handed over: how late the driver itself is
}

func newSchedule(d *Driver) (*schedule, error) {
	mapping, err := trace.NewMapping(int64(len(d.products)), d.config.Seed)
	if err != nil {
		return nil, err
	}
	s := &schedule{d: d, mapping: mapping, random: rand.New(rand.NewPCG(d.config.Seed, 0x7265706c6179)), late: newHistogram()}
	for _, b := range d.config.Budgets {
		s.weights += b.Weight
	}
	return s, nil
}

// run hands out accesses until the time is over, the source or ctx ends, or Finish is called, and waits for the workers.
func (s *schedule) run(ctx context.Context) error {
	d := s.d
	d.tally.started.Store(true)
	work := make(chan access) // this goroutine sends and closes
	var workers sync.WaitGroup
	defer workers.Wait()
	defer close(work)
	hired := 0
	timer := time.NewTimer(0)
	defer timer.Stop()
	every := float64(time.Second) / d.config.rate()
	for n := uint64(0); ; n++ {
		due := time.Duration(float64(n) * every)
		if due >= d.config.Duration {
			return nil
		}
		if wait := due - d.clock(); wait > 0 {
			timer.Reset(wait)
			select {
			case <-timer.C:
			case <-d.enough:
				return nil
			case <-ctx.Done():
				return nil
			}
		} else if ctx.Err() != nil || d.finished() {
			return nil
		}
		a, err := s.next(n, due)
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		s.scheduled++
		s.late.add(d.clock() - due)
		select {
		case work <- a: // somebody is idle
		default:
			if hired >= d.config.maxInFlight() {
				s.dropped++
				d.tally.dropped.Add(1)
				continue
			}
			hired++
			workers.Go(func() { d.work(ctx, a, work) })
		}
	}
}

// next draws what access n is.
func (s *schedule) next(n uint64, due time.Duration) (access, error) {
	key, err := s.d.config.Source.Next()
	if err != nil {
		return access{}, err
	}
	c := &s.d.config
	a := access{number: n, id: s.d.products[s.mapping.ID(key)-1], budget: s.budget(), due: due}
	switch u := s.random.Float64(); {
	case u < c.Writes:
		a.kind = writeHTTP
		if s.writes++; s.writes%2 == 0 {
			a.kind = writeSQL
		}
	case u < c.Writes+c.lists():
		a.kind, a.id = readList, s.d.categories[s.random.IntN(len(s.d.categories))]
	case u < c.Writes+c.lists()+c.Missing:
		a.kind, a.id = readAbsent, s.d.absent+s.random.Int64N(1000)
	}
	return a, nil
}

func (s *schedule) budget() time.Duration {
	if s.weights == 0 {
		return -1
	}
	u := s.random.Float64() * s.weights
	for _, b := range s.d.config.Budgets {
		if u -= b.Weight; u < 0 {
			return b.Within
		}
	}
	return s.d.config.Budgets[0].Within
}

// work does its first access, then all that it is handed.
func (d *Driver) work(ctx context.Context, first access, more <-chan access) {
	d.do(ctx, first)
	for a := range more {
		d.do(ctx, a)
	}
}

func (d *Driver) do(ctx context.Context, a access) {
	if ctx.Err() != nil {
		return
	}
	target := d.config.Targets[a.number%uint64(len(d.config.Targets))]
	switch a.kind {
	case readDetail, readAbsent:
		d.read(ctx, target, read{id: a.id, budget: a.budget, due: a.due})
	case readList:
		d.list(ctx, target, a)
	case writeHTTP:
		d.patch(ctx, target, a)
	case writeSQL:
		d.update(ctx, a)
	}
}
