package devstack

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"time"

	"github.com/redis/rueidis"
)

const (
	saveLimit    = 20 * time.Second // to write a node's data to disk, 256 MB at most
	migrateLimit = 5 * time.Second  // for one step of moving a slot
	migrateKeys  = 100              // moved per step
	reshardSlots = 1024             // moved per call
)

// wrongPassword is a replica's masterauth while its replication is cut: a node
// without passwords refuses every one.
const wrongPassword = "replication-is-cut"

// roles are who serves slots and who replicates whom.
type roles struct {
	ids      map[*RedisNode]string
	replicas map[*RedisNode][]*RedisNode // by primary that serves slots
}

// roles asks all nodes; where some do not answer, it returns an error and what the others say of
// themselves.
func (r *Redis) roles(ctx context.Context) (roles, error) {
	views, err := r.look(ctx)
	got := roles{ids: make(map[*RedisNode]string), replicas: make(map[*RedisNode][]*RedisNode)}
	primaries := make(map[string]*RedisNode) // id -> node
	for i, v := range views {
		got.ids[r.nodes[i]] = v.self
		for _, s := range v.nodes {
			if s.id == v.self && s.primary == "" && len(s.ranges) > 0 {
				primaries[v.self] = r.nodes[i]
				got.replicas[r.nodes[i]] = nil
			}
		}
	}
	for i, v := range views {
		for _, s := range v.nodes {
			if p := primaries[s.primary]; s.id == v.self && p != nil {
				got.replicas[p] = append(got.replicas[p], r.nodes[i])
			}
		}
	}
	return got, err
}

// Shard returns the node that serves a slot and, behind it, those of its
// replicas that answer.
func (r *Redis) Shard(slot uint16) ([]*RedisNode, error) {
	primary, err := r.Primary(slot)
	if err != nil {
		return nil, err
	}
	ctx, cancel := r.site.within(context.Background(), askLimit)
	defer cancel()
	is, _ := r.roles(ctx) // those that do not answer are left out
	return append([]*RedisNode{primary}, is.replicas[primary]...), nil
}

// AwaitSuccessor returns the node that serves the slot as soon as it is another
// than old and says itself that it is a primary. It fails when ctx ends, after
// 30 s, or when the stack is closed.
func (r *Redis) AwaitSuccessor(ctx context.Context, slot uint16, old *RedisNode) (*RedisNode, error) {
	ctx, cancel := r.site.within(ctx, readyLimit)
	defer cancel()
	for {
		n, err := r.Primary(slot)
		if err == nil && n != old {
			var v view
			if v, err = n.see(ctx); err == nil && slices.ContainsFunc(v.nodes, func(s seen) bool { return s.id == v.self && s.serves(slot) }) {
				return n, nil
			}
		}
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("devstack: no other node serves slot %d: %w", slot, errors.Join(context.Cause(ctx), err))
		case <-time.After(clusterPause):
		}
	}
}

// Flush empties every primary with FLUSHALL, and with them the replicas. It
// empties those that answer also when others do not, which is an error.
func (r *Redis) Flush(ctx context.Context) error {
	ctx, cancel := r.site.within(ctx, readyLimit)
	defer cancel()
	is, err := r.roles(ctx)
	for n := range is.replicas {
		_, flushErr := n.askWithin(ctx, saveLimit, []string{"FLUSHALL", "SYNC"})
		err = errors.Join(err, flushErr)
	}
	return err
}

// Configure sets parameters with CONFIG SET on every node, name and value in
// turn, until the node is started anew.
func (r *Redis) Configure(ctx context.Context, namesAndValues ...string) error {
	ctx, cancel := r.site.within(ctx, readyLimit)
	defer cancel()
	return r.each(func(n *RedisNode) error { return n.configureWith(ctx, namesAndValues) })
}

