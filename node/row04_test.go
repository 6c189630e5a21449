package node_test

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/structpb"

	"github.com/freshet-cache/freshet/cluster"
	"github.com/freshet-cache/freshet/internal/devstack/stacktest"
	"github.com/freshet-cache/freshet/node"
)

// Lamp is a value of many kinds of fields.
type Lamp struct {
	ID     string
	Name   string            `json:"name"`
	Since  time.Time         `json:"since"`
	Shades []string          `json:"shades,omitempty"`
	Stock  map[string]int    `json:"stock"`
	Labels map[string]string `json:"labels"`
	Price  float64           `json:"price"`
	Photo  []byte            `json:"photo"`
	Parts  []*Lamp           `json:"parts"`
}

func lampOf(id string) Lamp {
	return Lamp{
		ID: id, Name: "lamp " + id, Since: time.Date(2026, 1, 2, 3, 4, 5, 6, time.FixedZone("", 3*3600)), Shades: []string{"white", "<black>"},
		Stock: map[string]int{"Oslo": 1, "Rome": 2, "Bern": 3, "Kyiv": 4}, Labels: map[string]string{"b": "2", "a": "1", "c": "3"}, Price: 12.5,
		Photo: []byte{0, 1, 255}, Parts: []*Lamp{{ID: "part of " + id}},
	}
}

// Row 4: values of every codec are the same in every tier and on every replica, and have the same version there.
func TestRow04TypedValues(t *testing.T) {
	s := newSite(t)
	nodes := []*node.Node{s.openNode(nil), s.openNode(nil)}
	for range 2 { // two as with Redis down: these ask the owners
		nodes = append(nodes, s.openNode(func(c *node.Config) { c.Redis.Addrs, c.Redis.LeaseWait = nil, patient }))
	}
	for _, n := range nodes {
		s.until("members see each other", func() bool { return len(n.Stats().Members) == len(nodes) })
		s.until("the shards are connected, if there are any", func() bool {
			return !slices.ContainsFunc(n.Stats().Shards, func(s node.ShardStats) bool { return s.State != "closed" })
		})
	}
	sameLamp := func(a, b Lamp) bool { return show(a) == show(b) }
	t.Run("JSON", func(t *testing.T) { sameEverywhere(t, nodes, "json", node.JSON, lampOf, sameLamp) })
	t.Run("CBOR", func(t *testing.T) { sameEverywhere(t, nodes, "cbor", node.CBOR, lampOf, sameLamp) })
	t.Run("Protobuf", func(t *testing.T) {
		sameEverywhere(t, nodes, "protobuf", node.Protobuf, func(id string) *structpb.Struct {
			m, err := structpb.NewStruct(map[string]any{"id": id, "on": true, "shades": []any{"white", 1.5}, "a": "b", "c": map[string]any{"d": nil, "e": 1}})
			if err != nil {
				t.Error(err)
			}
			return m
		}, func(a, b *structpb.Struct) bool { return proto.Equal(a, b) })
	})
	t.Run("Bytes", func(t *testing.T) {
		sameEverywhere(t, nodes, "bytes", node.Bytes, func(id string) []byte { return []byte(id + "\x00\xff" + strings.Repeat("long ", 500)) }, bytes.Equal)
	})
	t.Run("text", func(t *testing.T) {
		sameEverywhere(t, nodes, "text", node.Bytes, func(id string) string { return id + "\x00\xff" }, func(a, b string) bool { return a == b })
	})
}

// show is all that a reader could see of a value, its times' zones among it.
func show(v Lamp) string {
	parts := v.Parts
	v.Parts = nil
	text := fmt.Sprintf("%#v %s", v, v.Since.Format(time.RFC3339Nano))
	for _, p := range parts {
		text += show(*p)
	}
	return strings.ReplaceAll(text, fmt.Sprintf("%#v", v.Since), "")
}

// openNode starts a node without a cache and waits until it is ready.
func (s *site) openNode(change func(*node.Config)) *node.Node {
	s.t.Helper()
	c := s.config()
	if change != nil {
		change(&c)
	}
	n, err := node.Open(s.t.Context(), c)
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() {
		if err := n.Close(); err != nil {
			s.t.Errorf("close: %v", err)
		}
	})
	if err := n.Ready(s.t.Context()); err != nil {
		s.t.Fatal(err)
	}
	return n
}

