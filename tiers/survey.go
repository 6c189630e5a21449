package tiers

import (
	"cmp"
	"context"
	"fmt"
	"net"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/redis/rueidis"

	"github.com/freshet-cache/freshet/cluster"
)

const (
	// surveyTimeout bounds a survey, inspectTimeout what one server takes of it.
	surveyTimeout, inspectTimeout = 3 * time.Second, 1250 * time.Millisecond
	// maxInspected bounds the servers that are asked at once.
	maxInspected = 32
)

// Survey is what the servers of the Redis Cluster say of themselves and of each other. It is made for JSON.
type Survey struct {
	// State is "ok" if every server that answered says so of the cluster, "fail" if one does not, and "unknown" if
	// none has answered.
	State string `json:"state"`
	// Slots are served, by the word of the server that knows of the most; the cluster has 16,384.
	Slots int `json:"slots"`
	// Servers are the primaries in the order of their slots, each with its replicas behind it, then the others.
	Servers []ServerState `json:"servers"`
}

// ServerState is one server of the Redis Cluster.
type ServerState struct {
	Address string `json:"address"`      // host:port, as the cluster announces it
	ID      string `json:"id,omitempty"` // in the cluster; empty if nobody says
	// Role is "primary" or "replica", empty if nobody says; Primary is the address of a replica's.
	Role    string `json:"role,omitempty"`
	Primary string `json:"primary,omitempty"`
	Slots   string `json:"slots,omitempty"` // that it serves, as "0-5460 5462"
	// Flags are what the cluster says of it besides its role, as in CLUSTER NODES: "fail?" is suspected, "fail" has
	// failed. Empty = it is in order, or nobody says.
	Flags string `json:"flags,omitempty"`
	// Error says why the server does not answer; the fields below are then zero.
	Error string `json:"error,omitempty"`

	ClusterState  string  `json:"cluster_state,omitempty"` // in its own opinion: "ok" or "fail"
	Version       string  `json:"version,omitempty"`
	UptimeSeconds int64   `json:"uptime_seconds"`
	MemoryUsed    int64   `json:"memory_used_bytes"`
	MemoryMax     int64   `json:"memory_max_bytes"`        // 0 = as much as there is
	MemoryPolicy  string  `json:"memory_policy,omitempty"` // what it does when that is full
	Keys          int64   `json:"keys"`
	Evicted       int64   `json:"evicted"` // keys, for want of memory, since it was started
	Expired       int64   `json:"expired"`
	Hits          int64   `json:"hits"` // of all its clients, since it was started
	Misses        int64   `json:"misses"`
	HitRatio      float64 `json:"hit_ratio"` // Hits / (Hits + Misses)
	Operations    int64   `json:"operations_per_second"`
	Clients       int64   `json:"clients"` // that are connected
	// Replicas are attached to a primary. Link is a replica's to its primary: "up" or "down".
	Replicas int64  `json:"replicas"`
	Link     string `json:"link,omitempty"`
	// Behind is by how many bytes of the replication stream a replica is behind its primary, if both answered.
	Behind int64 `json:"behind_bytes"`

	offset int64 // in the replication stream
}

// Survey asks every server of the cluster, also the replicas and those that have failed, over connections of its
// own, for 3 s at most. The user at Redis needs +info, and +cluster|nodes to learn of servers that have failed.
func (l *L2) Survey(ctx context.Context) Survey {
	ctx, cancel := context.WithTimeout(ctx, surveyTimeout)
	defer cancel()
	t := l.topology.Load()
	addresses := slices.Clone(t.nodes)
	if len(addresses) == 0 {
		addresses = slices.Compact(slices.Sorted(slices.Values(l.config.Addrs)))
	}
	found := l.inspectAll(ctx, addresses)
	nodes := bestView(found)
	var unasked []string // whom only the cluster knows
	for _, n := range nodes {
		if n.addresses[0] != "" && !slices.ContainsFunc(found, n.is) {
			unasked = append(unasked, n.addresses[0])
		}
	}
	found = append(found, l.inspectAll(ctx, unasked)...)
	s := Survey{State: "unknown", Servers: make([]ServerState, len(found))}
	for i := range found {
		f := &found[i]
		s.Slots = max(s.Slots, f.slots)
		if f.ClusterState != "" && s.State != "fail" {
			s.State = f.ClusterState
		}
		f.complete(nodes, t)
		s.Servers[i] = f.ServerState
	}
	arrange(s.Servers)
	return s
}

