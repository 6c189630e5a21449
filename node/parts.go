package node

import (
	"errors"
	"fmt"
	"time"

	"github.com/jmoiron/sqlx"
	"github.com/nats-io/nats.go"

	"github.com/freshet-cache/freshet/cluster"
	"github.com/freshet-cache/freshet/coherence"
	"github.com/freshet-cache/freshet/tiers"
)

// Parts are what a node stands on, for [OpenOn]: [Open] makes them of the servers that the Config names. The node
// owns them and ends them when it closes, but for the Database.
type Parts struct {
	// Log is where changes are polled from; it passes logtest.Exercise. Required.
	Log coherence.Log
	// L2 is the tier that all replicas share; it passes l2test.Exercise. nil = none.
	L2 SharedStore
	// Connect makes the connection to the bus, which passes conntest.Exercise; nil = there is no bus. missed is to be
	// called when messages may have been lost that nobody counts: after each reconnection, and when a queue
	// overflows. It neither blocks nor calls the connection.
	Connect func(missed func()) (Link, error)
	// Database is where transactions are, whose changes the Log brings; nil = there are none: [Node.Write] and all
	// that needs a transaction fail.
	Database Database
	// Loads and DB are pools of connections to Postgres, for sources, and for writes and the application. nil =
	// there is no SQL: [SQL], [QueryConfig].Query and warm-ups by a query are refused, and statements on [Node.DB] or a
	// [Tx] fail.
	Loads, DB *sqlx.DB
}

// SharedStore is the tier that all replicas share, with what the node itself needs of it. [*tiers.L2] is the real
// one.
type SharedStore interface {
	tiers.Store
	// Shards are what the tier consists of, for statistics.
	Shards() []tiers.ShardState
	Close()
}

// Link is the connection to the bus. Close ends its subscriptions, and returns when nothing is being delivered any
// more. One that has a method Connected() bool tells [Node.Stats] by it whether there is a connection now.
type Link interface {
	cluster.Conn
	Close()
}

// check says what is missing, and what the configuration names although parts come in its place.
func (p Parts) check(c Config) error {
	var problems []error
	if p.Log == nil {
		problems = append(problems, errors.New("node: Parts.Log is nil; want where changes are polled from"))
	}
	for _, server := range []struct {
		field string
		set   bool
	}{
		{"Postgres.DSN", c.Postgres.DSN != ""},
		{"Redis.Addrs", len(c.Redis.Addrs) > 0},
		{"NATS.URLs", len(c.NATS.URLs) > 0},
	} {
		if server.set {
			problems = append(problems, fmt.Errorf("node: Config.%s is set; want it empty where Parts come in place of servers", server.field))
		}
	}
	return errors.Join(problems...)
}

// close ends parts that no node has taken.
func (p Parts) close() error {
	var problems []error
	if p.L2 != nil {
		p.L2.Close()
	}
	if p.Log != nil {
		problems = append(problems, p.Log.Close())
	}
	for _, pool := range []*sqlx.DB{p.DB, p.Loads} {
		if pool != nil {
			problems = append(problems, pool.Close())
		}
	}
	return errors.Join(problems...)
}

// servers are the parts that the configuration names. On an error, those that were opened before.
func servers(n *Node) (p Parts, err error) {
	c := n.config
	pool := coherence.PoolConfig{
		DSN: c.Postgres.DSN, MaxConns: c.Postgres.MaxConns,
		ReadTimeout: c.loadTimeout() + time.Second,
		Runtime:     map[string]string{"application_name": "freshet-load"},
	}
	if p.Loads, err = coherence.OpenPool(pool); err != nil {
		return p, err
	}
	pool.ReadTimeout, pool.Runtime = c.writeTimeout(), map[string]string{"application_name": "freshet-" + c.App}
	if p.DB, err = coherence.OpenPool(pool); err != nil {
		return p, err
	}
	p.Database = postgres{loads: p.Loads, db: p.DB}
	if len(c.Redis.Addrs) > 0 {
		l2, err := tiers.OpenL2(c.l2())
		if err != nil {
			return p, err
		}
		p.L2 = l2
	}
	if len(c.NATS.URLs) > 0 {
		p.Connect = n.connectNATS
	}
	log, err := coherence.OpenLog(coherence.LogConfig{DSN: c.Postgres.DSN, Timeout: c.Postgres.PollTimeout})
	if err != nil {
		return p, err
	}
	p.Log = log
	return p, nil
}

// natsLink is a connection that the node has made.
type natsLink struct {
	cluster.Conn
	nats *nats.Conn
}

func (l natsLink) Close() { l.nats.Close() }

// Connected reports whether there is a connection now.
func (l natsLink) Connected() bool { return l.nats.IsConnected() }

// connectNATS prepares the connection to NATS: it never gives up, and never buffers what cannot be sent.
func (n *Node) connectNATS(missed func()) (Link, error) {
	options := []nats.Option{
		nats.Name("freshet " + n.config.App + " " + n.id),
		nats.RetryOnFailedConnect(true), nats.MaxReconnects(-1), nats.ReconnectBufSize(-1),
		nats.ReconnectWait(250 * time.Millisecond), nats.ReconnectJitter(100*time.Millisecond, 100*time.Millisecond),
		nats.Timeout(2 * time.Second), nats.FlusherTimeout(time.Second), nats.PingInterval(2 * time.Second), nats.MaxPingsOutstanding(2),
		nats.ReconnectHandler(func(*nats.Conn) { missed() }),
		nats.ConnectHandler(func(*nats.Conn) { missed() }),
		nats.DisconnectErrHandler(func(_ *nats.Conn, err error) {
			if err != nil {
				n.log.Warn("node: NATS is away; changes travel by polling", "error", err)
			}
		}),
		nats.ErrorHandler(func(_ *nats.Conn, _ *nats.Subscription, err error) {
			if errors.Is(err, nats.ErrSlowConsumer) {
				missed()
			}
			n.log.Warn("node: NATS", "error", err)
		}),
	}
	if n.config.NATS.Credentials != "" {
		options = append(options, nats.UserCredentials(n.config.NATS.Credentials))
	}
	if n.config.NATS.TLS != nil {
		options = append(options, nats.Secure(n.config.NATS.TLS))
	}
	conn, err := nats.Connect(joinURLs(n.config.NATS.URLs), options...)
	if err != nil {
		return nil, fmt.Errorf("Config.NATS: %w", err)
	}
	return natsLink{cluster.NATS(conn), conn}, nil
}
