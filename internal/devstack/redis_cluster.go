package devstack

import (
	"bufio"
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/redis/rueidis"
)

const (
	slots = 16384

	// askLimit bounds one question to a node; a paused one does not answer.
	askLimit = time.Second
	// orderLimit bounds one command that must be carried out, on a machine that may be busy.
	orderLimit = 10 * time.Second

	clusterPause = 25 * time.Millisecond // between two looks at the whole cluster
)

// bootstrap starts the six nodes and makes them a cluster. On the way it waits
// only for what a step needs: Redis refuses to replicate a node it has not heard
// of.
func (r *Redis) bootstrap(ctx context.Context) error {
	ctx, cancel := r.site.within(ctx, readyLimit)
	defer cancel()
	if err := r.StartAll(ctx); err != nil {
		return err
	}
	for i, n := range r.nodes[:redisPrimaries] {
		if err := n.assign(ctx, i); err != nil {
			return fmt.Errorf("devstack: redis: %w", err)
		}
	}
	for i, n := range r.nodes {
		if err := n.meet(ctx, r.nodes[i+1:]); err != nil {
			return fmt.Errorf("devstack: redis: %w", err)
		}
	}
	if err := r.await(ctx, acquainted); err != nil {
		return err
	}
	for i, replica := range r.nodes[redisPrimaries:] {
		primary, err := r.nodes[i].see(ctx)
		if err != nil {
			return fmt.Errorf("devstack: redis: %w", err)
		}
		if err := replica.tell(ctx, "CLUSTER", "REPLICATE", primary.self); err != nil {
			return fmt.Errorf("devstack: redis: %w", err)
		}
	}
	return r.WaitReady(ctx)
}

// assign gives the i-th primary its third of the slots, and its epoch: distinct
// ones from the start save the cluster a round of resolving them, but must be
// set before nodes meet.
func (n *RedisNode) assign(ctx context.Context, i int) error {
	if err := n.tell(ctx, "CLUSTER", "SET-CONFIG-EPOCH", strconv.Itoa(i+1)); err != nil {
		return err
	}
	add := []string{"CLUSTER", "ADDSLOTS"}
	for slot := i * slots / redisPrimaries; slot < (i+1)*slots/redisPrimaries; slot++ {
		add = append(add, strconv.Itoa(slot))
	}
	return n.tell(ctx, add...)
}

// meet introduces others to the node. When every node meets all later ones,
// nobody has to wait for gossip.
func (n *RedisNode) meet(ctx context.Context, others []*RedisNode) error {
	for _, other := range others {
		host, port, err := net.SplitHostPort(other.Addr())
		if err != nil {
			return err
		}
		if err := n.tell(ctx, "CLUSTER", "MEET", host, port); err != nil {
			return err
		}
	}
	return nil
}

// WaitReady returns when the cluster is whole: all six nodes answer and say that
// the cluster is well, all 16384 slots are served by three primaries, each with
// an attached replica that has its data, and all six agree on who is what. It
// fails when ctx ends, after 30 s, or when the stack is closed; the error then
// says what was still wrong.
func (r *Redis) WaitReady(ctx context.Context) error {
	ctx, cancel := r.site.within(ctx, readyLimit)
	defer cancel()
	return r.await(ctx, whole)
}

// await looks at the cluster through all six nodes until the condition holds.
func (r *Redis) await(ctx context.Context, holds func(views []view) error) error {
	for {
		views, err := r.look(ctx)
		if err == nil {
			err = holds(views)
		}
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("devstack: the Redis Cluster is not ready: %w (last look: %w)", context.Cause(ctx), err)
		case <-time.After(clusterPause):
		}
	}
}

// look asks all six nodes at once. The views are in the order of the nodes.
func (r *Redis) look(ctx context.Context) ([]view, error) {
	views, errs := make([]view, len(r.nodes)), make([]error, len(r.nodes))
	var g sync.WaitGroup
	for i, n := range r.nodes {
		g.Go(func() { views[i], errs[i] = n.see(ctx) })
	}
	g.Wait()
	return views, errors.Join(errs...)
}

