package replay

import (
	"cmp"
	"database/sql"
	"errors"
	"fmt"
	"math"
	"net/url"
	"time"
)

// Source yields the keys that are accessed, in order. io.EOF, unwrapped, ends the run early; another
// error fails it. A *trace.Reader, *trace.Loop and *trace.Zipf are sources.
type Source interface {
	Next() (uint64, error)
}

// Replica is a running replica of the shop.
type Replica struct {
	ID    string // as in its Freshet-Replica header
	API   string // host:port of the shop's routes
	Admin string // host:port of /admin/v1/stats; "" = its counters are not read
}

// Budget is a freshness budget and how often reads ask for it.
type Budget struct {
	Within time.Duration // 0 = linearizable
	Weight float64       // share among the weights of the mix; over 0
}

// Config describes a run. Targets, DB, Source, and Duration are required.
type Config struct {
	Targets  []string         // base URLs, http://host:port, taken in turns; usually one balancer
	Replicas func() []Replica // those running at the moment; nil = none are known: no probes, no final comparison over HTTP
	DB       *sql.DB          // the shop's database, over lib/pq; its pool bounds concurrent SQL updates
	Source   Source

	Rate     float64       // accesses per second; 0 = 1,000
	Duration time.Duration // of the schedule; what is under way then is waited for
	Writes   float64       // fraction of the accesses, 0..1, that become updates
	Lists    float64       // fraction that become reads of a list; 0 = 0.05, negative = none
	Missing  float64       // fraction that become reads of one of 1,000 products that do not exist
	Budgets  []Budget      // mix of budgets that reads ask for; none = all ask for none, and get Default
	Seed     uint64        // of everything drawn

	Default     time.Duration // budget that the shop gives a read that asks for none; 0 = 1 s
	MaxInFlight int           // accesses under way; 0 = 256
	Timeout     time.Duration // of one request or SQL update; 0 = 5 s
	MaxProducts int           // products the shop may have; more are an error; 0 = 1,000,000

	Probes     float64       // writes sampled for change latency per second; 0 = 20, negative = none
	ProbeLimit time.Duration // after which a change counts as not seen; 0 = 5 s
	Sweep      int           // written products compared at the end; 0 = 10,000, negative = none
}

func (c Config) rate() float64                { return cmp.Or(c.Rate, 1000) }
func (c Config) lists() float64               { return max(0, cmp.Or(c.Lists, 0.05)) }
func (c Config) defaultBudget() time.Duration { return cmp.Or(c.Default, time.Second) }
func (c Config) maxInFlight() int             { return cmp.Or(c.MaxInFlight, 256) }
func (c Config) timeout() time.Duration       { return cmp.Or(c.Timeout, 5*time.Second) }
func (c Config) maxProducts() int             { return cmp.Or(c.MaxProducts, 1_000_000) }
func (c Config) probes() float64              { return max(0, cmp.Or(c.Probes, 20)) }
func (c Config) probeLimit() time.Duration    { return cmp.Or(c.ProbeLimit, 5*time.Second) }
func (c Config) sweep() int                   { return max(0, cmp.Or(c.Sweep, 10_000)) }

func (c Config) replicas() []Replica {
	if c.Replicas == nil {
		return nil
	}
	return c.Replicas()
}

// maxBudget is the largest that any read of the run has.
func (c Config) maxBudget() time.Duration {
	longest := c.defaultBudget()
	for _, b := range c.Budgets {
		longest = max(longest, b.Within)
	}
	return longest
}

// Bounds of a [Config].
const (
	MaxRate     = 1e6       // accesses per second
	MaxInFlight = 1 << 14   // accesses under way
	MaxBudget   = time.Hour // as the shop has it
)

func (c Config) validate() error {
	var errs []error
	bad := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	if len(c.Targets) == 0 {
		bad("Targets is empty: want at least one base URL such as http://127.0.0.1:8080")
	}
	for i, t := range c.Targets {
		if u, err := url.Parse(t); err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" || u.Path != "" {
			bad("Targets[%d] is %q: want a base URL such as http://127.0.0.1:8080", i, t)
		}
	}
	if c.DB == nil {
		bad("DB is nil: want the shop's database")
	}
	if c.Source == nil {
		bad("Source is nil: want a trace or a generator")
	}
	if !(c.rate() > 0 && c.rate() <= MaxRate) {
		bad("Rate is %v: want over 0 and at most %.0f accesses per second", c.Rate, MaxRate)
	}
	if c.Duration <= 0 {
		bad("Duration is %v: want over 0", c.Duration)
	}
	fraction := func(name string, f float64) {
		if !(f >= 0 && f <= 1) {
			bad("%s is %v: want a fraction, 0 to 1", name, f)
		}
	}
	fraction("Writes", c.Writes)
	fraction("Lists", c.lists())
	fraction("Missing", c.Missing)
	if sum := c.Writes + c.lists() + c.Missing; sum > 1 {
		bad("Writes, Lists and Missing sum up to %v: want at most 1", sum)
	}
	for i, b := range c.Budgets {
		if b.Within < 0 || b.Within > MaxBudget {
			bad("Budgets[%d].Within is %v: want 0 to %v", i, b.Within, MaxBudget)
		}
		if !(b.Weight > 0) || math.IsInf(b.Weight, 0) {
			bad("Budgets[%d].Weight is %v: want over 0", i, b.Weight)
		}
	}
	if c.Default < 0 || c.Default > MaxBudget {
		bad("Default is %v: want 0 (for 1s) to %v", c.Default, MaxBudget)
	}
	if n := c.maxInFlight(); n < 1 || n > MaxInFlight {
		bad("MaxInFlight is %d: want 0 (for 256) to %d", c.MaxInFlight, MaxInFlight)
	}
	if c.Timeout < 0 || c.ProbeLimit < 0 {
		bad("Timeout is %v and ProbeLimit %v: want 0 (for 5s) or more", c.Timeout, c.ProbeLimit)
	}
	if c.MaxProducts < 0 {
		bad("MaxProducts is %d: want 0 (for 1,000,000) or more", c.MaxProducts)
	}
	if !(c.probes() <= 1000) {
		bad("Probes is %v: want at most 1,000 per second", c.Probes)
	}
	return errors.Join(errs...)
}