func (n *RedisNode) configureWith(ctx context.Context, namesAndValues []string) error {
	for pair := range slices.Chunk(namesAndValues, 2) {
		if err := n.tell(ctx, append([]string{"CONFIG", "SET"}, pair...)...); err != nil {
			return fmt.Errorf("devstack: redis: %w", err)
		}
	}
	return nil
}

// LimitMemory leaves each node room for about so many bytes more than it uses
// now: further keys evict others, least recently used first. For less than it
// holds now, call [Redis.Flush] before. Connections take their part of the room,
// some ten KB each; below a MB, writes may find none and be refused. Zero or less
// brings the usual room back, which a node that is started anew has too.
func (r *Redis) LimitMemory(ctx context.Context, bytes int64) error {
	ctx, cancel := r.site.within(ctx, readyLimit)
	defer cancel()
	return r.each(func(n *RedisNode) error {
		limit := redisMemory
		if bytes > 0 {
			texts, err := n.ask(ctx, []string{"INFO", "memory"}, []string{"INFO", "replication"})
			if err != nil {
				return fmt.Errorf("devstack: redis: %w", err)
			}
			used, err := strconv.ParseInt(property(texts[0], "used_memory"), 10, 64)
			// What the log of the last writes, kept for replicas, will grow by counts too.
			backlog, backlogErr := strconv.ParseInt(property(texts[0], "mem_replication_backlog"), 10, 64)
			size, sizeErr := strconv.ParseInt(property(texts[1], "repl_backlog_size"), 10, 64)
			if err := errors.Join(err, backlogErr, sizeErr); err != nil {
				return fmt.Errorf("devstack: redis: %s: INFO: %w", n.Addr(), err)
			}
			limit = strconv.FormatInt(used+max(0, size-backlog)+bytes, 10)
		}
		return n.configureWith(ctx, []string{"maxmemory", limit})
	})
}

// CutReplication keeps from the replicas of a primary what it is told after the
// return; they stay members of the cluster, and one takes over when the primary
// is killed: writes that were acknowledged are then lost. [Redis.HealReplication]
// ends it, as does a new start of the replica.
func (r *Redis) CutReplication(ctx context.Context, primary *RedisNode) error {
	ctx, cancel := r.site.within(ctx, readyLimit)
	defer cancel()
	is, err := r.roles(ctx)
	if len(is.replicas[primary]) == 0 {
		return errors.Join(fmt.Errorf("devstack: redis: %s has no replica", primary.Addr()), err)
	}
	for _, replica := range is.replicas[primary] {
		if err := replica.configureWith(ctx, []string{"masterauth", wrongPassword}); err != nil {
			return err
		}
	}
	if err := primary.tell(ctx, "CLIENT", "KILL", "TYPE", "replica"); err != nil {
		return fmt.Errorf("devstack: redis: %w", err)
	}
	return nil
}

// HealReplication ends every CutReplication. The replicas are attached again
// within seconds: wait for that with [Redis.WaitReady].
func (r *Redis) HealReplication(ctx context.Context) error {
	return r.Configure(ctx, "masterauth", "")
}

// Reshard moves slots with their keys to another primary, one slot after the
// other, while clients use them: they meet ASK and MOVED. It returns when all
// primaries have been told; slots that are there already are skipped. At most
// 1024 slots are moved per call, which may take minutes; when it is interrupted,
// by the end of ctx too, a slot is left in the middle, and another call to the
// same node goes on with it.
func (r *Redis) Reshard(ctx context.Context, to *RedisNode, moved ...uint16) error {
	if len(moved) > reshardSlots {
		return fmt.Errorf("devstack: redis: %d slots are more than %d", len(moved), reshardSlots)
	}
	ctx, cancel := r.site.within(ctx, time.Hour)
	defer cancel()
	is, err := r.roles(ctx)
	if err != nil {
		return fmt.Errorf("devstack: redis: %w", err)
	}
	if _, ok := is.replicas[to]; !ok {
		return fmt.Errorf("devstack: redis: %s is no primary with slots", to.Addr())
	}
	m := mover{ids: is.ids, clients: make(map[*RedisNode]rueidis.Client)}
	defer m.close()
	for _, n := range r.nodes {
		if m.clients[n], err = n.dial(migrateLimit); err != nil {
			delete(m.clients, n)
			return fmt.Errorf("devstack: redis: %w", err)
		}
	}
	for _, slot := range moved {
		from, err := r.Primary(slot)
		if err != nil {
			return err
		}
		if from == to {
			continue
		}
		if err := m.move(ctx, slot, from, to, slices.Collect(maps.Keys(is.replicas))); err != nil {
			return fmt.Errorf("devstack: redis: move slot %d from %s to %s: %w", slot, from.Addr(), to.Addr(), err)
		}
	}
	return nil
}