// Primary asks the cluster which node serves a slot, 0 to 16383. Where nodes
// disagree, as during a failover, the claim with the highest epoch counts, which
// is the one that wins in the end; the node may have failed without a successor
// yet. It is an error when no node answers within a second, or when nobody
// claims the slot.
func (r *Redis) Primary(slot uint16) (*RedisNode, error) {
	if slot >= slots {
		return nil, fmt.Errorf("devstack: slot %d must be below %d", slot, slots)
	}
	ctx, cancel := r.site.within(context.Background(), askLimit)
	defer cancel()
	views, err := r.look(ctx)
	var owner seen
	for _, v := range views {
		for _, n := range v.nodes {
			if n.serves(slot) && (owner.addr == "" || n.epoch > owner.epoch) {
				owner = n
			}
		}
	}
	i := slices.IndexFunc(r.nodes, func(n *RedisNode) bool { return n.Addr() == owner.addr })
	if i < 0 {
		return nil, errors.Join(fmt.Errorf("devstack: no node that answers knows who serves slot %d", slot), err)
	}
	return r.nodes[i], nil
}

// view is the cluster as one node sees it.
type view struct {
	self  string // the node's id
	state string // cluster_state: "ok" or "fail"
	link  string // master_link_status: "up", "down", "" on a primary
	nodes []seen // sorted by id
}

// seen is one node in a view.
type seen struct {
	id      string
	addr    string
	primary string // of a replica: the id of its primary
	epoch   uint64 // of its claim on its slots
	well    bool   // connected, not failed or suspected of it, not in handshake
	ranges  []slotRange
}

type slotRange struct{ first, last uint16 }

func (s seen) serves(slot uint16) bool {
	return slices.ContainsFunc(s.ranges, func(r slotRange) bool { return r.first <= slot && slot <= r.last })
}

func (s seen) count() (n int) {
	for _, r := range s.ranges {
		n += int(r.last) - int(r.first) + 1
	}
	return n
}

// acquainted says which node does not know all six yet.
func acquainted(views []view) error {
	for _, v := range views {
		if len(v.nodes) != redisNodes {
			return fmt.Errorf("node %s knows %d of %d nodes", v.self, len(v.nodes), redisNodes)
		}
		for _, n := range v.nodes {
			if !n.well {
				return fmt.Errorf("node %s does not see %s (%s) well", v.self, n.id, n.addr)
			}
		}
	}
	return nil
}

// whole says what is wrong with the cluster, nil when nothing is.
func whole(views []view) error {
	if err := acquainted(views); err != nil {
		return err
	}
	first := views[0]
	for _, v := range views {
		if v.state != "ok" {
			return fmt.Errorf("node %s says that the cluster's state is %q", v.self, v.state)
		}
		if v.link == "down" {
			return fmt.Errorf("replica %s is not attached yet", v.self)
		}
		for i, n := range v.nodes {
			if o := first.nodes[i]; n.id != o.id || n.addr != o.addr || n.primary != o.primary || !slices.Equal(n.ranges, o.ranges) {
				return fmt.Errorf("nodes %s and %s disagree about %s (%s)", first.self, v.self, n.id, n.addr)
			}
		}
	}
	served, primaries := 0, 0
	for _, n := range first.nodes {
		if n.primary != "" {
			continue
		}
		primaries++
		served += n.count()
		if !slices.ContainsFunc(first.nodes, func(o seen) bool { return o.primary == n.id }) {
			return fmt.Errorf("primary %s (%s) has no replica", n.id, n.addr)
		}
	}
	if primaries != redisPrimaries || served != slots {
		return fmt.Errorf("%d primaries serve %d slots, want %d and %d", primaries, served, redisPrimaries, slots)
	}
	return nil
}

// see asks the node for its view.
func (n *RedisNode) see(ctx context.Context) (view, error) {
	texts, err := n.ask(ctx, []string{"CLUSTER", "NODES"}, []string{"CLUSTER", "INFO"}, []string{"INFO", "replication"})
	if err != nil {
		return view{}, err
	}
	v := view{state: property(texts[1], "cluster_state"), link: property(texts[2], "master_link_status")}
	for line := range strings.Lines(texts[0]) {
		s, myself, err := parseSeen(line)
		if err != nil {
			return view{}, fmt.Errorf("%s: CLUSTER NODES: %w", n.Addr(), err)
		}
		if myself {
			v.self = s.id
		}
		v.nodes = append(v.nodes, s)
	}
	slices.SortFunc(v.nodes, func(a, b seen) int { return cmp.Compare(a.id, b.id) })
	return v, nil
}

