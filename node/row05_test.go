package node_test

import (
	"bytes"
	"context"
	crand "crypto/rand"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"github.com/redis/rueidis"

	"github.com/freshet-cache/freshet/cluster"
	"github.com/freshet-cache/freshet/internal/devstack/stacktest"
	"github.com/freshet-cache/freshet/node"
)

// Row 5: what is stored in Redis is compressed above the threshold, by the algorithm of its cache, where that helps, and
// every replica reads it, however it would write itself.
func TestRow05Compression(t *testing.T) {
	s := newSite(t)
	noise := make([]byte, 5000)
	_, _ = crand.Read(noise)
	values := map[string][]byte{
		"prose": []byte(strings.Repeat("a catalogue repeats itself in many words; ", 150)),
		"short": []byte(strings.Repeat("a short text; ", 40)),
		"noise": noise,
	}
	client, err := rueidis.NewClient(rueidis.ClientOption{InitAddress: stacktest.Stack().Redis.Addrs(), DisableCache: true})
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	nodes := []*node.Node{s.openNode(nil), s.openNode(nil)}
	memory := map[string]int64{}
	const head = 150 // bytes of an entry beside its payload, at most
	for _, c := range []struct {
		view   string
		how    node.Compression
		most   float64         // of the prose's size, that Redis stores
		packed map[string]bool // what else is compressed
	}{
		{"default", node.Compression{}, 0.1, nil},
		{"s2", node.Compression{Algorithm: node.S2, Above: 300, Level: 3}, 0.1, map[string]bool{"short": true}},
		{"zstd", node.Compression{Algorithm: node.Zstd}, 0.05, nil},
		{"small", node.Compression{Algorithm: node.Zstd, Above: 300, Level: 1}, 0.05, map[string]bool{"short": true}},
		{"high", node.Compression{Algorithm: node.Zstd, Above: 10_000}, 1, nil},
		{"plain", node.Compression{Algorithm: node.NoCompression}, 1, nil},
	} {
		var caches [2]*node.Cache[[]byte]
		for i, n := range nodes {
			how := c.how
			if i == 1 {
				how = node.Compression{Algorithm: node.NoCompression}
			}
			if caches[i], err = node.NewCache(n, node.CacheConfig[[]byte]{
				Namespace: "thing", View: c.view, Codec: node.Bytes, Compress: how,
				Source: node.Func(func(context.Context, []string) (map[string][]byte, error) { return values, nil }),
			}); err != nil {
				t.Fatal(err)
			}
		}
		for id, value := range values {
			if _, err := caches[0].Get(t.Context(), id); err != nil {
				t.Fatal(err)
			}
			key := s.keyOf(c.view, id)
			var stored int64
			s.until("it is in L2", func() bool {
				stored, err = client.Do(t.Context(), client.B().Strlen().Key(key).Build()).AsInt64()
				return err == nil && stored > 0
			})
			switch size := float64(len(value)); {
			case id == "prose" && c.most < 1, c.packed[id]:
				if limit := head + max(c.most, 0.2)*size; float64(stored) > limit {
					t.Errorf("%s, %s: %d bytes are stored, want at most %.0f", c.view, id, stored, limit)
				}
			case float64(stored) < size || float64(stored) > size+head:
				t.Errorf("%s, %s: %d bytes are stored for %.0f, want them as they are", c.view, id, stored, size)
			}
			if id == "prose" {
				if memory[c.view], err = client.Do(t.Context(), client.B().MemoryUsage().Key(key).Build()).AsInt64(); err != nil {
					t.Error(err)
				}
			}
			e, err := caches[1].Lookup(t.Context(), id)
			if err != nil || !bytes.Equal(e.Value, value) || e.Tier != node.TierL2 {
				t.Errorf("%s, %s: another replica has %d bytes from %v, %v", c.view, id, len(e.Value), e.Tier, err)
			}
		}
	}
	t.Logf("memory in Redis for 6,300 bytes of prose: %v", memory)
	if memory["zstd"] > memory["default"] || 5*memory["default"] > memory["plain"] {
		t.Errorf("memory in Redis: %v", memory)
	}
}

// keyOf is the key of a thing in a view.
func (s *site) keyOf(view, id string) string {
	s.t.Helper()
	keys, err := cluster.NewKeys(s.app)
	if err != nil {
		s.t.Fatal(err)
	}
	key, err := keys.Entity(cluster.FirstGeneration(), "thing", id, view)
	if err != nil {
		s.t.Fatal(err)
	}
	return key
}

// Row 5, under load: compressed entries that are damaged in Redis, by any of their bits, are misses and are put right; no
// read fails or gets anything else than what Postgres has.
func TestRow05DamagedEntries(t *testing.T) {
	for name, algorithm := range map[string]node.Algorithm{"s2": node.S2, "zstd": node.Zstd} {
		t.Run(name, func(t *testing.T) {
			s := newSite(t)
			s.exec(`update things set name = repeat('name ', 100) || id`)
			r := s.openAll(2, func(_ *node.Config, c *node.CacheConfig[Thing]) {
				c.Compress, c.MaxEntries = node.Compression{Algorithm: algorithm, Above: 100}, 4
			})
			l2 := s.rawL2()
			f := s.traffic(r, trafficConfig{writers: 1})
			unusable := func() uint64 { return sum(r, func(n node.NamespaceStats) uint64 { return n.Unusable }) }
			s.until("damage is met", func() bool {
				id := thing(1 + rand.IntN(20))
				if b, err := l2.Get(t.Context(), s.key(id)); err == nil {
					if len(b) > 400 {
						t.Fatalf("%d bytes: it is not compressed", len(b))
					}
					b[rand.IntN(len(b))] ^= 1 << rand.IntN(8)
					if err := l2.Set(t.Context(), s.key(id), b, time.Minute); err != nil {
						t.Fatal(err)
					}
				}
				return unusable() >= 50
			})
			f.stop()
			f.noneFailed()
			for n := range 20 {
				if e := s.get(r[0], thing(n+1)); e.Value.Name != strings.Repeat("name ", 100)+thing(n+1) || !e.Fresh {
					t.Errorf("afterwards: %+v", e)
				}
			}
			if hits := sum(r, l2Hits); hits == 0 {
				t.Error("no entry was read from L2")
			}
		})
	}
}

// What a cache is told of codecs, compression and sizes is checked when it is made, all at once.
func TestRow02ValueSettings(t *testing.T) {
	s := newSite(t)
	n := s.openNode(nil)
	_, err := node.NewCache(n, node.CacheConfig[Thing]{
		Namespace: "thing", Source: node.SQL[Thing](thingQuery), Codec: node.Bytes, MaxValue: -1,
		Compress: node.Compression{Algorithm: 9, Above: -1, Level: 4},
	})
	for _, want := range []string{
		`cache of "thing"`, "Codec is Bytes for node_test.Thing: want []byte", "MaxValue is -1", "Compression.Algorithm is 9; want S2",
		"Compression.Above is -1 bytes; want 1 to 67108864", "Compression.Level is 4; want 1 to 3",
	} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v; want %q in it", err, want)
		}
	}
	if _, err := node.NewQueryCache(n, node.QueryConfig[[]Thing]{
		Namespace: "thing", View: "list", Codec: node.Protobuf, MaxValue: 1 << 30,
		Query: func(cluster.Params) (string, []any, error) { return "select '[]'::json", nil, nil },
	}); err == nil || !strings.Contains(err.Error(), "Codec is Protobuf") || !strings.Contains(err.Error(), "MaxValue is 1073741824") {
		t.Errorf("query cache: %v", err)
	}
}
