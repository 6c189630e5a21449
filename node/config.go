package node

import (
	"cmp"
	"context"
	"crypto/rand"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"net/url"
	"os"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/lib/pq"
	"github.com/prometheus/client_golang/prometheus"
	"go.opentelemetry.io/otel/trace"

	"github.com/freshet-cache/freshet/cluster"
	"github.com/freshet-cache/freshet/tiers"
)

// Config describes a node. Zero fields mean their defaults; App and Postgres.DSN have none.
type Config struct {
	// App names the application in keys, subjects and metrics: a lower-case letter, then up to 31
	// lower-case letters, digits and dashes. Nodes of one application share it.
	App string
	// ID names this node among its peers, up to 64 letters, digits, dots, dashes and underscores.
	// Default: host name and a random end.
	ID string
	// Address is where others reach this replica, shown in membership; may be empty.
	Address string

	Postgres PostgresConfig
	Redis    RedisConfig
	NATS     NATSConfig
	// WriteBehind is for caches with [CacheConfig.WriteBehind].
	WriteBehind WriteBehind
	// Verify has what is cached compared with the source, in samples; zero = never.
	Verify VerifyConfig

	// Budget is the freshness budget of reads that name none; 0 = 1 s. For a budget of 0 see [Within].
	Budget time.Duration
	// MaxStale is how old an answer may be when freshness cannot be proven; 0 = none is given.
	MaxStale time.Duration
	// Caches are settings for caches by name, over what their code says: namespace, for all views of it, or
	// namespace/view, which counts more. A name that no cache has by the time of [Node.Ready] is logged.
	Caches map[string]CacheSettings

	// Logger gets what operators should know; nil = slog.Default(). Keys' values are never logged.
	Logger *slog.Logger
	// Registry gets the node's metrics (docs/metrics.md); nil = they can still be read by [Node.Collector].
	Registry prometheus.Registerer
	// Tracer makes spans (docs/traces.md) of reads that are no plain hit in L1, of what they wait for, and of writes,
	// in the traces of the callers' contexts; its sampler decides. nil = none, which costs nothing. A hit has no span.
	Tracer trace.TracerProvider
}

// PostgresConfig is the source and the log.
type PostgresConfig struct {
	// DSN is lib/pq's URL or key=value text. It must lead to the primary. Required by [Open].
	DSN string
	// MaxConns bounds the loads that run at once; 0 = 16. Writes have as many connections of their
	// own, the log has one.
	MaxConns int
	// Queue bounds the loads that wait for their turn; 0 = 256. Beyond it reads get [ErrOverloaded].
	Queue int
	// PollInterval is the time between two polls of the log; 0 = 250 ms. It must be shorter than
	// Config.Budget, or most reads would wait for a poll.
	PollInterval time.Duration
	// PollTimeout bounds one poll; 0 = 1 s. A read that needs a poll waits as long for it, and 1 s at least.
	PollTimeout time.Duration
	// RelayFrom is up to how many replicas each polls the log for itself. Of more, two, or one in 64,
	// relay the polls of the others over NATS, which keep no connection to the log and may be behind by
	// half a PollInterval more. What a budget means stays the same. 0 = 32, below 0 = nobody relays.
	RelayFrom int
	// LoadTimeout bounds one load, waiting included; 0 = 5 s.
	LoadTimeout time.Duration
	// WriteTimeout bounds the wait for the answer to each statement of [Node.Write] and [Node.DB]; 0 =
	// 30 s. It holds also when the server is stopped and cannot be asked to cancel.
	WriteTimeout time.Duration
	// Retention is how long changes stay in the log; 0 = 1 h.
	Retention time.Duration
	// WatchInterval is the time between two checks of the watches of tables (freshet.drift); 0 = 5 s. So long
	// may the changes of a table whose triggers are disabled go unnoticed.
	WatchInterval time.Duration
}

// RedisConfig is the Redis Cluster.
type RedisConfig struct {
	// Addrs are some of its nodes, host:port; none = the node works without L2.
	Addrs []string
	// Username and Password of an ACL user, or a password alone; empty = none. The user needs no more than
	// ~APP:* -@all +@connection +get +set +del +unlink +eval +scan +cluster|info +cluster|slots, and for
	// [Node.Redis] +info +cluster|nodes.
	Username, Password string
	// TLS turns on TLS, with client certificates if it has them; nil = plain TCP.
	TLS *tls.Config
	// Dial connects to host:port, one of Addrs or as a node of the cluster announces itself; TLS goes on
	// top. It must heed its context. nil = a plain dialer. Where the announced addresses cannot be
	// reached, behind proxies or NAT, it maps them.
	Dial func(ctx context.Context, network, address string) (net.Conn, error)
	// Timeout bounds every call, 1 ms to 1 min; 0 = 50 ms.
	Timeout time.Duration
	// LeaseWait is how long a miss waits for another replica that is loading the same key before it
	// loads, too, out of its LoadTimeout; 0 = 500 ms, or a quarter of LoadTimeout if that is shorter.
	// Sources that take longer want more.
	LeaseWait time.Duration
	// MaxValue is the largest entry stored, in bytes, up to 512 MiB; 0 = 8 MiB. Larger ones stay in L1, if they fit.
	MaxValue int
	// CleanRate bounds the keys that the primaries go through in a second, all together, when entries of old
	// generations are removed; 0 = 10,000.
	CleanRate int
}