// property returns the value of a "name:value" line, "" when there is none.
func property(text, name string) string {
	for lines := bufio.NewScanner(strings.NewReader(text)); lines.Scan(); {
		if value, ok := strings.CutPrefix(lines.Text(), name+":"); ok {
			return value
		}
	}
	return ""
}

// parseSeen reads a line of CLUSTER NODES: id, ip:port@busport[,hostname], flags,
// primary, ping sent, pong received, config epoch, link state, slots.
func parseSeen(line string) (s seen, myself bool, err error) {
	f := strings.Fields(line)
	if len(f) < 8 {
		return seen{}, false, fmt.Errorf("%d fields in %q, want 8 or more", len(f), line)
	}
	s.id = f[0]
	s.addr, _, _ = strings.Cut(f[1], "@")
	flags := strings.Split(f[2], ",")
	myself = slices.Contains(flags, "myself")
	s.well = myself || f[7] == "connected"
	for _, bad := range []string{"fail", "fail?", "handshake", "noaddr"} {
		s.well = s.well && !slices.Contains(flags, bad)
	}
	if f[3] != "-" {
		s.primary = f[3]
	}
	if s.epoch, err = strconv.ParseUint(f[6], 10, 64); err != nil {
		return seen{}, false, fmt.Errorf("epoch in %q: %w", line, err)
	}
	for _, field := range f[8:] {
		if strings.HasPrefix(field, "[") {
			continue // a slot on its way to another node; still served here
		}
		r, err := parseRange(field)
		if err != nil {
			return seen{}, false, fmt.Errorf("slots in %q: %w", line, err)
		}
		s.ranges = append(s.ranges, r)
	}
	return s, myself, nil
}

// parseRange reads "first-last" or "slot".
func parseRange(text string) (slotRange, error) {
	a, b, ok := strings.Cut(text, "-")
	if !ok {
		b = a
	}
	first, err := strconv.ParseUint(a, 10, 16)
	if err != nil {
		return slotRange{}, err
	}
	last, err := strconv.ParseUint(b, 10, 16)
	return slotRange{uint16(first), uint16(last)}, err
}

// tell gives the node a command whose reply does not matter unless it is an error.
func (n *RedisNode) tell(ctx context.Context, command ...string) error {
	_, err := n.askWithin(ctx, orderLimit, command)
	return err
}

// ask sends commands to this node, whatever its role, on a connection of its own
// and returns the replies as text.
func (n *RedisNode) ask(ctx context.Context, commands ...[]string) ([]string, error) {
	return n.askWithin(ctx, askLimit, commands...)
}

// askWithin is ask with another limit than askLimit for all the commands.
func (n *RedisNode) askWithin(ctx context.Context, limit time.Duration, commands ...[]string) ([]string, error) {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	client, err := n.dial(limit)
	if err != nil {
		return nil, err
	}
	defer client.Close()
	texts := make([]string, len(commands))
	for i, c := range commands {
		reply, err := client.Do(ctx, client.B().Arbitrary(c...).Build()).ToAny()
		if err != nil {
			return nil, fmt.Errorf("%s: %s: %w", n.Addr(), strings.Join(c[:min(len(c), 2)], " "), err)
		}
		texts[i] = fmt.Sprint(reply)
	}
	return texts, nil
}

// dial opens a connection to this node alone.
func (n *RedisNode) dial(limit time.Duration) (rueidis.Client, error) {
	client, err := rueidis.NewClient(rueidis.ClientOption{
		InitAddress:         []string{n.Addr()},
		Username:            n.access.Username,
		Password:            n.access.Password,
		TLSConfig:           n.access.TLS,
		ForceSingleClient:   true,
		DisableCache:        true,
		DisableRetry:        true,
		AlwaysRESP2:         true,
		ClientSetInfo:       rueidis.DisableClientSetInfo,
		Dialer:              net.Dialer{Timeout: askLimit},
		ConnWriteTimeout:    limit,
		ReadBufferEachConn:  4 << 10,
		WriteBufferEachConn: 4 << 10,
	})
	if err != nil {
		return nil, fmt.Errorf("%s: %w", n.Addr(), err)
	}
	return client, nil
}