// mover moves slots over one connection to each node.
type mover struct {
	ids     map[*RedisNode]string
	clients map[*RedisNode]rueidis.Client
}

func (m mover) close() {
	for _, c := range m.clients {
		c.Close()
	}
}

func (m mover) do(ctx context.Context, n *RedisNode, command ...string) rueidis.RedisResult {
	ctx, cancel := context.WithTimeout(ctx, migrateLimit)
	defer cancel()
	c := m.clients[n]
	return c.Do(ctx, c.B().Arbitrary(command...).Build())
}

// move follows the steps of CLUSTER SETSLOT's manual.
func (m mover) move(ctx context.Context, slot uint16, from, to *RedisNode, primaries []*RedisNode) error {
	name := strconv.Itoa(int(slot))
	if err := m.do(ctx, to, "CLUSTER", "SETSLOT", name, "IMPORTING", m.ids[from]).Error(); err != nil {
		return err
	}
	if err := m.do(ctx, from, "CLUSTER", "SETSLOT", name, "MIGRATING", m.ids[to]).Error(); err != nil {
		return err
	}
	host, port, err := net.SplitHostPort(to.Addr())
	if err != nil {
		return err
	}
	for {
		keys, err := m.do(ctx, from, "CLUSTER", "GETKEYSINSLOT", name, strconv.Itoa(migrateKeys)).AsStrSlice()
		if err != nil {
			return err
		}
		if len(keys) == 0 {
			break
		}
		// REPLACE: of an interrupted attempt the old node's is the value that counts.
		migrate := append([]string{"MIGRATE", host, port, "", "0", strconv.FormatInt(migrateLimit.Milliseconds(), 10), "REPLACE", "KEYS"}, keys...)
		if err := m.do(ctx, from, migrate...).Error(); err != nil {
			return err
		}
	}
	// The new owner first: until it knows, the old one sends clients to it in vain.
	// Replicas follow their primaries in slots as in data.
	for _, n := range slices.Concat([]*RedisNode{to, from}, primaries) {
		if err := m.do(ctx, n, "CLUSTER", "SETSLOT", name, "NODE", m.ids[to]).Error(); err != nil {
			return err
		}
	}
	return nil
}

// saved is where a node's data is kept by Save.
func (n *RedisNode) saved() string { return filepath.Join(n.process.dir, "saved.rdb") }

// Save keeps a copy of the data of each node as of now, for [Redis.Restore]. It
// replaces the copies that were kept before; a node that does not answer is an
// error, and keeps none.
func (r *Redis) Save(ctx context.Context) error {
	r.changing.Lock()
	defer r.changing.Unlock()
	ctx, cancel := r.site.within(ctx, readyLimit)
	defer cancel()
	return r.each(func(n *RedisNode) error {
		if err := os.RemoveAll(n.saved()); err != nil {
			return fmt.Errorf("devstack: %w", err)
		}
		if _, err := n.askWithin(ctx, saveLimit, []string{"SAVE"}); err != nil {
			return fmt.Errorf("devstack: redis: %w", err)
		}
		if err := os.Rename(n.dump(), n.saved()); err != nil {
			return fmt.Errorf("devstack: %w", err)
		}
		return nil
	})
}