// NATSConfig is the bus.
type NATSConfig struct {
	// URLs of its servers; none = the node works without hints and peers.
	URLs []string
	// Credentials is the path of a credentials file; empty = none.
	Credentials string
	TLS         *tls.Config
}

// MaxBudget bounds budgets and the age of STALE answers.
const MaxBudget = 24 * time.Hour

var nodeID = regexp.MustCompile(`^[A-Za-z0-9._-]{1,64}$`)

// ConfigError is one problem of one field of a [Config].
type ConfigError struct {
	Field string // such as Postgres.PollInterval; of a map, with the key: Caches.product/list
	Want  string // what is wrong, and what would be right
}

func (e *ConfigError) Error() string { return "node: Config." + e.Field + ": " + e.Want }

// Validate reports all problems at once, each a [*ConfigError], joined.
func (c Config) Validate() error {
	problems := c.problems()
	if strings.TrimSpace(c.Postgres.DSN) == "" {
		problems = append(problems, &ConfigError{"Postgres.DSN", "is empty; want the URL of the primary"})
	} else if _, err := pq.NewConfig(c.Postgres.DSN); err != nil {
		problems = append(problems, &ConfigError{"Postgres.DSN", fmt.Sprintf("%v; want a URL or key=value text as of lib/pq", withoutURL(err))})
	}
	return errors.Join(problems...)
}

// problems are those of Validate but for the DSN, which parts need not have.
func (c Config) problems() []error {
	var problems []error
	wrong := func(field, format string, args ...any) {
		problems = append(problems, &ConfigError{field, fmt.Sprintf(format, args...)})
	}
	if _, err := cluster.NewKeys(c.App); err != nil {
		wrong("App", "%v", err)
	}
	if c.ID != "" && !nodeID.MatchString(c.ID) {
		wrong("ID", "%q; want 1 to 64 letters, digits, dots, dashes or underscores", c.ID)
	}
	for _, text := range c.NATS.URLs {
		if !strings.Contains(text, "://") {
			text = "nats://" + text
		}
		if u, err := url.Parse(text); err != nil {
			wrong("NATS.URLs", "%v; want nats://host:port", withoutURL(err))
		} else if u.Host == "" {
			wrong("NATS.URLs", "one without a host; want nats://host:port")
		}
	}
	for _, d := range []struct {
		field    string
		value    time.Duration
		min, max time.Duration
	}{
		{"Budget", c.Budget, time.Millisecond, MaxBudget},
		{"MaxStale", c.MaxStale, time.Millisecond, MaxBudget},
		{"Postgres.PollInterval", c.Postgres.PollInterval, time.Millisecond, time.Minute},
		{"Postgres.PollTimeout", c.Postgres.PollTimeout, 10 * time.Millisecond, time.Minute},
		{"Postgres.LoadTimeout", c.Postgres.LoadTimeout, 10 * time.Millisecond, 10 * time.Minute},
		{"Postgres.WriteTimeout", c.Postgres.WriteTimeout, 10 * time.Millisecond, 24 * time.Hour},
		{"Redis.Timeout", c.Redis.Timeout, time.Millisecond, time.Minute},
		{"Redis.LeaseWait", c.Redis.LeaseWait, time.Millisecond, time.Minute},
		{"Postgres.Retention", c.Postgres.Retention, time.Minute, 7 * 24 * time.Hour},
		{"WriteBehind.Timeout", c.WriteBehind.Timeout, 10 * time.Millisecond, time.Minute},
		{"WriteBehind.FlushEvery", c.WriteBehind.FlushEvery, time.Millisecond, time.Minute},
		{"WriteBehind.AckWait", c.WriteBehind.AckWait, 100 * time.Millisecond, time.Hour},
		{"WriteBehind.MinRetry", c.WriteBehind.MinRetry, time.Millisecond, time.Hour},
		{"WriteBehind.MaxRetry", c.WriteBehind.MaxRetry, time.Millisecond, 24 * time.Hour},
		{"Verify.Every", c.Verify.Every, time.Second, 24 * time.Hour},
		{"Postgres.WatchInterval", c.Postgres.WatchInterval, 10 * time.Millisecond, 10 * time.Minute},
	} {
		if d.value != 0 && (d.value < d.min || d.value > d.max) {
			wrong(d.field, "%v; want %v to %v, or 0 for the default", d.value, d.min, d.max)
		}
	}
	for _, n := range []struct {
		field      string
		value, max int
	}{
		{"Postgres.MaxConns", c.Postgres.MaxConns, 1000},
		{"Postgres.Queue", c.Postgres.Queue, 1_000_000},
		{"Redis.MaxValue", c.Redis.MaxValue, 512 << 20}, // Redis takes no more
		{"Redis.CleanRate", c.Redis.CleanRate, tiers.MaxSweepRate},
		{"Verify.Sample", c.Verify.Sample, 1000},
		{"WriteBehind.MaxPending", c.WriteBehind.MaxPending, 1_000_000},
		{"WriteBehind.MaxBytes", int(c.WriteBehind.MaxBytes), 16 << 30},
		{"WriteBehind.Replicas", c.WriteBehind.Replicas, 5},
		{"WriteBehind.Batch", c.WriteBehind.Batch, 10_000},
		{"WriteBehind.Flushers", max(c.WriteBehind.Flushers, 0), 16},
		{"WriteBehind.MaxAttempts", c.WriteBehind.MaxAttempts, 1000},
	} {
		if n.value < 0 || n.value > n.max {
			wrong(n.field, "%d; want 1 to %d, or 0 for the default", n.value, n.max)
		}
	}
	if c.budget() <= c.pollInterval() {
		wrong("Budget", "%v is not above Postgres.PollInterval %v: most reads would wait for a poll; ask for less by Within", c.budget(), c.pollInterval())
	}
	if c.WriteBehind.minRetry() > c.WriteBehind.maxRetry() {
		wrong("WriteBehind.MinRetry", "%v is above MaxRetry %v", c.WriteBehind.minRetry(), c.WriteBehind.maxRetry())
	}
	for i, address := range c.Redis.Addrs {
		if host, port, err := net.SplitHostPort(address); err != nil || host == "" || port == "" {
			wrong("Redis.Addrs", "address no. %d is not host:port", i+1)
		}
	}
	if c.Redis.Username != "" && c.Redis.Password == "" {
		wrong("Redis.Username", "is set without a Password")
	}
	for _, name := range slices.Sorted(maps.Keys(c.Caches)) {
		if err := errors.Join(checkCacheName(name), c.Caches[name].validate(c)); err != nil {
			for problem := range strings.SplitSeq(err.Error(), "\n") {
				wrong("Caches."+name, "%s", problem)
			}
		}
	}
	return problems
}