// inspected is what one server says.
type inspected struct {
	ServerState
	slots int           // that are served, in its opinion
	nodes []clusterNode // that it knows
}

func (l *L2) inspectAll(ctx context.Context, addresses []string) []inspected {
	found := make([]inspected, len(addresses))
	places := make(chan struct{}, maxInspected)
	var asking sync.WaitGroup
	for i, address := range addresses {
		places <- struct{}{}
		asking.Go(func() {
			defer func() { <-places }()
			found[i] = l.inspect(ctx, address)
		})
	}
	asking.Wait()
	return found
}

// inspect asks one server.
func (l *L2) inspect(ctx context.Context, address string) inspected {
	f := inspected{ServerState: ServerState{Address: address}}
	ctx, cancel := context.WithTimeout(ctx, inspectTimeout)
	defer cancel()
	fail := func(err error) inspected {
		f.Error = err.Error()
		if ctx.Err() != nil {
			f.Error = "no answer in time"
		}
		return f
	}
	client, w, err := connect(ctx, address, &l.config)
	if err != nil {
		return fail(err)
	}
	defer disconnect(client, w, 0)
	b := client.B()
	results := client.DoMulti(ctx, b.Info().Build(), b.ClusterInfo().Build(), b.ClusterNodes().Build())
	if text, err := plain(results[1]); err == nil {
		properties := propertiesOf(text)
		f.ClusterState = properties["cluster_state"]
		f.slots = int(number(properties["cluster_slots_ok"]))
	}
	if text, err := plain(results[2]); err == nil {
		f.nodes = parseClusterNodes(text, address)
		for _, n := range f.nodes {
			if n.myself {
				f.ID = n.id
			}
		}
	}
	text, err := plain(results[0])
	if err != nil {
		return fail(fmt.Errorf("INFO: %w", err))
	}
	f.describe(propertiesOf(text))
	return f
}

// plain is a text, of which RESP3 says by a prefix that it is one.
func plain(r rueidis.RedisResult) (string, error) {
	text, err := r.ToString()
	return strings.TrimPrefix(text, "txt:"), err
}

// describe reads what INFO says.
func (s *ServerState) describe(info map[string]string) {
	s.Role = "primary"
	s.offset = number(info["master_repl_offset"])
	if info["role"] == "slave" {
		s.Role, s.Link = "replica", info["master_link_status"]
		s.Primary = net.JoinHostPort(info["master_host"], info["master_port"])
		s.offset = number(info["slave_repl_offset"])
	}
	s.Version = info["redis_version"]
	if version := info["valkey_version"]; version != "" {
		s.Version = "valkey " + version
	}
	s.UptimeSeconds = number(info["uptime_in_seconds"])
	s.MemoryUsed, s.MemoryMax, s.MemoryPolicy = number(info["used_memory"]), number(info["maxmemory"]), info["maxmemory_policy"]
	s.Evicted, s.Expired = number(info["evicted_keys"]), number(info["expired_keys"])
	s.Hits, s.Misses = number(info["keyspace_hits"]), number(info["keyspace_misses"])
	if all := s.Hits + s.Misses; all > 0 {
		s.HitRatio = float64(s.Hits) / float64(all)
	}
	s.Operations, s.Clients, s.Replicas = number(info["instantaneous_ops_per_sec"]), number(info["connected_clients"]), number(info["connected_slaves"])
	for field := range strings.SplitSeq(info["db0"], ",") { // a cluster has no other database
		if keys, ok := strings.CutPrefix(field, "keys="); ok {
			s.Keys = number(keys)
		}
	}
}

// complete adds what the cluster says of the server: its nodes, or the topology if it tells none.
func (f *inspected) complete(nodes []clusterNode, t *topology) {
	if s := t.at(f.Address); s != nil {
		f.ID, f.Slots = cmp.Or(f.ID, s.id), t.ranges[slices.Index(t.shards, s)]
		f.Role = cmp.Or(f.Role, "primary")
	}
	at := slices.IndexFunc(nodes, func(n clusterNode) bool { return n.is(*f) })
	if at < 0 {
		return
	}
	n := nodes[at]
	f.ID, f.Slots, f.Flags = n.id, n.slots, n.flags
	if f.Role = cmp.Or(f.Role, n.role); f.Role == "replica" {
		for _, p := range nodes {
			if p.id == n.primary {
				f.Primary = p.addresses[0]
			}
		}
	}
}