// sameEverywhere reads values of the codec on the nodes: from the source, from L1, from L2, and from their owners.
func sameEverywhere[V any](t *testing.T, nodes []*node.Node, namespace string, codec node.Codec, valueOf func(id string) V, same func(a, b V) bool) {
	t.Helper()
	caches := make([]*node.Cache[V], len(nodes))
	for i, n := range nodes {
		var err error
		caches[i], err = node.NewCache(n, node.CacheConfig[V]{
			Namespace: namespace, Codec: codec,
			Source: node.Func(func(_ context.Context, ids []string) (map[string]V, error) {
				values := map[string]V{}
				for _, id := range ids {
					values[id] = valueOf(id)
				}
				return values, nil
			}),
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	versions := map[string]uint64{}
	tiers := map[node.Tier]int{}
	for _, c := range []*node.Cache[V]{caches[0], caches[0], caches[1], caches[2], caches[3]} {
		for n := range 30 {
			id := fmt.Sprint(n)
			e, err := c.Lookup(t.Context(), id)
			if err != nil {
				t.Fatal(err)
			}
			tiers[e.Tier]++
			if !same(e.Value, valueOf(id)) || !e.Fresh {
				t.Fatalf("%v from %v: %+v, want %+v", codec, e.Tier, e, valueOf(id))
			}
			if versions[id] == 0 {
				versions[id] = e.Version
			} else if versions[id] != e.Version {
				t.Fatalf("%v: %s has the version %x in %v, %x elsewhere", codec, id, e.Version, e.Tier, versions[id])
			}
		}
	}
	if tiers[node.TierL1] == 0 || tiers[node.TierL2] == 0 || tiers[node.TierSource] == 0 || tiers[node.TierOwner] == 0 {
		t.Errorf("answers by tier: %v; want some of each", tiers)
	}
}

// A value above MaxValue is served and counted, and no tier keeps it, nor does it disturb the others.
func TestRow04MaxValue(t *testing.T) {
	s := newSite(t)
	s.exec(`update things set name = repeat('x', 2000) where id = 'thing-1'`)
	r := s.openAll(2, func(_ *node.Config, c *node.CacheConfig[Thing]) { c.MaxValue = 1000 })
	l2 := s.rawL2()
	for n := range 3 {
		for i, replica := range r {
			if e := s.get(replica, thing(1)); e.Tier != node.TierSource || !e.Fresh || len(e.Value.Name) != 2000 || e.Version == 0 {
				t.Errorf("read %d on replica %d: %v, %v", n, i, e.Tier, e.Fresh)
			}
			if got := replica.of(); got.TooLarge != uint64(n+1) || got.FillErrors != got.TooLarge {
				t.Errorf("replica %d: %d too large, %d not filled, want %d", i, got.TooLarge, got.FillErrors, n+1)
			}
		}
	}
	if _, err := l2.Get(t.Context(), s.key(thing(1))); err == nil {
		t.Error("it is in L2")
	}
	s.get(r[0], thing(2))
	s.inL2(l2, thing(2))
	s.exec(`update things set name = 'fits now' where id = 'thing-1'`)
	s.until("it is kept", func() bool { s.get(r[0], thing(1), node.Within(0)); return s.get(r[0], thing(1)).Tier == node.TierL1 })
	if n := r[0].of(); n.CutThrough > 0 || n.Errors > 0 {
		t.Errorf("%+v", n)
	}
}

// Lists as protobuf messages, as the JSON that Postgres wrote, and compressed.
func TestRow04Queries(t *testing.T) {
	s := newSite(t)
	r := []*node.Node{s.openNode(nil), s.openNode(nil)}
	query := func(p cluster.Params) (string, []any, error) {
		return `select json_build_object('kind', $1::text, 'names', json_agg(name order by id)) from things where kind = $1`, []any{p["kind"]}, nil
	}
	tags := func(p cluster.Params) []string { return []string{"kind:" + p["kind"]} }
	var texts [2]string
	for i, n := range r {
		messages, err := node.NewQueryCache(n, node.QueryConfig[*structpb.Struct]{
			Namespace: "thing", View: "message", Codec: node.Protobuf, Query: query, Compress: node.Compression{Algorithm: node.Zstd, Above: 1},
			Tags: func(p cluster.Params, _ *structpb.Struct) []string { return tags(p) },
		})
		if err != nil {
			t.Fatal(err)
		}
		raw, err := node.NewQueryCache(n, node.QueryConfig[json.RawMessage]{
			Namespace: "thing", View: "raw", Codec: node.Bytes, Query: query,
			Tags: func(p cluster.Params, _ json.RawMessage) []string { return tags(p) },
		})
		if err != nil {
			t.Fatal(err)
		}
		for range 2 {
			m, err := messages.Get(t.Context(), cluster.Params{"kind": "kind-3"})
			if err != nil || len(m.GetFields()["names"].GetListValue().GetValues()) != 20 {
				t.Errorf("replica %d: %v, %v", i, m, err)
			}
			text, err := raw.Get(t.Context(), cluster.Params{"kind": "kind-3"})
			if err != nil || !strings.Contains(string(text), `"name 103"`) {
				t.Errorf("replica %d: %s, %v", i, text, err)
			}
			texts[i] = string(text)
		}
	}
	if texts[0] != texts[1] {
		t.Errorf("replicas differ:\n%s\n%s", texts[0], texts[1])
	}
}

// build makes the program in testdata/rolling, as a file in the folder.
func build(t *testing.T, folder, name string, flags ...string) string {
	t.Helper()
	path := filepath.Join(folder, name)
	flags = append([]string{"build", "-buildvcs=false", "-o", path}, flags...)
	if raceEnabled {
		flags = append(flags, "-race") // what this test is made of is compiled so already
	}
	if out, err := exec.CommandContext(t.Context(), "go", append(flags, "./testdata/rolling")...).CombinedOutput(); err != nil {
		t.Fatalf("go %v: %v\n%s", flags, err, out)
	}
	return path
}

// process is a build of the service that runs on its own.
type process struct {
	t       *testing.T
	command *exec.Cmd
	in      io.WriteCloser
	out     *bufio.Reader
	errors  bytes.Buffer
}

// report is what it says of its reads.
type report struct {
	Reads, Wrong, Back, Stale, Failed int64
	Members                           int
	Views                             []node.NamespaceStats
}

func (r report) view(name string) node.NamespaceStats {
	for _, v := range r.Views {
		if v.View == name {
			return v
		}
	}
	return node.NamespaceStats{}
}

func (s *site) start(path string, redis ...string) *process {
	s.t.Helper()
	p := &process{t: s.t, command: exec.CommandContext(s.t.Context(), path)}
	p.command.Env = append(os.Environ(), "APP="+s.app, "DSN="+s.dsn, "REDIS="+strings.Join(redis, ","), "NATS="+stacktest.Stack().NATS.URL())
	p.command.Stderr = &p.errors
	out, err1 := p.command.StdoutPipe()
	in, err2 := p.command.StdinPipe()
	if err := errors.Join(err1, err2, p.command.Start()); err != nil {
		s.t.Fatal(err)
	}
	p.in, p.out = in, bufio.NewReader(out)
	s.t.Cleanup(func() { _ = p.command.Process.Kill(); _ = p.command.Wait() })
	return p
}

// ask sends a line and decodes the answer.
func ask[A any](p *process, line string) (answer A) {
	p.t.Helper()
	_, err := fmt.Fprintln(p.in, line)
	text, read := p.out.ReadBytes('\n')
	if err := errors.Join(err, read); err != nil {
		_ = p.command.Wait() // its errors are complete then
		p.t.Fatalf("%s: %v\n%s", filepath.Base(p.command.Path), err, p.errors.String())
	}
	if err := json.Unmarshal(text, &answer); err != nil {
		p.t.Fatalf("%s: %v", text, err)
	}
	return answer
}

// end closes its input, after which it must end in order.
func (p *process) end() {
	p.t.Helper()
	if err := errors.Join(p.in.Close(), p.command.Wait()); err != nil {
		p.t.Errorf("%s: %v", filepath.Base(p.command.Path), err)
	}
	if p.errors.Len() > 0 {
		p.t.Logf("%s: %.4000s", filepath.Base(p.command.Path), p.errors.String())
	}
}

// Row 4: two builds of a service run side by side on the same servers, as during a rolling deploy. Under writes, each has
// right values of its own type, without an error; what differs between them is a miss on both sides, and what does not is
// shared. One replica is killed in the middle; in the second round there is no Redis, and they ask each other.
func TestRow04RollingDeploy(t *testing.T) {
	s := newSite(t)
	folder := t.TempDir()
	var before, after string
	var builds sync.WaitGroup
	builds.Go(func() { before = build(t, folder, "old") })
	builds.Go(func() { after = build(t, folder, "new", "-tags", "rolling_new") })
	builds.Wait()
	if t.Failed() {
		t.FailNow()
	}
	s.exec(`update things set name = 'name ' || revision`)
	ctx, stop := context.WithCancel(t.Context())
	var writer sync.WaitGroup
	defer writer.Wait()
	defer stop()
	pause := make(chan chan struct{})
	writer.Go(func() { s.rewrite(ctx, pause) })

	rounds := []struct {
		name  string
		redis []string
		from  func(node.NamespaceStats) uint64 // how they share
	}{
		{"with Redis", stacktest.Stack().Redis.Addrs(), l2Hits},
		{"without Redis", []string{"127.0.0.1:1"}, ownerHits},
	}
	for _, round := range rounds {
		t.Run(round.name, func(t *testing.T) {
			both := []*process{s.start(before, round.redis...), s.start(after, round.redis...)}
			works := func() {
				t.Helper()
				for _, p := range both {
					s.until("the build reads, shares what is the same, and refuses what is not", func() bool {
						r := ask[report](p, "report")
						if r.Wrong+r.Failed > 0 {
							return true // which is found below
						}
						return r.Members == 2 && r.Reads > 500 && round.from(r.view("same")) > 5 &&
							r.view("changed").Unusable > 5 && r.view("codec").Unusable > 5
					})
				}
			}
			works()
			if round.name == "with Redis" { // its leases stay behind
				if err := both[1].command.Process.Kill(); err != nil {
					t.Fatal(err)
				}
				_ = both[1].command.Wait()
				both[1] = s.start(after, round.redis...)
				works()
			}
			still := make(chan struct{})
			pause <- still
			var want []struct {
				ID       string
				Revision int64
			}
			if err := s.db.SelectContext(t.Context(), &want, `select id, revision from things`); err != nil {
				t.Fatal(err)
			}
			for _, p := range both {
				final, r := ask[map[string]int64](p, "final"), ask[report](p, "report")
				for _, thing := range want {
					for _, view := range []string{"same", "changed", "codec"} {
						if got, read := final[view+" "+thing.ID]; read && got != thing.Revision {
							t.Errorf("%s: %s in %s is of revision %d, want %d", filepath.Base(p.command.Path), thing.ID, view, got, thing.Revision)
						}
					}
				}
				if len(final) != 3*24 || r.Wrong+r.Back+r.Stale+r.Failed > 0 {
					t.Errorf("%s: %d final answers, of %d reads %d wrong, %d gone back, %d stale, %d failed",
						filepath.Base(p.command.Path), len(final), r.Reads, r.Wrong, r.Back, r.Stale, r.Failed)
				}
				if n := r.view("same").Unusable; n > 0 {
					t.Errorf("%s refused %d entries of the type that has not changed", filepath.Base(p.command.Path), n)
				}
				t.Logf("%s: %d reads; unusable: %d changed, %d of another codec", filepath.Base(p.command.Path), r.Reads, r.view("changed").Unusable, r.view("codec").Unusable)
				p.end()
			}
			close(still)
		})
	}
}

// rewrite gives things new revisions and names until ctx ends, and rests as long as a channel that it is sent is open.
func (s *site) rewrite(ctx context.Context, pause <-chan chan struct{}) {
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case still := <-pause:
			<-still
		case <-tick.C:
			_, err := s.db.ExecContext(ctx, `update things set revision = revision + 1, name = 'name ' || revision + 1 where id = $1`, thing(1+rand.IntN(24)))
			if err != nil && ctx.Err() == nil {
				s.t.Errorf("write: %v", err)
				return
			}
		}
	}
}
