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
	"github.com/freshet-cache/freshet/node/nodeconfig"
)

// Config says what a replica is. Node.App and Node.Postgres.DSN are required.
type Config struct {
	// Node is the configuration of the replica's node. Its ID is, if empty, the host name and the process id, its Address
	// what Listen became; Logger and Registry are the replica's.
	Node node.Config
	// Listen is the host:port of the API; "" = 127.0.0.1:8080. Port 0 = any free one.
	Listen string
	// Admin is the host:port of metrics, probes and stats; "" = 127.0.0.1:9090. Port 0 = any free one.
	Admin string
	// AdminTokenFile is the path of a file with the token of the admin port, at least 32 bytes; "" = none, and
	// nothing can be changed there.
	AdminTokenFile string
	// AdminTLS is how the admin port speaks TLS; zero = it does not.
	AdminTLS AdminTLS
	// Trace is where spans are sent; zero = there are none.
	Trace Trace
	// StartTimeout bounds the wait for the first poll of Postgres and for warm caches, after which the
	// replica starts degraded; 0 = 10 s. At most 5 minutes.
	StartTimeout time.Duration
	// DrainDelay is the time between /readyz turning 503 and the end of accepting; 0 = none. Set it
	// to two check intervals of the load balancer in front. At most 5 minutes.
	DrainDelay time.Duration
	// DrainTimeout bounds the wait for requests in flight in a drain; 0 = 30 s. At most 5 minutes.
	DrainTimeout time.Duration
	// LogLevel and LogFormat, "text", "json" or "" for whichever suits standard error, are for who makes the Logger.
	LogLevel  slog.Level
	LogFormat string
	// Logger is where the replica and its node log; nil = slog.Default().
	Logger *slog.Logger
}

// AdminTLS has the admin port speak TLS 1.3, and tells who is an operator. The files, PEM, are read anew when they have
// changed, at most once a second, so that certificates can be renewed without a restart; what cannot be used then is logged,
// and what was there before stays. The zero value is plain HTTP.
type AdminTLS struct {
	// CertFile is the path of the port's certificate and its chain, KeyFile that of its private key.
	CertFile, KeyFile string
	// ClientCAFile is the path of the certificates of authorities; a client with a valid certificate of one of them may do
	// what the admin token allows. A client that shows none may still see what asks for no credential; one that shows
	// another is refused. "" = client certificates are not asked for.
	ClientCAFile string
}

func (c Config) id() string {
	if c.Node.ID != "" {
		return c.Node.ID
	}
	host, err := os.Hostname()
	if err != nil || !idText.MatchString(host) {
		host = "replica"
	}
	return fmt.Sprintf("%s-%d", host, os.Getpid())
}

func (c Config) listen() string              { return cmp.Or(c.Listen, "127.0.0.1:8080") }
func (c Config) admin() string               { return cmp.Or(c.Admin, "127.0.0.1:9090") }
func (c Config) startTimeout() time.Duration { return cmp.Or(c.StartTimeout, 10*time.Second) }
func (c Config) drainTimeout() time.Duration { return cmp.Or(c.DrainTimeout, 30*time.Second) }
func (c Config) logger() *slog.Logger        { return cmp.Or(c.Logger, slog.Default()) }

// idText is a host name that can be part of an id.
var idText = regexp.MustCompile(`^[a-zA-Z0-9._-]{1,40}$`)

// longest bounds the waits of a replica.
const longest = 5 * time.Minute

