package tiers

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/redis/rueidis"

	"github.com/freshet-cache/freshet/cluster"
)

const (
	// The topology is read every refreshInterval, give or take a quarter, and soon after something
	// contradicted it, but then at most once per refreshGap.
	refreshInterval, refreshGap = 5 * time.Second, time.Second
	// topologyTimeout bounds the question to one node.
	topologyTimeout = 250 * time.Millisecond
)

// topology says which shard serves a slot. It is immutable; the zero topology has no shards.
type topology struct {
	slots  [cluster.Slots]uint16 // slot -> 1 + index in shards; 0 = nobody serves it
	shards []*shard              // in the order of their first slots
	ranges []string              // index in shards -> its slots as text
	nodes  []string              // addresses of all primaries and replicas: whom to ask next time
}

func (t *topology) shard(slot uint16) *shard {
	if n := t.slots[slot]; n > 0 {
		return t.shards[n-1]
	}
	return nil
}

func (t *topology) at(address string) *shard {
	for _, s := range t.shards {
		if s.address == address {
			return s
		}
	}
	return nil
}

var (
	errUnreached = fmt.Errorf("%w: no node of the cluster has answered", ErrUnavailable)
	errUncovered = fmt.Errorf("%w: no shard serves the slot", ErrUnavailable)
)

// noShard is why shard returned nil.
func (t *topology) noShard() error {
	if len(t.shards) == 0 {
		return errUnreached
	}
	return errUncovered
}

// suspectTopology asks for a refresh soon.
func (l *L2) suspectTopology() {
	select {
	case l.suspect <- struct{}{}:
	default:
	}
}

// run keeps the topology current and owns the shards' goroutines, until ctx ends.
func (l *L2) run(ctx context.Context) {
	backoff, warned := minBackoff, false
	for ctx.Err() == nil {
		ranges, err := l.askTopology(ctx)
		if err == nil {
			l.install(ctx, ranges)
			backoff, warned = minBackoff, false
			pause(ctx, spread(refreshGap))
			l.waitForSuspicion(ctx, spread(refreshInterval)-refreshGap)
			continue
		}
		if !warned && ctx.Err() == nil {
			warned = true
			l.config.logger().Warn("redis cluster does not tell its topology; trying on", "err", err)
		}
		pause(ctx, spread(backoff))
		backoff = min(2*backoff, maxBackoff)
	}
}

func (l *L2) waitForSuspicion(ctx context.Context, longest time.Duration) {
	ctx, cancel := context.WithTimeout(ctx, longest)
	defer cancel()
	select {
	case <-l.suspect:
	case <-ctx.Done():
	}
}

// install makes the topology of the ranges current. A primary that was known stays the same shard, with
// its connection and breaker; a new one, which a failover promoted perhaps, starts afresh.
func (l *L2) install(ctx context.Context, ranges []slotRange) {
	old, next := l.topology.Load(), &topology{}
	for _, r := range ranges {
		n := slices.IndexFunc(next.shards, func(s *shard) bool { return s.id == r.id && s.address == r.primary })
		if n < 0 {
			n = len(next.shards)
			next.shards = append(next.shards, l.shardOf(ctx, old, r))
			next.ranges = append(next.ranges, "")
		}
		for slot := r.first; slot <= r.last; slot++ {
			next.slots[slot] = uint16(n + 1)
		}
		next.ranges[n] = strings.TrimSpace(next.ranges[n] + " " + r.String())
		for _, address := range append(r.replicas, r.primary) {
			if !slices.Contains(next.nodes, address) {
				next.nodes = append(next.nodes, address)
			}
		}
	}
	l.topology.Store(next)
	for _, s := range old.shards {
		if !slices.Contains(next.shards, s) {
			s.cancel()
		}
	}
}

func (l *L2) shardOf(ctx context.Context, old *topology, r slotRange) *shard {
	for _, s := range old.shards {
		if s.id == r.id && s.address == r.primary {
			return s
		}
	}
	s := newShard(r.id, r.primary, &l.config, l.spans)
	ctx, s.cancel = context.WithCancel(ctx)
	l.running.Go(func() { s.run(ctx) })
	return s
}

