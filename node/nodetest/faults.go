package nodetest

import (
	"fmt"
	"time"

	"github.com/freshet-cache/freshet/cluster/conntest"
	"github.com/freshet-cache/freshet/tiers"
)

// All is, as the index of a fault, every node that there is now.
const All = -1

// PostgresAway has the node's connections to Postgres broken, its transactions with them, and new ones refused, until
// PostgresBack: polls, loads and writes fail at once.
func (c *Cluster) PostgresAway(i int) { c.postgres(i, away) }

// PostgresHangs has nothing come back from Postgres until PostgresBack: polls, loads and writes wait for as long as
// they may.
func (c *Cluster) PostgresHangs(i int) { c.postgres(i, hanging) }

// PostgresLosesCommits has the node's commits done, and their answers lost, until PostgresBack: the node says that
// nobody knows the outcome.
func (c *Cluster) PostgresLosesCommits(i int) { c.postgres(i, losing) }

// PostgresBack ends what the methods above have begun. What PostgresSlow has set stays.
func (c *Cluster) PostgresBack(i int) { c.postgres(i, reached) }

func (c *Cluster) postgres(i int, state wayState) {
	for _, m := range c.at(i) {
		m.postgres.change(state)
	}
}

// PostgresSlow has every call of Postgres by the node take so long, half of it on the way there; 0 = no time.
func (c *Cluster) PostgresSlow(i int, d time.Duration) {
	for _, m := range c.at(i) {
		m.postgres.slow(d)
	}
}

// CrashPostgres has Postgres crash and come back at once: what is open is rolled back, and since its transactions' ids
// are given again, nothing that was cached before is taken for valid.
func (c *Cluster) CrashPostgres() { c.db.crash() }

// RedisAway has the node take Redis for unavailable, as behind an open breaker, until RedisBack.
func (c *Cluster) RedisAway(i int) {
	c.onRedis(i, func(m *member) { m.redis.Down(true) })
}

// RedisFails has every call of Redis by the node fail after its work is done, until RedisBack.
func (c *Cluster) RedisFails(i int) {
	err := fmt.Errorf("%w: nodetest: the answer is lost", tiers.ErrUnavailable)
	c.onRedis(i, func(m *member) { m.redis.Fail(err) })
}

// RedisSlow has every call of Redis by the node take so long; above 50 ms it fails, and its work may be done. 0 = no
// time.
func (c *Cluster) RedisSlow(i int, d time.Duration) {
	c.onRedis(i, func(m *member) { m.redis.Delay(d) })
}

// RedisBack ends RedisAway and RedisFails.
func (c *Cluster) RedisBack(i int) {
	c.onRedis(i, func(m *member) {
		m.redis.Down(false)
		m.redis.Fail(nil)
	})
}

func (c *Cluster) onRedis(i int, do func(m *member)) {
	for _, m := range c.at(i) {
		if m.redis != nil {
			do(m)
		}
	}
}

// FlushRedis empties Redis.
func (c *Cluster) FlushRedis() { c.redis.Restore(nil, 0) }

// RedisDump is what Redis held at some time.
type RedisDump struct{ values map[string][]byte }

// DumpRedis is what Redis holds now, for [Cluster.RestoreRedis].
func (c *Cluster) DumpRedis() RedisDump { return RedisDump{c.redis.Copy()} }

// RestoreRedis puts the dump in place of all that Redis holds, as when a primary comes back with an old file: each value
// lives for ttl.
func (c *Cluster) RestoreRedis(d RedisDump, ttl time.Duration) { c.redis.Restore(d.values, ttl) }

// NATSAway has the node lose its connection to NATS, and know it, until NATSBack.
func (c *Cluster) NATSAway(i int) { c.onNATS(i, (*conntest.Conn).Cut) }

// NATSMute loses all that the node sends to NATS and is sent, without its knowing, until NATSBack.
func (c *Cluster) NATSMute(i int) { c.onNATS(i, (*conntest.Conn).Mute) }

// NATSBack ends NATSAway and NATSMute.
func (c *Cluster) NATSBack(i int) { c.onNATS(i, (*conntest.Conn).Heal) }

func (c *Cluster) onNATS(i int, do func(*conntest.Conn)) {
	for _, m := range c.at(i) {
		if m.nats != nil {
			do(m.nats)
		}
	}
}

// NATSFaults are what happens to each message on its way to each node: it is dropped, arrives twice, or late, so that
// messages overtake one another. They are in place of those set before; the zero Faults are none.
func (c *Cluster) NATSFaults(f conntest.Faults) { c.nats.Set(f) }

// Partition takes the node off everything without its knowing: nothing comes back from Postgres, Redis is unavailable,
// and messages are lost.
func (c *Cluster) Partition(i int) {
	c.PostgresHangs(i)
	c.RedisAway(i)
	c.NATSMute(i)
}

// Heal ends what the methods above have begun for the node, slowness too; with [All] also NATSFaults. It brings no
// killed node back.
func (c *Cluster) Heal(i int) {
	c.PostgresBack(i)
	c.PostgresSlow(i, 0)
	c.RedisBack(i)
	c.RedisSlow(i, 0)
	c.NATSBack(i)
	if i == All {
		c.NATSFaults(conntest.Faults{})
	}
}