// arrange orders the servers as a Survey has them, and compares replicas with their primaries.
func arrange(servers []ServerState) {
	first := func(s ServerState) int { // its first slot, or behind all
		digits := s.Slots
		if i := strings.IndexAny(digits, "- "); i >= 0 {
			digits = digits[:i]
		}
		if n, err := strconv.Atoi(digits); err == nil {
			return n
		}
		return cluster.Slots
	}
	shard := map[string]int{}
	offset := map[string]int64{}
	for _, s := range servers {
		if s.Role == "primary" {
			shard[s.Address], offset[s.Address] = first(s), s.offset
		}
	}
	place := func(s ServerState) int {
		if p, ok := shard[s.Primary]; ok && s.Role == "replica" {
			return p
		}
		return first(s)
	}
	for i, s := range servers {
		if at := offset[s.Primary]; s.Role == "replica" && s.Error == "" && at > 0 {
			servers[i].Behind = max(at-s.offset, 0)
		}
	}
	slices.SortFunc(servers, func(a, b ServerState) int {
		return cmp.Or(cmp.Compare(place(a), place(b)), cmp.Compare(a.Role, b.Role), cmp.Compare(a.Address, b.Address))
	})
}

// clusterNode is a line of CLUSTER NODES.
type clusterNode struct {
	id        string
	addresses [2]string // by which it is known: by number, and by name if it has one
	role      string    // "primary" or "replica"
	myself    bool      // whom the line came from
	flags     string    // the others
	primary   string    // its id, of a replica
	slots     string
}

// is reports whether the server is this node.
func (n clusterNode) is(f inspected) bool {
	if f.ID != "" {
		return f.ID == n.id
	}
	return f.Address == n.addresses[0] || f.Address == n.addresses[1]
}

// bestView is what a server knows of the cluster that thinks it in order, or else any.
func bestView(found []inspected) []clusterNode {
	var best []clusterNode
	for _, f := range found {
		if f.nodes != nil && f.ClusterState == "ok" {
			return f.nodes
		}
		if best == nil {
			best = f.nodes
		}
	}
	return best
}

// parseClusterNodes reads ID HOST:PORT@BUS[,NAME] FLAGS PRIMARY PING PONG EPOCH LINK SLOTS... in each line; what is not of
// that form is left out. An empty host means the one that was asked.
func parseClusterNodes(text, asked string) []clusterNode {
	host, _, _ := net.SplitHostPort(asked)
	var nodes []clusterNode
	for line := range strings.Lines(text) {
		fields := strings.Fields(line)
		if len(fields) < 8 {
			continue
		}
		n := clusterNode{id: fields[0], primary: fields[3]}
		address, names, _ := strings.Cut(fields[1], ",")
		address, _, _ = strings.Cut(address, "@")
		name, _, _ := strings.Cut(names, ",")
		if at, port, ok := splitNode(address); ok {
			n.addresses[0] = net.JoinHostPort(cmp.Or(at, host), port)
			if name != "" {
				n.addresses[1] = net.JoinHostPort(name, port)
			}
		}
		var flags, slots []string
		for flag := range strings.SplitSeq(fields[2], ",") {
			switch flag {
			case "myself":
				n.myself = true
			case "master":
				n.role = "primary"
			case "slave":
				n.role = "replica"
			case "noflags":
			default:
				flags = append(flags, flag)
			}
		}
		for _, slot := range fields[8:] {
			if !strings.HasPrefix(slot, "[") { // one that is on its way
				slots = append(slots, slot)
			}
		}
		n.flags, n.slots = strings.Join(flags, ","), strings.Join(slots, " ")
		nodes = append(nodes, n)
	}
	return nodes
}

// splitNode is net.SplitHostPort for CLUSTER NODES, which has IPv6 without brackets, and port 0 where there is no
// address.
func splitNode(address string) (host, port string, ok bool) {
	at := strings.LastIndexByte(address, ':')
	if at < 0 || address[at+1:] == "0" {
		return "", "", false
	}
	return address[:at], address[at+1:], true
}

// propertiesOf reads name:value lines.
func propertiesOf(text string) map[string]string {
	properties := map[string]string{}
	for line := range strings.Lines(text) {
		if name, value, ok := strings.Cut(strings.TrimSpace(line), ":"); ok {
			properties[name] = value
		}
	}
	return properties
}

// number is a count that Redis wrote; 0 if it is none.
func number(text string) int64 {
	n, err := strconv.ParseInt(text, 10, 64)
	if err != nil {
		return 0
	}
	return n
}