// Restore kills the given nodes, all six when none is given, and starts them
// with the data of the last [Redis.Save], or without data when there is none, as
// when somebody has put an old dump back. Give a whole shard, see [Redis.Shard]:
// a node whose primary runs takes its data from there. It returns when the nodes
// have loaded their data and answer; the cluster is whole again some seconds
// later, see [Redis.WaitReady].
func (r *Redis) Restore(ctx context.Context, nodes ...*RedisNode) error {
	r.changing.Lock()
	defer r.changing.Unlock()
	if len(nodes) == 0 {
		nodes = r.nodes
	}
	some := &Redis{nodes: nodes}
	if err := some.KillAll(); err != nil {
		return err
	}
	return some.each(func(n *RedisNode) error {
		data := n.saved()
		if _, err := os.Stat(data); err != nil {
			data = ""
		}
		return n.startWith(ctx, data)
	})
}

// redisBusAddr is an address in nodes.conf: ip:port@busport.
var redisBusAddr = regexp.MustCompile(regexp.QuoteMeta(loopback) + `:(\d+)@\d+`)

// Move stops all six nodes, gives them other ports, and starts them with their
// data, as when a whole cluster is rescheduled: at the old addresses nobody
// listens. The next call moves them back. Addr and Addrs change; proxies of
// [Redis.Proxies] know both addresses of each node. Move returns when all nodes
// answer; the cluster is whole again some seconds later, see [Redis.WaitReady].
// A node that was stopped is started. When it fails, some nodes may be down: they
// are at their new addresses for [Redis.StartAll].
func (r *Redis) Move(ctx context.Context) error {
	r.changing.Lock()
	defer r.changing.Unlock()
	ctx, cancel := r.site.within(ctx, readyLimit)
	defer cancel()
	if err := r.each(func(n *RedisNode) error { return n.stopWithData(ctx) }); err != nil {
		return err
	}
	ports := make(map[string]int) // where a node was or may be -> where it will be
	for _, n := range r.nodes {
		n.moved.Store(!n.moved.Load())
		for _, p := range n.ports {
			ports[strconv.Itoa(r.site.ports.port(p))] = r.site.ports.port(n.port())
		}
	}
	for _, n := range r.nodes {
		if err := n.readdress(ports); err != nil {
			return err
		}
	}
	return r.each(func(n *RedisNode) error { return n.startWith(ctx, n.dump()) })
}

// stopWithData ends the node after it has written its data.
func (n *RedisNode) stopWithData(ctx context.Context) error {
	if !n.process.alive() {
		return nil
	}
	if err := errors.Join(os.RemoveAll(n.dump()), n.process.unpause()); err != nil {
		return err
	}
	// It ends instead of answering; a node that cannot is stopped without data.
	_, _ = n.askWithin(ctx, saveLimit, []string{"SHUTDOWN", "SAVE"})
	return n.Stop()
}

// readdress rewrites the node's files.
func (n *RedisNode) readdress(ports map[string]int) error {
	if err := n.configure(); err != nil {
		return err
	}
	path := filepath.Join(n.process.dir, "nodes.conf")
	text, err := os.ReadFile(path)
	if err != nil {
		return fmt.Errorf("devstack: %w", err)
	}
	moved := redisBusAddr.ReplaceAllStringFunc(string(text), func(addr string) string {
		port, ok := ports[redisBusAddr.FindStringSubmatch(addr)[1]]
		if !ok {
			return addr
		}
		return fmt.Sprintf("%s:%d@%d", loopback, port, port+busOffset)
	})
	return n.process.site.write(path, moved)
}

// RedisProxies stand between one client and all nodes of the cluster: one
// [Proxy] for each address that a node has or may move to, so that the client
// can be cut off from one node, one shard or all, and a service address. A proxy
// leads to its own address only: where a node has moved away from, nobody
// answers.
//
// The client begins at the service's address and dials through [RedisProxies.Dial],
// or, in another process, through [DialMap] of [RedisProxies.Map].
type RedisProxies struct {
	ports   *block
	service *Proxy
	nodes   map[*RedisNode][]*Proxy
	dial    map[string]string // announced address -> proxy's
}

