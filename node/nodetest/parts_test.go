package nodetest

import (
	"errors"
	"log/slog"
	"testing"
	"time"

	"github.com/freshet-cache/freshet/cluster/conntest"
	"github.com/freshet-cache/freshet/coherence"
	"github.com/freshet-cache/freshet/coherence/logtest"
	"github.com/freshet-cache/freshet/internal/devstack"
	"github.com/freshet-cache/freshet/internal/devstack/stacktest"
	"github.com/freshet-cache/freshet/node"
	"github.com/freshet-cache/freshet/tiers"
	"github.com/freshet-cache/freshet/tiers/l2test"
)

func TestMain(m *testing.M) { stacktest.Main(m, devstack.Options{Postgres: true}) }

func TestDatabasePasses(t *testing.T) {
	Exercise(t, func(t *testing.T) *node.Node {
		t.Helper()
		return New(t, Config{Nodes: 1}).Node(0)
	})
}

func TestPostgresPasses(t *testing.T) {
	dsn, err := stacktest.Stack().Postgres.CreateDatabase(t.Context(), "exercise")
	if err != nil {
		t.Fatal(err)
	}
	pool, err := coherence.OpenPool(coherence.PoolConfig{DSN: dsn})
	if err == nil {
		err = errors.Join(coherence.Migrate(t.Context(), pool.DB), pool.Close())
	}
	if err != nil {
		t.Fatal(err)
	}
	Exercise(t, func(t *testing.T) *node.Node {
		t.Helper()
		n, err := node.Open(t.Context(), node.Config{
			App: "exercise", Postgres: node.PostgresConfig{DSN: dsn, PollTimeout: patience, LoadTimeout: patience}, Logger: slog.New(slog.DiscardHandler),
		})
		if err == nil {
			err = n.Ready(t.Context())
		}
		if err != nil {
			t.Fatal(err)
		}
		return n
	})
}

// partsOf are the parts of a node of a cluster without nodes, and the member.
func partsOf(t *testing.T, c Config) (*Cluster, node.Parts, *member) {
	t.Helper()
	cluster := &Cluster{
		config: c, db: newDatabase(), redis: l2test.NewMemory(c.Node.Redis.MaxValue), nats: conntest.NewHub(0),
		fail: func(err error) { t.Error(err) },
	}
	t.Cleanup(cluster.nats.Close)
	m := &member{postgres: newWay(cluster.db)}
	return cluster, cluster.parts(m), m
}

func TestLogPasses(t *testing.T) {
	logtest.Exercise(t, func(t *testing.T) (coherence.Log, logtest.Writer) {
		t.Helper()
		c, p, _ := partsOf(t, Config{})
		return p.Log, txWriter{c.db}
	})
}

// txWriter writes by the transactions that tables are changed by.
type txWriter struct{ db *database }

func (w txWriter) Begin(t *testing.T) logtest.Transaction {
	t.Helper()
	tx := w.db.begin(t.Context())
	w.db.mu.Lock()
	defer w.db.mu.Unlock()
	tx.write()
	return txOf{tx, t}
}

type txOf struct {
	*Tx
	t *testing.T
}

func (x txOf) XID() uint64 { return x.written.XID }

func (x txOf) Change(scopes ...coherence.Scope) {
	x.db.mu.Lock()
	defer x.db.mu.Unlock()
	x.change(-1, scopes...)
}

func (x txOf) SetGeneration(namespace string, number uint32) {
	x.t.Helper()
	s := node.GenerationStep{Action: node.ActionSet, Namespace: namespace, Number: number, GenerationChange: node.GenerationChange{Why: "a test"}}
	if _, err := x.changeGeneration(s); err != nil {
		x.t.Error(err)
	}
}

func (x txOf) Grace(d time.Duration) {
	x.t.Helper()
	if err := x.Tx.Grace(d); err != nil {
		x.t.Error(err)
	}
}

func (x txOf) Commit() {
	x.t.Helper()
	if err := x.Tx.Commit(); err != nil {
		x.t.Error(err)
	}
}

func TestSharedStorePasses(t *testing.T) {
	l2test.Exercise(t, func(t *testing.T) l2test.Site {
		t.Helper()
		const maxValue = 1 << 20
		c, _, _ := partsOf(t, Config{Node: node.Config{Redis: node.RedisConfig{MaxValue: maxValue}}})
		return l2test.Site{
			MaxValue: maxValue,
			Open: func(*testing.T) tiers.Store {
				m := &member{postgres: newWay(c.db)}
				p := c.parts(m)
				c.members = append(c.members, m)
				return p.L2
			},
			Outage: func(_ *testing.T, s tiers.Store) {
				for i, m := range c.members {
					if tiers.Store(m.redis) == s {
						c.RedisAway(i)
					}
				}
			},
		}
	})
}

func TestLinkPasses(t *testing.T) {
	c, _, _ := partsOf(t, Config{})
	conntest.Exercise(t, func(t *testing.T) conntest.Member {
		t.Helper()
		m := &member{postgres: newWay(c.db)}
		conn, err := c.parts(m).Connect(func() {})
		if err != nil {
			t.Fatal(err)
		}
		c.members = append(c.members, m)
		return linkOf{conn, c, len(c.members) - 1}
	})
}

// linkOf is a node's link, with the faults of the cluster.
type linkOf struct {
	node.Link
	cluster *Cluster
	index   int
}

func (l linkOf) Cut()  { l.cluster.NATSAway(l.index) }
func (l linkOf) Heal() { l.cluster.NATSBack(l.index) }