// Declare declares the keys of a replica's configuration, those of its node among them. Load validates it.
func (c *Config) Declare(s *nodeconfig.Settings) {
	s.Add("listen", "Address of the API, host:port; port 0 takes any free one.", nodeconfig.Text(&c.Listen).Default(c.listen()))
	s.Add("start_timeout", "Longest wait for Postgres and warm caches before the replica starts degraded.", nodeconfig.Duration(&c.StartTimeout, time.Millisecond, longest).Default("10s"))
	s.Add("drain_delay", "Time between /readyz turning 503 and the end of accepting: two check intervals of the load balancer in front.",
		nodeconfig.Duration(&c.DrainDelay, 0, longest).Default("0s"))
	s.Add("drain_timeout", "Longest wait for requests in flight in a drain.", nodeconfig.Duration(&c.DrainTimeout, time.Millisecond, longest).Default("30s"))
	s.Node(&c.Node)
	s.Add("admin.listen", "Address of metrics, probes and what operators see and steer, host:port; reading asks for no credential.", nodeconfig.Text(&c.Admin).Default(c.admin()))
	s.Add("admin.token_file", "Path of a file with the token, 32 bytes or more, for what changes anything on the admin port; without, nothing can be changed there.", nodeconfig.Text(&c.AdminTokenFile))
	s.KeyPair("admin.tls", "the admin port", &c.AdminTLS.CertFile, &c.AdminTLS.KeyFile)
	s.Add("admin.tls.client_ca_file", "Path of the certificates, in PEM, of the authorities whose clients may do there what the token allows.", nodeconfig.Text(&c.AdminTLS.ClientCAFile))
	s.Add("log.level", "From which level on something is logged.",
		nodeconfig.OneOf(&c.LogLevel, []string{"debug", "info", "warn", "error"}, []slog.Level{slog.LevelDebug, slog.LevelInfo, slog.LevelWarn, slog.LevelError}).Default("info"))
	s.Add("log.format", "How it is written.", nodeconfig.OneOf(&c.LogFormat, []string{"text", "json"}, []string{"text", "json"}).Without("text on a terminal, json elsewhere"))
	s.Add("trace.endpoint", "URL of an OTLP collector over HTTP that spans are sent to, such as http://collector:4318; without, there are none.", nodeconfig.URL(&c.Trace.Endpoint))
	s.Add("trace.sample", "Part of the traces that are kept, of those on which no caller has decided.", nodeconfig.Number(&c.Trace.Sample, 0.001, 1).Default("1"))
	s.Check(func() error { return c.validate() })
}

// Validate reports all problems at once, joined: each a [*nodeconfig.KeyError] or a [*node.ConfigError].
func (c Config) Validate() error { return errors.Join(c.validate(), c.Node.Validate()) }

// validate is Validate without the node.
func (c Config) validate() error {
	var problems []error
	wrong := func(key, format string, args ...any) {
		problems = append(problems, &nodeconfig.KeyError{Key: key, Want: fmt.Sprintf(format, args...)})
	}
	for _, a := range []struct{ key, value string }{{"listen", c.listen()}, {"admin.listen", c.admin()}} {
		if err := hostPort(a.value, true); err != nil {
			wrong(a.key, "%v", err)
		}
	}
	if c.listen() == c.admin() && !strings.HasSuffix(c.admin(), ":0") {
		wrong("admin.listen", "%s is the API's address too; the admin port must be another", c.admin())
	}
	if c.Node.Address != "" {
		if err := hostPort(c.Node.Address, false); err != nil {
			wrong("address", "%v", err)
		}
	}
	if c.AdminTLS.ClientCAFile != "" && c.AdminTLS.CertFile == "" {
		wrong("admin.tls.client_ca_file", "given without admin.tls.cert_file")
	}
	if c.Trace.Endpoint != "" {
		if _, err := c.Trace.target(); err != nil {
			wrong("trace.endpoint", "%v", err)
		}
	}
	if !(c.Trace.Sample >= 0 && c.Trace.Sample <= 1) {
		wrong("trace.sample", "%v; want above 0 up to 1, the part of the traces, or 0 for all", c.Trace.Sample)
	}
	for _, text := range c.Node.NATS.URLs {
		if u, err := url.Parse(text); err != nil || u.Host == "" || !(u.Scheme == "nats" || u.Scheme == "tls") {
			wrong("nats.urls", "not a NATS URL; want nats://host:4222 or tls://host:4222")
		}
	}
	for _, d := range []struct {
		key   string
		value time.Duration
	}{
		{"start_timeout", c.StartTimeout}, {"drain_delay", c.DrainDelay}, {"drain_timeout", c.DrainTimeout},
	} {
		if d.value < 0 || d.value > longest {
			wrong(d.key, "%v; want between 0 and %v", d.value, longest)
		}
	}
	return errors.Join(problems...)
}

// node is the configuration of the replica's node.
func (c Config) node(id, address string, log *slog.Logger, registry prometheus.Registerer) node.Config {
	n := c.Node
	n.ID, n.Address, n.Logger, n.Registry = id, cmp.Or(n.Address, address), log, registry
	return n
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