// Proxies starts proxies for one client. They end with Close, or with the stack.
func (r *Redis) Proxies() (_ *RedisProxies, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if err := context.Cause(r.site.life); err != nil {
		return nil, err
	}
	ports, err := reserve(1+2*redisNodes, 0)
	if err != nil {
		return nil, err
	}
	p := &RedisProxies{ports: ports, nodes: make(map[*RedisNode][]*Proxy), dial: make(map[string]string)}
	defer func() {
		if err != nil {
			p.Close()
		}
	}()
	next := 1
	start := func(targets ...string) (*Proxy, error) {
		next++
		return newProxy(ports.addr(next-1), nil, targets...)
	}
	var all []string
	for _, n := range r.nodes {
		for _, offset := range n.ports {
			addr := r.site.ports.addr(offset)
			proxy, err := start(addr)
			if err != nil {
				return nil, err
			}
			p.nodes[n] = append(p.nodes[n], proxy)
			p.dial[addr] = proxy.Addr()
			all = append(all, addr)
		}
	}
	if p.service, err = start(all...); err != nil {
		return nil, err
	}
	r.proxies = slices.DeleteFunc(r.proxies, func(o *RedisProxies) bool { return o.service.life.Err() != nil })
	r.proxies = append(r.proxies, p)
	return p, nil
}

// Service returns the proxy that leads each connection to some node that runs,
// wherever the nodes are: an address of the cluster that never changes. Its
// address is for a client's list of nodes to begin with.
func (p *RedisProxies) Service() *Proxy { return p.service }

// Of returns the proxies to the nodes, two for each.
func (p *RedisProxies) Of(nodes ...*RedisNode) []*Proxy {
	var proxies []*Proxy
	for _, n := range nodes {
		proxies = append(proxies, p.nodes[n]...)
	}
	return proxies
}

// All returns the proxies to all nodes and the service's.
func (p *RedisProxies) All() []*Proxy {
	var proxies []*Proxy
	for _, of := range p.nodes {
		proxies = append(proxies, of...)
	}
	if p.service != nil {
		proxies = append(proxies, p.service)
	}
	return proxies
}

// Map returns, for every address that a node announces or may announce, that of
// this client's proxy to it. It stays the same.
func (p *RedisProxies) Map() map[string]string { return maps.Clone(p.dial) }

// Dial connects to an address by way of this client's proxy, and directly to one
// that is no node's.
func (p *RedisProxies) Dial(ctx context.Context, network, address string) (net.Conn, error) {
	return DialMap(p.dial)(ctx, network, address)
}

// Close ends the proxies. Calls after the first do nothing.
func (p *RedisProxies) Close() {
	for _, proxy := range p.All() {
		proxy.Close()
	}
	_ = p.ports.close() // of a listener of our own: it can only be closed already
}

// DialMap returns a function that connects to what the map has for an address,
// and to the address itself when it has nothing.
func DialMap(addrs map[string]string) func(ctx context.Context, network, address string) (net.Conn, error) {
	addrs = maps.Clone(addrs)
	return func(ctx context.Context, network, address string) (net.Conn, error) {
		if to, ok := addrs[address]; ok {
			address = to
		}
		var d net.Dialer
		return d.DialContext(ctx, network, address)
	}
}

// end kills the nodes and ends the proxies.
func (r *Redis) end() error {
	r.mu.Lock()
	proxies := r.proxies
	r.mu.Unlock()
	for _, p := range proxies {
		p.Close()
	}
	err := r.KillAll()
	// What held it was interrupted by the end of the stack.
	r.changing.Lock()
	defer r.changing.Unlock()
	return errors.Join(err, r.KillAll())
}