// askTopology asks node after node until one that thinks the cluster is in order answers: first those
// with a connection, then every known address. If none thinks so, the first answer counts: with a
// shard down the map is still right for the others.
func (l *L2) askTopology(ctx context.Context) ([]slotRange, error) {
	t := l.topology.Load()
	var second []slotRange
	var problems []error
	for _, n := range rand.Perm(len(t.shards)) {
		s := t.shards[n]
		up := s.link.Load()
		if up == nil {
			continue
		}
		ranges, inOrder, err := askNode(ctx, up.client, s.address)
		if err == nil && inOrder {
			return ranges, nil
		}
		if err != nil {
			problems = append(problems, fmt.Errorf("%s: %w", s.address, err))
		} else if second == nil {
			second = ranges
		}
	}
	if second != nil {
		return second, nil
	}
	addresses := slices.Clone(l.config.Addrs)
	for _, address := range t.nodes {
		if !slices.Contains(addresses, address) {
			addresses = append(addresses, address)
		}
	}
	for _, n := range rand.Perm(len(addresses)) {
		client, w, err := connect(ctx, addresses[n], &l.config)
		if err != nil {
			problems = append(problems, fmt.Errorf("%s: %w", addresses[n], err))
			continue
		}
		ranges, inOrder, err := askNode(ctx, client, addresses[n])
		disconnect(client, w, 0)
		if err == nil && inOrder {
			return ranges, nil
		}
		if err != nil {
			problems = append(problems, fmt.Errorf("%s: %w", addresses[n], err))
		} else if second == nil {
			second = ranges
		}
	}
	if second != nil {
		return second, nil
	}
	return nil, errors.Join(problems...)
}

// slotRange is a row of CLUSTER SLOTS.
type slotRange struct {
	first, last uint16
	id, primary string // the primary's node id and host:port
	replicas    []string
}

func (r slotRange) String() string {
	if r.first == r.last {
		return strconv.Itoa(int(r.first))
	}
	return fmt.Sprintf("%d-%d", r.first, r.last)
}

// askNode reads the topology as one node knows it, and whether that node thinks the cluster is in
// order. It asks for CLUSTER SLOTS: in Redis 7, CLUSTER SHARDS is wrong after a failover.
func askNode(ctx context.Context, client rueidis.Client, address string) (ranges []slotRange, inOrder bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, topologyTimeout)
	defer cancel()
	b := client.B()
	results := client.DoMulti(ctx, b.ClusterInfo().Build(), b.ClusterSlots().Build())
	state, err := results[0].ToString()
	if err != nil {
		return nil, false, err
	}
	rows, err := results[1].ToArray()
	if err != nil {
		return nil, false, err
	}
	host, _, _ := net.SplitHostPort(address)
	for _, row := range rows {
		r, err := parseSlotRange(row, host)
		if err != nil {
			return nil, false, err
		}
		ranges = append(ranges, r)
	}
	if len(ranges) == 0 {
		return nil, false, errors.New("it knows of no slots")
	}
	slices.SortFunc(ranges, func(a, b slotRange) int { return int(a.first) - int(b.first) })
	return ranges, strings.Contains(state, "cluster_state:ok"), nil
}

var errSlots = errors.New("malformed reply to CLUSTER SLOTS")

// parseSlotRange reads first, last, primary, replicas...; each node is host, port, id and more. An
// empty host means the one that was asked.
func parseSlotRange(row rueidis.RedisMessage, host string) (slotRange, error) {
	fields, err := row.ToArray()
	if err != nil || len(fields) < 3 {
		return slotRange{}, errSlots
	}
	first, err1 := fields[0].AsInt64()
	last, err2 := fields[1].AsInt64()
	if err1 != nil || err2 != nil || first < 0 || last < first || last >= cluster.Slots {
		return slotRange{}, errSlots
	}
	r := slotRange{first: uint16(first), last: uint16(last)}
	for i, field := range fields[2:] {
		node, err := field.ToArray()
		if err != nil || len(node) < 3 {
			return slotRange{}, errSlots
		}
		at, _ := node[0].ToString() // nil = as asked
		port, err1 := node[1].AsInt64()
		id, err2 := node[2].ToString()
		if err1 != nil || err2 != nil {
			return slotRange{}, errSlots
		}
		if at == "" || at == "?" {
			at = host
		}
		address := net.JoinHostPort(at, strconv.FormatInt(port, 10))
		if i == 0 {
			r.id, r.primary = id, address
		} else {
			r.replicas = append(r.replicas, address)
		}
	}
	return r, nil
}
