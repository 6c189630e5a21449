package replica

import (
	"cmp"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/url"
	"os"
	"regexp"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/freshet-cache/freshet/node"
)

// Config says what a replica is and where its servers are. App and Postgres are required.
type Config struct {
	// App names keys and subjects: a letter a-z, then up to 31 of a-z, 0-9, '-'. Replicas that share
	// it share their entries.
	App string
	// ID names the replica among its peers: up to 63 of a-z, A-Z, 0-9, '.', '_', '-'; "" = the host
	// name and the process id.
	ID string
	// Listen is the host:port of the API; "" = 127.0.0.1:8080. Port 0 = any free one.
	Listen string
	// Admin is the host:port of metrics, probes and stats; "" = 127.0.0.1:9090. Port 0 = any free one.
	Admin string
	// AdminTokenFile is the path of a file with the token of the admin port, at least 32 bytes; "" = none, and
	// nothing can be changed there.
	AdminTokenFile string
	// AdminTLS is for the admin port; zero = plain HTTP.
	AdminTLS AdminTLS
	// Advertise is the host:port at which peers and operators reach the API; "" = what Listen became.
	Advertise string
	// Postgres is the DSN of the source: a postgres:// URL or key=value text, as lib/pq reads it.
	Postgres string
	// Redis are host:port of some or all of the cluster's servers; none = no L2.
	Redis []string
	// RedisUser and RedisPassword are the credentials, "" = none.
	RedisUser, RedisPassword string
	// NATS are the servers' nats:// or tls:// URLs; none = no bus.
	NATS []string
	// Budget is the default bound on the age of a FRESH answer; 0 = 1 s. More than the node's poll
	// interval of 250 ms, at most an hour.
	Budget time.Duration
	// MaxStale is how old a STALE answer may be while freshness cannot be proven; 0 = never answer
	// STALE. At most a day.
	MaxStale time.Duration
	// StartTimeout bounds the wait for the first poll of Postgres and for warm caches, after which the
	// replica starts degraded; 0 = 10 s. At most 5 minutes.
	StartTimeout time.Duration
	// DrainDelay is the time between /readyz turning 503 and the end of accepting; 0 = none. Set it
	// to two check intervals of the load balancer in front. At most 5 minutes.
	DrainDelay time.Duration
	// DrainTimeout bounds the wait for requests in flight in a drain; 0 = 30 s. At most 5 minutes.
	DrainTimeout time.Duration
	// Logger is where the replica and its node log; nil = slog.Default().
	Logger *slog.Logger
}

// pollInterval is the node's default, which the replica leaves as it is.
const pollInterval = 250 * time.Millisecond

func (c Config) id() string {
	if c.ID != "" {
		return c.ID
	}
	host, err := os.Hostname()
	if err != nil || !idText.MatchString(host) || len(host) > 40 {
		host = "replica"
	}
	return fmt.Sprintf("%s-%d", host, os.Getpid())
}

func (c Config) listen() string              { return cmp.Or(c.Listen, "127.0.0.1:8080") }
func (c Config) admin() string               { return cmp.Or(c.Admin, "127.0.0.1:9090") }
func (c Config) budget() time.Duration       { return cmp.Or(c.Budget, time.Second) }
func (c Config) startTimeout() time.Duration { return cmp.Or(c.StartTimeout, 10*time.Second) }
func (c Config) drainTimeout() time.Duration { return cmp.Or(c.DrainTimeout, 30*time.Second) }
func (c Config) logger() *slog.Logger        { return cmp.Or(c.Logger, slog.Default()) }

// ConfigError is one problem of one field.
type ConfigError struct {
	Field string // the name in Config
	Want  string // what would be right, after what is wrong
}

func (e *ConfigError) Error() string { return e.Field + ": " + e.Want }

var (
	appText = regexp.MustCompile(`^[a-z][a-z0-9-]{0,31}$`)
	idText  = regexp.MustCompile(`^[a-zA-Z0-9._-]{1,63}$`)
)

