package nodetest

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/freshet-cache/freshet/cluster/conntest"
	"github.com/freshet-cache/freshet/node"
	"github.com/freshet-cache/freshet/tiers/l2test"
)

// Config describes a [Cluster]. The zero Config is three nodes with Redis and NATS.
type Config struct {
	// Nodes is how many there are, 1 to [MaxNodes]; 0 = 3.
	Nodes int
	// Node is what the nodes have as their configuration, but for ID, which is node-0 and so on, and for servers, of
	// which it must name none. App "" = "test"; a nil Logger discards.
	Node node.Config
	// WithoutRedis and WithoutNATS leave these out, as a node.Config does that names no servers of them.
	WithoutRedis, WithoutNATS bool
	// Seed decides which messages [Cluster.NATSFaults] strike.
	Seed uint64
}

// MaxNodes bounds the nodes of a cluster.
const MaxNodes = 64

// Cluster is nodes in one process, with all that they stand on in memory. It is safe for concurrent use.
type Cluster struct {
	config Config
	db     *database
	redis  *l2test.Memory
	nats   *conntest.Hub
	fail   func(err error) // with what has no result

	mu      sync.Mutex
	members []*member // by index
	former  []*member // those that others have come in place of
}

// member is one start of a node, and its ways to what it stands on.
type member struct {
	node     *node.Node
	postgres *way
	redis    *l2test.Link   // nil = none
	nats     *conntest.Conn // nil = none
}

// New makes a cluster whose nodes are ready, for a test, at whose end it is closed. It works inside a bubble of
// [testing/synctest] and outside. In one, time is virtual: tests wait for minutes in no time.
func New(t testing.TB, c Config) *Cluster {
	t.Helper()
	cluster, err := Open(c)
	if err != nil {
		t.Fatal(err)
	}
	cluster.fail = func(err error) { t.Error(err) }
	t.Cleanup(func() {
		if err := cluster.Close(); err != nil {
			t.Errorf("nodetest: close: %v", err)
		}
	})
	return cluster
}

// Open is [New] outside of tests. Whoever opened it closes it. Methods that make a test of New fail panic.
func Open(config Config) (*Cluster, error) {
	if config.Nodes < 0 || config.Nodes > MaxNodes {
		return nil, fmt.Errorf("nodetest: Config.Nodes is %d; want 1 to %d, or 0 for 3", config.Nodes, MaxNodes)
	}
	if config.Node.ID != "" {
		return nil, errors.New("nodetest: Config.Node.ID is set; want it empty, since the nodes are node-0, node-1 and so on")
	}
	if config.Nodes == 0 {
		config.Nodes = 3
	}
	if config.Node.Registry != nil && config.Nodes > 1 {
		return nil, errors.New("nodetest: Config.Node.Registry is set for several nodes; want it for one, since metrics have no name of a node")
	}
	if config.Node.App == "" {
		config.Node.App = "test"
	}
	if config.Node.Logger == nil {
		config.Node.Logger = slog.New(slog.DiscardHandler)
	}
	c := &Cluster{
		config: config, db: newDatabase(), redis: l2test.NewMemory(config.Node.Redis.MaxValue), nats: conntest.NewHub(config.Seed),
		fail: func(err error) { panic(err) },
	}
	ctx, cancel := context.WithTimeout(context.Background(), readyWait)
	defer cancel()
	for i := range config.Nodes {
		m, err := c.open(i)
		if err == nil {
			c.members = append(c.members, m)
			err = m.node.Ready(ctx)
		}
		if err != nil {
			return nil, errors.Join(fmt.Errorf("nodetest: node %d: %w", i, err), c.Close())
		}
	}
	return c, nil
}

// readyWait bounds the wait for the first poll of new nodes.
const readyWait = 30 * time.Second

// startPause is between two starts, which are named by their time.
const startPause = 100 * time.Microsecond

// open starts the node of the index.
func (c *Cluster) open(i int) (*member, error) {
	<-time.After(startPause)
	m := &member{postgres: newWay(c.db)}
	config := c.config.Node
	config.ID = fmt.Sprintf("node-%d", i)
	var err error
	m.node, err = node.OpenOn(context.Background(), config, c.parts(m))
	return m, err
}

