package replica_test

import (
	"encoding/json"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/freshet-cache/freshet/internal/devstack/stacktest"
	"github.com/freshet-cache/freshet/internal/replica"
	"github.com/freshet-cache/freshet/node"
	"github.com/freshet-cache/freshet/node/admin"
)

// health is what /readyz says; the code must be 200.
func (u *running) health(t *testing.T) admin.Health {
	t.Helper()
	code, _, body := u.mustGet(t, u.Admin()+"/readyz")
	var h admin.Health
	if err := json.Unmarshal([]byte(body), &h); err != nil || code != 200 {
		t.Fatalf("/readyz of %s: %d %s", u.ID(), code, body)
	}
	return h
}

// Row 29: all of Redis dies under load, then NATS and Postgres go, too. No replica becomes unready, no request fails as
// long as Postgres is there, one that starts without any of the three starts all the same, and when they come back, all are
// as before without anybody's help. What is wrong stands in the body.
func TestRow29Health(t *testing.T) {
	dsn, _ := database(t)
	stack := stacktest.Stack()
	start := func(id string) *running {
		return run(t, replica.Config{
			Node: node.Config{
				App: "row29", ID: id, Postgres: node.PostgresConfig{DSN: dsn},
				Redis: node.RedisConfig{Addrs: stack.Redis.Addrs()}, NATS: node.NATSConfig{URLs: []string{stack.NATS.URL()}},
			},
			StartTimeout: time.Second,
		})
	}
	replicas := []*running{start("r1"), start("r2"), start("r3")}
	for _, u := range replicas {
		eventually(t, u.ID()+" is ready and lacks nothing", func() bool {
			return u.probe("/readyz") == 200 && u.health(t).Status == "ready"
		})
	}
	if _, header, body := replicas[0].mustGet(t, replicas[0].Admin()+"/readyz?verbose"); !strings.HasPrefix(header.Get("Content-Type"), "text/plain") ||
		!strings.Contains(body, "[+]redis ok (3 shards; ") || !strings.Contains(body, "[+]nats ok (") || !strings.HasSuffix(body, "\nready\n") {
		t.Errorf("/readyz?verbose: %s", body)
	}

	// Readers of all replicas; whatever happens to Redis, each gets its answer.
	quit := make(chan struct{})
	var reading sync.WaitGroup
	for _, u := range replicas {
		reading.Go(func() {
			for id := 1; ; id++ {
				select {
				case <-quit:
					return
				default:
				}
				if code, _, body, err := u.get(fmt.Sprintf("%s/products/%d", u.API(), id%100+1)); err != nil || code != 200 {
					t.Errorf("a read of %s failed: %d %s %v", u.ID(), code, body, err)
					return
				}
				if code := u.probe("/readyz"); code != 200 {
					t.Errorf("/readyz of %s while Redis dies: %d", u.ID(), code)
					return
				}
			}
		})
	}
	if err := stack.Redis.KillAll(); err != nil {
		t.Fatal(err)
	}
	for _, u := range replicas {
		eventually(t, u.ID()+" says that Redis is away", func() bool {
			h := u.health(t)
			return h.Status == "degraded" && strings.HasPrefix(h.Checks["redis"], "3 of 3 breakers are open: ") && h.Checks["postgres"] == "ok" && h.Checks["nats"] == "ok"
		})
	}
	close(quit)
	reading.Wait()

	if err := stack.NATS.Stop(); err != nil {
		t.Fatal(err)
	}
	if err := stack.Postgres.Stop(); err != nil {
		t.Fatal(err)
	}
	late := start("r4")
	replicas = append(replicas, late)
	eventually(t, "r4 starts with everything down", func() bool { return late.probe("/startupz") == 200 })
	for _, u := range replicas {
		eventually(t, u.ID()+" says what is away", func() bool {
			h := u.health(t)
			return h.Status == "degraded" && h.Checks["redis"] != "ok" && h.Checks["postgres"] != "ok" && h.Checks["nats"] != "ok"
		})
		if code := u.probe("/livez"); code != 200 {
			t.Errorf("/livez of %s: %d", u.ID(), code)
		}
	}
	if code, header, body := late.mustGet(t, late.API()+"/products/1"); code != 503 || header.Get("Content-Type") != "application/problem+json" {
		t.Errorf("a read without any server got %d %s, want 503 with a problem", code, body)
	}
	if _, _, body := late.mustGet(t, late.Admin()+"/readyz?verbose"); !strings.Contains(body, "[-]postgres last poll ") || !strings.Contains(body, "[-]redis ") || !strings.HasSuffix(body, "\ndegraded\n") {
		t.Errorf("/readyz?verbose: %s", body)
	}

	if err := stack.Postgres.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := stack.NATS.Start(); err != nil {
		t.Fatal(err)
	}
	if err := stack.Redis.StartAll(t.Context()); err != nil {
		t.Fatal(err)
	}
	for _, u := range replicas {
		eventually(t, u.ID()+" is as before", func() bool {
			code, header, _ := u.mustGet(t, u.API()+"/products/1")
			return code == 200 && header.Get("Freshet-Fresh") == "fresh" && u.health(t).Status == "ready"
		})
	}
}
