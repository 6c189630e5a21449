package node_test

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/redis/rueidis"

	"github.com/freshet-cache/freshet/internal/devstack/stacktest"
	"github.com/freshet-cache/freshet/node"
)

// Draft is what nobody watches.
type Draft struct {
	ID   string `json:"id"`
	Text string `json:"text"`
}

// drafts gives each replica a cache of a table that nobody watches, with everything of it in L1 and L2.
func (s *site) drafts(replicas []*replica, ids []string) []*node.Cache[Draft] {
	s.t.Helper()
	s.exec(`create table drafts (id text primary key, text text not null)`)
	for _, id := range ids {
		s.exec(`insert into drafts values ($1, 'old')`, id)
	}
	caches := make([]*node.Cache[Draft], len(replicas))
	for i, r := range replicas {
		var err error
		caches[i], err = node.NewCache(r.Node, node.CacheConfig[Draft]{
			Namespace: "draft", Source: node.SQL[Draft](`select id, text from drafts where id = any($1)`),
		})
		if err != nil {
			s.t.Fatal(err)
		}
	}
	s.texts(caches, func(string) string { return "old" }, ids)
	return caches
}

// texts reads the drafts everywhere and wants a text of each.
func (s *site) texts(caches []*node.Cache[Draft], want func(id string) string, ids []string, options ...node.ReadOption) {
	s.t.Helper()
	for i, c := range caches {
		for _, id := range ids {
			if e, err := c.Lookup(s.t.Context(), id, options...); err != nil || !e.Fresh || e.Value.Text != want(id) {
				s.t.Errorf("draft %q on replica %d is %+v, %v; want %q", id, i, e, err, want(id))
			}
		}
	}
}

// redisCommand asks every primary.
func (s *site) redisCommand(r *replica, words ...string) (answers []string) {
	s.t.Helper()
	for _, shard := range r.Stats().Shards {
		c, err := rueidis.NewClient(rueidis.ClientOption{InitAddress: []string{shard.Name}, ForceSingleClient: true, DisableCache: true})
		if err != nil {
			s.t.Fatal(err)
		}
		answer, err := c.Do(s.t.Context(), c.B().Arbitrary(words...).Build()).ToString()
		if err != nil {
			s.t.Error(err)
		}
		answers = append(answers, answer)
		c.Close()
	}
	return answers
}

// Clean-up by prefix and by pattern, under load, with one primary that hangs for a while: by cursor on every
// primary, never KEYS; with Invalidate no replica goes on with what it holds; the rest stays.
func TestRow10PatternCleanUp(t *testing.T) {
	s := newSite(t)
	ctx := t.Context()
	r := s.openReady(3)
	s.redisCommand(r[0], "CONFIG", "RESETSTAT")
	var ids []string
	for n := range 40 {
		ids = append(ids, fmt.Sprintf("sum*[%d]:{%%} é", n), fmt.Sprintf("sum+%d", n))
	}
	caches := s.drafts(r, ids)
	f := s.traffic(r, trafficConfig{writers: 2})
	f.progress()

	// Somebody changes them and tells nobody. The prefix is no glob, whatever it looks like.
	s.exec(`update drafts set text = 'new'`)
	steps, resumed := 0, make(chan error, 1)
	done, err := r[1].Clean(ctx, node.Clean{
		Namespace: "draft", Prefix: "sum*[1", Invalidate: true, Rate: 100_000,
		Progress: func(p node.CleanProgress) {
			if steps++; steps > 1 {
				return
			}
			for _, n := range stacktest.Stack().Redis.Nodes() {
				if n.Addr() != r[1].Stats().Shards[1].Name {
					continue
				}
				if err := n.Pause(); err != nil {
					t.Error(err)
				}
				time.AfterFunc(300*time.Millisecond, func() { resumed <- n.Resume() })
			}
		},
	})
	if err := errors.Join(err, <-resumed); err != nil {
		t.Fatal(err)
	}
	const picked = 11 // 1 and 10 to 19
	if done.Removed < picked || done.Invalidated < picked || done.Invalidated > 2*picked || steps < 3 {
		t.Fatalf("%+v in %d steps; want %d ids", done, steps, picked)
	}
	changed := func(id string) string {
		if strings.HasPrefix(id, "sum*[1") {
			return "new"
		}
		return "old"
	}
	s.texts(caches, changed, ids, node.Within(0))

	// By pattern, without saying that anything has changed: it goes from Redis, and from nowhere else.
	done, err = r[2].Clean(ctx, node.Clean{Namespace: "draft", Pattern: `sum\*[?]:*`, Rate: 100_000})
	if err != nil || done.Removed < 9 || done.Invalidated != 0 {
		t.Errorf("%+v, %v; want those of one digit that have not been removed", done, err)
	}
	s.texts(caches, changed, ids, node.Within(0))

	// The whole namespace.
	if done, err = r[0].Clean(ctx, node.Clean{Namespace: "draft", Invalidate: true, Rate: 100_000}); err != nil || done.Removed < 40 {
		t.Errorf("%+v, %v", done, err)
	}
	s.texts(caches, func(string) string { return "new" }, ids, node.Within(0))
	f.stop()
	f.noneFailed()

	for i, text := range s.redisCommand(r[0], "INFO", "commandstats") {
		if strings.Contains(text, "cmdstat_keys:") || !strings.Contains(text, "cmdstat_scan:") {
			t.Errorf("primary %d was sent KEYS, or no SCAN:\n%s", i, text)
		}
	}
	for name, c := range map[string]node.Clean{
		"Clean.Namespace is empty": {Prefix: "a"}, "both set": {Namespace: "a", Prefix: "a", Pattern: "a"},
		"Clean.Rate": {Rate: -1}, "is not allowed": {Namespace: "A"}, "asterisks": {Namespace: "a", Pattern: "*********"},
	} {
		if _, err := r[0].Clean(ctx, c); err == nil || !strings.Contains(err.Error(), name) {
			t.Errorf("%+v: %v, want an error with %q", c, err, name)
		}
	}
}
