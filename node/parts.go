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

// parts are what a node stands on: servers as [Open] reaches them, or what stands for them in memory.
// The node owns them and ends them when it closes.
type parts struct {
	loads   *sqlx.DB      // for sources; nil = none runs SQL
	db      *sqlx.DB      // for writes and the application; nil = there are none
	changes coherence.Log // required
	l2      store         // nil = none
	sweeper sweeper       // of l2; nil = it cannot be cleaned
	// connect makes the connection to the bus; nil = none. missed is to be called when messages may
	// have been lost that nobody counts: after each reconnection, and when a queue overflows.
	connect func(missed func()) (link, error)
}

// store is the shared tier, with what the node itself needs of it. [*tiers.L2] is the real one.
type store interface {
	tiers.Store
	Shards() []tiers.ShardState
	Close()
}

// link is the connection to the bus.
type link interface {
	cluster.Conn
	Close()
}

// servers are the parts that the configuration names. On an error, those that were opened before.
func servers(n *Node) (p parts, err error) {
	c := n.config
	pool := coherence.PoolConfig{
		DSN: c.Postgres.DSN, MaxConns: c.Postgres.MaxConns,
		ReadTimeout: c.loadTimeout() + time.Second,
		Runtime:     map[string]string{"application_name": "freshet-load"},
	}
	if p.loads, err = coherence.OpenPool(pool); err != nil {
		return p, err
	}
	pool.ReadTimeout, pool.Runtime = c.writeTimeout(), map[string]string{"application_name": "freshet-" + c.App}
	if p.db, err = coherence.OpenPool(pool); err != nil {
		return p, err
	}
	if len(c.Redis.Addrs) > 0 {
		l2, err := tiers.OpenL2(c.l2())
		if err != nil {
			return p, err
		}
		p.l2, p.sweeper = l2, l2
	}
	if len(c.NATS.URLs) > 0 {
		p.connect = n.connectNATS
	}
	log, err := coherence.OpenLog(coherence.LogConfig{DSN: c.Postgres.DSN, Timeout: c.Postgres.PollTimeout})
	if err != nil {
		return p, err
	}
	p.changes = log
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
func (n *Node) connectNATS(missed func()) (link, error) {
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
