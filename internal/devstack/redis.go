package devstack

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
)

const (
	redisPrimaries = 3
	redisNodes     = 2 * redisPrimaries // each primary has one replica
)

// redisSettings is a node's redis.conf. Nothing is kept on disk but the cluster
// configuration. A node is held for failed after 2 s (Redis's default is 15), so
// that a test sees a failover in about three seconds. Slots that are served stay
// usable while others are not. A replica may take over however long it has not
// heard from its primary, and none moves to another primary, so that a test
// knows which node stands in for which.
const redisSettings = `bind %s
port %d
protected-mode yes
dir "%s"
daemonize no
logfile ""
loglevel notice
save ""
appendonly no
rdb-del-sync-files yes
maxmemory %s
maxmemory-policy allkeys-lru
slowlog-log-slower-than 10000
slowlog-max-len 256
repl-diskless-sync yes
repl-diskless-sync-delay 0
cluster-enabled yes
cluster-config-file nodes.conf
cluster-node-timeout 2000
cluster-require-full-coverage no
cluster-allow-reads-when-down no
cluster-replica-validity-factor 0
cluster-migration-barrier 16
`

// redis7Settings are unknown to Redis 6: a node that stops does not wait for
// replicas that lag (a paused one would take it ten seconds).
const redis7Settings = `shutdown-timeout 0
`

// redisMemory is a node's maxmemory unless [Redis.LimitMemory] has changed it.
const redisMemory = "256mb"

// Redis is a Redis Cluster of three primaries with one replica each.
type Redis struct {
	site       *site
	nodes      []*RedisNode
	own, cache Access // of the stack itself and of applications; empty unless secured

	changing sync.Mutex // held by Move, Save and Restore

	mu      sync.Mutex
	proxies []*RedisProxies // of clients
}

// RedisNode is one server of the cluster. Whether it is a primary or a replica
// changes with failovers.
type RedisNode struct {
	process *process
	access  Access      // with which the stack reaches it
	conf    string      // path of redis.conf
	text    string      // of redis.conf, with %d for the port
	ports   [2]int      // offsets in the stack's block: where it began, and where it moves to
	moved   atomic.Bool // it is at the second of ports

	starting sync.Mutex // held while its files are made ready and its process starts
}

func newRedis(s *site, program redisProgram, secure bool) (*Redis, error) {
	r := &Redis{site: s}
	ports := "port %d\n"
	if secure {
		settings, err := r.secure()
		if err != nil {
			return nil, err
		}
		ports = "port 0\n" + settings
	}
	for i := range redisNodes {
		name := fmt.Sprintf("redis-%d", i)
		dir, err := s.mkdir(name)
		if err != nil {
			return nil, err
		}
		text := strings.ReplaceAll(fmt.Sprintf(redisSettings, loopback, 0, redisEscape.Replace(dir), redisMemory), "%", "%%")
		if program.major >= 7 {
			text += redis7Settings
		}
		conf := filepath.Join(dir, "redis.conf")
		n := &RedisNode{
			process: &process{site: s, name: name, path: program.server, dir: dir, args: []string{conf}},
			access:  r.own,
			conf:    conf,
			text:    strings.Replace(text, "\nport 0\n", "\n"+ports, 1),
			ports:   [2]int{redisPort + i, movedPort + i},
		}
		if err := n.configure(); err != nil {
			return nil, err
		}
		r.nodes = append(r.nodes, n)
	}
	return r, nil
}

// configure writes redis.conf for the port where the node is.
func (n *RedisNode) configure() error {
	return n.process.site.write(n.conf, fmt.Sprintf(n.text, n.process.site.ports.port(n.port())))
}

// port is the offset of the node's port.
func (n *RedisNode) port() int {
	if n.moved.Load() {
		return n.ports[1]
	}
	return n.ports[0]
}