// Validate reports all problems at once, each a [*ConfigError], joined.
func (c Config) Validate() error {
	var problems []error
	wrong := func(field, format string, args ...any) {
		problems = append(problems, &ConfigError{field, fmt.Sprintf(format, args...)})
	}
	if !appText.MatchString(c.App) {
		wrong("App", "%.40q is not a name; want a letter a-z, then up to 31 of a-z, 0-9 and '-'", c.App)
	}
	if c.ID != "" && !idText.MatchString(c.ID) {
		wrong("ID", "%.80q is not an id; want 1 to 63 letters, digits, '.', '_' or '-'", c.ID)
	}
	for _, a := range []struct{ field, value string }{{"Listen", c.listen()}, {"Admin", c.admin()}} {
		if err := hostPort(a.value, true); err != nil {
			wrong(a.field, "%v", err)
		}
	}
	if c.listen() == c.admin() && !strings.HasSuffix(c.admin(), ":0") {
		wrong("Admin", "%s is the API's address too; the admin port must be another", c.admin())
	}
	c.AdminTLS.check(wrong)
	if c.Advertise != "" {
		if err := hostPort(c.Advertise, false); err != nil {
			wrong("Advertise", "%v", err)
		}
	}
	if c.Postgres == "" {
		wrong("Postgres", "missing; want the source's DSN, such as postgres://user@host:5432/shop?sslmode=require")
	} else if strings.Contains(c.Postgres, "://") {
		if u, err := url.Parse(c.Postgres); err != nil {
			// The parse error would repeat the URL with its password.
			wrong("Postgres", "not a URL; want postgres://user:password@host:5432/database, special characters percent-encoded")
		} else if u.Scheme != "postgres" && u.Scheme != "postgresql" {
			wrong("Postgres", "scheme %.20q; want postgres://", u.Scheme)
		}
	}
	for _, a := range c.Redis {
		if err := hostPort(a, false); err != nil {
			wrong("Redis", "%v", err)
		}
	}
	for _, s := range c.NATS {
		if u, err := url.Parse(s); err != nil || u.Host == "" || !(u.Scheme == "nats" || u.Scheme == "tls") {
			wrong("NATS", "not a NATS URL; want nats://host:4222 or tls://host:4222")
		}
	}
	if c.Budget > 0 && c.Budget <= pollInterval {
		wrong("Budget", "%v; want more than the poll interval of %v (a request can ask for less, and waits for a poll then)", c.Budget, pollInterval)
	}
	for _, d := range []struct {
		field      string
		value, max time.Duration
	}{
		{"Budget", c.Budget, time.Hour},
		{"MaxStale", c.MaxStale, node.MaxBudget},
		{"StartTimeout", c.StartTimeout, 5 * time.Minute},
		{"DrainDelay", c.DrainDelay, 5 * time.Minute},
		{"DrainTimeout", c.DrainTimeout, 5 * time.Minute},
	} {
		if d.value < 0 || d.value > d.max {
			wrong(d.field, "%v; want between 0 and %v", d.value, d.max)
		}
	}
	if len(problems) == 0 {
		// What only the node knows to be wrong.
		return c.node(c.id(), c.Advertise, nil, nil).Validate()
	}
	return errors.Join(problems...)
}

// node is the configuration of the replica's node.
func (c Config) node(id, address string, log *slog.Logger, registry prometheus.Registerer) node.Config {
	return node.Config{
		App:      c.App,
		ID:       id,
		Address:  address,
		Postgres: node.PostgresConfig{DSN: c.Postgres},
		Redis:    node.RedisConfig{Addrs: c.Redis, Username: c.RedisUser, Password: c.RedisPassword},
		NATS:     node.NATSConfig{URLs: c.NATS},
		Budget:   c.Budget,
		MaxStale: c.MaxStale,
		Logger:   log,
		Registry: registry,
	}
}

// hostPort reports what keeps the text from being an address, to listen on or to call.
func hostPort(s string, listen bool) error {
	host, port, err := net.SplitHostPort(s)
	if err != nil {
		return fmt.Errorf("%.80q is not an address; want host:port", s)
	}
	if host == "" && !listen {
		return fmt.Errorf("%.80q has no host; want host:port", s)
	}
	var n int
	if _, err := fmt.Sscanf(port, "%d", &n); err != nil || fmt.Sprint(n) != port || n < 0 || n > 65535 || n == 0 && !listen {
		return fmt.Errorf("%.80q has the port %.20q; want a number up to 65535", s, port)
	}
	return nil
}