// withoutURL is the error without the URL that it is about, or the word of a DSN: either may have a password
// in it.
func withoutURL(err error) error {
	if strings.HasPrefix(err.Error(), `missing "=" after`) {
		return errors.New(`a word without "=": values with spaces stand in single quotes`)
	}
	if bad := (*url.Error)(nil); errors.As(err, &bad) {
		return bad.Err
	}
	return err
}

func (c Config) id() string {
	if c.ID != "" {
		return c.ID
	}
	host, err := os.Hostname()
	if err != nil || !nodeID.MatchString(host) {
		host = "node"
	}
	return fmt.Sprintf("%.50s-%s", host, strings.ToLower(rand.Text()[:6]))
}

// database is the host:port of Postgres; empty = it is a path, or unknown.
func (c Config) database() string {
	p, err := pq.NewConfig(c.Postgres.DSN)
	if err != nil || p.Host == "" || strings.HasPrefix(p.Host, "/") {
		return ""
	}
	return net.JoinHostPort(p.Host, fmt.Sprint(p.Port))
}

func (c Config) budget() time.Duration { return cmp.Or(c.Budget, time.Second) }
func (c Config) logger() *slog.Logger  { return cmp.Or(c.Logger, slog.Default()) }
func (c Config) pollInterval() time.Duration {
	return cmp.Or(c.Postgres.PollInterval, 250*time.Millisecond)
}

func (c Config) retention() time.Duration { return cmp.Or(c.Postgres.Retention, time.Hour) }

func (c Config) watchInterval() time.Duration {
	return cmp.Or(c.Postgres.WatchInterval, 5*time.Second)
}

func (c Config) verifySample() int { return cmp.Or(c.Verify.Sample, 32) }

func (c Config) relayFrom() int { return cmp.Or(c.Postgres.RelayFrom, 32) }

func (c Config) writeTimeout() time.Duration {
	return cmp.Or(c.Postgres.WriteTimeout, 30*time.Second)
}
func (c Config) loadTimeout() time.Duration { return cmp.Or(c.Postgres.LoadTimeout, 5*time.Second) }

func (c Config) l2() tiers.L2Config {
	return tiers.L2Config{
		Addrs: c.Redis.Addrs, Username: c.Redis.Username, Password: c.Redis.Password, TLS: c.Redis.TLS, Dial: c.Redis.Dial,
		Timeout: c.Redis.Timeout, MaxValue: c.Redis.MaxValue, Logger: c.Logger, Tracer: c.Tracer,
	}
}