// redisEscape quotes a path for redis.conf.
var redisEscape = strings.NewReplacer(`\`, `\\`, `"`, `\"`)

// Addrs returns the six client addresses, host:port, in the order of Nodes. They
// stay the same for the life of the stack or until [Redis.Move].
func (r *Redis) Addrs() []string {
	addrs := make([]string, len(r.nodes))
	for i, n := range r.nodes {
		addrs[i] = n.Addr()
	}
	return addrs
}

// Nodes returns the six nodes in a fixed order: 0 to 2 began as primaries, 3 to
// 5 as replicas of 0 to 2. Each primary began with a third of the slots, in
// order.
func (r *Redis) Nodes() []*RedisNode { return append([]*RedisNode(nil), r.nodes...) }

// each runs a control on all nodes at once and joins the errors.
func (r *Redis) each(control func(*RedisNode) error) error {
	errs := make([]error, len(r.nodes))
	var g sync.WaitGroup
	for i, n := range r.nodes {
		g.Go(func() { errs[i] = control(n) })
	}
	g.Wait()
	return errors.Join(errs...)
}

// StopAll stops all six nodes at once, see [RedisNode.Stop].
func (r *Redis) StopAll() error { return r.each((*RedisNode).Stop) }

// KillAll kills all six nodes at once, see [RedisNode.Kill].
func (r *Redis) KillAll() error { return r.each((*RedisNode).Kill) }

// StartAll starts all six nodes at once, see [RedisNode.Start]. The cluster is
// whole again some seconds later: wait for that with [Redis.WaitReady].
func (r *Redis) StartAll(ctx context.Context) error {
	return r.each(func(n *RedisNode) error { return n.Start(ctx) })
}

// Addr returns the node's client address, host:port.
func (n *RedisNode) Addr() string { return n.process.site.ports.addr(n.port()) }

// Pause freezes the node. Its connections stay open, and the kernel still
// accepts new ones, but it answers neither clients nor the cluster, which holds
// it for failed after two seconds. Pausing a stopped node is an error.
func (n *RedisNode) Pause() error { return n.process.pause() }

// Resume ends Pause. It does nothing to a node that runs; resuming a stopped one
// is an error.
func (n *RedisNode) Resume() error { return n.process.unpause() }

// Kill ends the node with SIGKILL and returns when it is gone. Killing a stopped
// node does nothing.
func (n *RedisNode) Kill() error { return n.process.kill() }

// Stop shuts the node down in order; a paused node is resumed first. Stop
// returns when it has ended; one that has not after 10 s is killed, which is an
// error. No failover is asked for. Stopping a stopped node does nothing.
func (n *RedisNode) Stop() error { return n.process.stop(syscall.SIGTERM, stopLimit) }

// Start starts a stopped or killed node on the same port, with its place in the
// cluster but without data, and returns when it answers PING. A node that runs
// is resumed if paused, and waited for. Start gives up when ctx ends, after
// 30 s, or when the stack is closed, and leaves the node as it is then.
func (n *RedisNode) Start(ctx context.Context) error { return n.startWith(ctx, "") }

// dump is the file from which a node loads its data when it starts.
func (n *RedisNode) dump() string { return filepath.Join(n.process.dir, "dump.rdb") }

// startWith starts the node with the data in a file, which it may take; "" means
// without data.
func (n *RedisNode) startWith(ctx context.Context, data string) error {
	ctx, cancel := n.process.site.within(ctx, readyLimit)
	defer cancel()
	r, err := n.begin(data)
	if err != nil {
		return err
	}
	return n.process.ready(ctx, r, func(ctx context.Context) error {
		_, err := n.ask(ctx, []string{"PING"})
		return err
	})
}

// begin makes the node's files ready, unless it runs, and starts it.
func (n *RedisNode) begin(data string) (*run, error) {
	n.starting.Lock()
	defer n.starting.Unlock()
	if !n.process.alive() && data != n.dump() {
		if err := os.RemoveAll(n.dump()); err != nil {
			return nil, fmt.Errorf("devstack: %s: %w", n.process.name, err)
		}
		if data != "" {
			if err := os.Link(data, n.dump()); err != nil {
				return nil, fmt.Errorf("devstack: %s: %w", n.process.name, err)
			}
		}
	}
	return n.process.start()
}