// parts are the member's.
func (c *Cluster) parts(m *member) node.Parts {
	const writeTimeout = 30 * time.Second // as a node's
	config := c.config.Node.Postgres
	p := node.Parts{
		Log:      &wayLog{way: m.postgres, timeout: cmp.Or(config.PollTimeout, time.Second)},
		Database: wayDatabase{m.postgres, cmp.Or(config.WriteTimeout, writeTimeout)},
	}
	if !c.config.WithoutRedis {
		m.redis = c.redis.Link()
		p.L2 = m.redis
	}
	if !c.config.WithoutNATS {
		p.Connect = func(missed func()) (node.Link, error) {
			m.nats = c.nats.Connect(missed)
			return m.nats, nil
		}
	}
	return p
}

// Node is the node of the index, from 0 on, as it was started last.
func (c *Cluster) Node(i int) *node.Node {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.members[i].node
}

// Nodes are all of them, in their order.
func (c *Cluster) Nodes() []*node.Node {
	c.mu.Lock()
	defer c.mu.Unlock()
	nodes := make([]*node.Node, len(c.members))
	for i, m := range c.members {
		nodes[i] = m.node
	}
	return nodes
}

// member is that of the node; nil if it is another cluster's.
func (c *Cluster) member(n *node.Node) *member {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, m := range slices.Concat(c.members, c.former) {
		if m.node == n {
			return m
		}
	}
	return nil
}

// at are the members of the index, or with [All] all of them.
func (c *Cluster) at(i int) []*member {
	c.mu.Lock()
	defer c.mu.Unlock()
	if i == All {
		return slices.Clone(c.members)
	}
	return []*member{c.members[i]}
}

// Begin begins a transaction, as any other program does that writes to the database, and leaves it open.
func (c *Cluster) Begin() *Tx { return c.db.begin(context.Background()) }

// Commit runs the function in a transaction and commits it if it returns nil. Other transactions may begin and commit
// meanwhile.
func (c *Cluster) Commit(change func(tx *Tx) error) error {
	tx := c.Begin()
	defer tx.Rollback() // nothing to roll back after a commit
	if err := change(tx); err != nil {
		return err
	}
	return tx.Commit()
}

// Invalidate says that the entities have changed, as another program does by freshet.invalidate in SQL: no node is told
// but by the log. When it cannot, the test fails.
func (c *Cluster) Invalidate(namespace string, ids ...string) {
	c.must(c.Commit(func(tx *Tx) error { return tx.Invalidate(namespace, ids...) }))
}

// InvalidateTag says that every entry with one of the tags has changed, as [Cluster.Invalidate] does of entities.
func (c *Cluster) InvalidateTag(tags ...string) {
	c.must(c.Commit(func(tx *Tx) error { return tx.InvalidateTag(tags...) }))
}

// InvalidateNamespace says that every entry of the namespace has changed, as [Cluster.Invalidate] does of entities.
func (c *Cluster) InvalidateNamespace(namespace string) {
	c.must(c.Commit(func(tx *Tx) error { return tx.InvalidateNamespace(namespace) }))
}

func (c *Cluster) must(err error) {
	if err != nil {
		c.fail(err)
	}
}

// Kill has the node end as its process would that is killed: nothing that it does from now on has an effect, its
// transactions are rolled back, and nobody is told. What the test holds of it answers [node.ErrClosed]. It returns when
// loads and functions of writes that were under way have come back, as [node.Node.Close] does.
func (c *Cluster) Kill(i int) {
	for _, m := range c.at(i) {
		m.sever()
		_ = m.node.Close() // what it could not do any more is what a killed one does not
	}
}

// sever takes the node off everything, for good.
func (m *member) sever() {
	m.postgres.change(cutForGood)
	if m.redis != nil {
		m.redis.Close()
	}
	if m.nats != nil {
		m.nats.Close()
	}
}

// Start starts a successor of the node, which is closed before if it was not killed, and returns it: it has a new
// L1, no caches, and none of the faults of the one before, but for those of [Cluster.NATSFaults]. It need not be ready.
// When it cannot be started, the test fails and there is none.
func (c *Cluster) Start(i int) *node.Node {
	old := c.at(i)[0]
	c.must(old.node.Close())
	m, err := c.open(i)
	if err != nil {
		c.fail(fmt.Errorf("nodetest: start node %d: %w", i, err))
		return nil
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.former = append(c.former, old)
	c.members[i] = m
	return m.node
}

// Close heals all faults and closes all nodes. Transactions that the test has left open are rolled back.
func (c *Cluster) Close() error {
	c.Heal(All)
	var problems []error
	for _, n := range c.Nodes() {
		problems = append(problems, n.Close())
	}
	c.nats.Close()
	c.db.close()
	return errors.Join(problems...)
}
