package replica_test

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/freshet-cache/freshet/internal/devstack/stacktest"
	"github.com/freshet-cache/freshet/internal/replica"
	"github.com/freshet-cache/freshet/node"
)

// shopper is a client of one replica's API.
type shopper struct {
	client *http.Client
	api    string
}

func newShopper(t *testing.T, u *running, keepAlive bool) shopper {
	t.Helper()
	transport := &http.Transport{MaxIdleConnsPerHost: 16, DisableKeepAlives: !keepAlive}
	t.Cleanup(transport.CloseIdleConnections)
	return shopper{&http.Client{Transport: transport, Timeout: 20 * time.Second}, u.API()}
}

// read and write report whether the answer was the last one on its connection.
func (s shopper) read(ctx context.Context, id int) (last bool, err error) {
	return s.do(ctx, http.MethodGet, "/products/"+strconv.Itoa(id), "")
}

func (s shopper) write(ctx context.Context, id, cents int) (last bool, err error) {
	return s.do(ctx, http.MethodPatch, "/products/"+strconv.Itoa(id), `{"price_cents": `+strconv.Itoa(cents)+`}`)
}

func (s shopper) do(ctx context.Context, method, path, body string) (last bool, err error) {
	req, err := http.NewRequestWithContext(ctx, method, "http://"+s.api+path, strings.NewReader(body))
	if err != nil {
		return false, err
	}
	if body == "" {
		req.Body = http.NoBody
	} else {
		req.Header.Set("Content-Type", "application/merge-patch+json")
		req.GetBody = nil // nobody sends a write a second time
	}
	resp, err := s.client.Do(req)
	if err != nil {
		return false, err
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s %s: %s %s", method, path, resp.Status, text)
	}
	return resp.Close, err
}

// Clients with and without keep-alive read and write a replica directly, and stop when /readyz says so, as a balancer
// does. Nothing fails, and a write that was under way is finished after the replica has stopped accepting.
func TestDrainUnderLoad(t *testing.T) {
	dsn, db := database(t)
	stack := stacktest.Stack()
	u := run(t, replica.Config{
		Node: node.Config{
			App: "drainload", Postgres: node.PostgresConfig{DSN: dsn},
			Redis: node.RedisConfig{Addrs: stack.Redis.Addrs()}, NATS: node.NATSConfig{URLs: []string{stack.NATS.URL()}},
		},
		DrainDelay: 2 * time.Second,
	})
	eventually(t, "ready", func() bool { return u.probe("/readyz") == 200 })

	const slow = 100 // the product whose write waits for a lock
	hold, err := db.Beginx()
	if err != nil {
		t.Fatal(err)
	}
	defer hold.Rollback()
	if _, err := hold.Exec(`select 1 from products where id = $1 for update`, slow); err != nil {
		t.Fatal(err)
	}
	type answer struct {
		last bool
		err  error
	}
	slowly := make(chan answer, 1)
	go func() {
		last, err := newShopper(t, u, true).write(t.Context(), slow, 4711)
		slowly <- answer{last, err}
	}()
	eventually(t, "the slow write waits for the lock", func() bool {
		var waiting int
		return db.Get(&waiting, `select count(*) from pg_stat_activity where datname = current_database() and wait_event_type = 'Lock'`) == nil && waiting == 1
	})

	out := make(chan struct{}) // closed when the replica is out of service
	var working sync.WaitGroup
	var done, lasts atomic.Int64
	for worker := range 8 {
		s := newShopper(t, u, worker%2 == 0)
		working.Go(func() {
			for n := 0; ; n++ {
				select {
				case <-out:
					return
				default:
				}
				var last bool
				var err error
				if id := worker*10 + n%10 + 1; n%4 == 0 {
					last, err = s.write(t.Context(), id, n+1)
				} else {
					last, err = s.read(t.Context(), id)
				}
				if err != nil {
					t.Errorf("request %d of worker %d failed: %v", n, worker, err)
					return
				}
				done.Add(1)
				if last && worker%2 == 0 {
					lasts.Add(1)
				}
			}
		})
	}
	eventually(t, "there is load", func() bool { return done.Load() > 200 })
	if n := lasts.Load(); n > 0 {
		t.Errorf("%d answers closed their connections before the drain", n)
	}
	stopped := make(chan error, 1)
	go func() { stopped <- u.stop() }()
	eventually(t, "/readyz says that it drains", func() bool { return u.probe("/readyz") == 503 })
	before := done.Load()
	eventually(t, "it serves on meanwhile, and closes the connections behind the answers", func() bool {
		return done.Load() > before && lasts.Load() > 0
	})
	close(out)
	working.Wait()

	eventually(t, "it accepts no more", func() bool {
		c, err := net.DialTimeout("tcp", u.API(), time.Second)
		if err == nil {
			c.Close()
		}
		return err != nil
	})
	select {
	case err := <-stopped:
		t.Fatalf("it stopped while a write was under way: %v", err)
	default:
	}
	if err := hold.Rollback(); err != nil {
		t.Fatal(err)
	}
	if a := <-slowly; a.err != nil || !a.last {
		t.Errorf("the slow write: %v, the last on its connection: %v", a.err, a.last)
	}
	if err := <-stopped; err != nil {
		t.Errorf("stop: %v", err)
	}
	var cents int
	if err := db.Get(&cents, `select price_cents from products where id = $1`, slow); err != nil || cents != 4711 {
		t.Errorf("the slow write left %d cents, %v", cents, err)
	}
}

// A connection on which nothing was asked does not hold up the drain: here it would last as long as DrainTimeout, and be
// an error.
func TestDrainWithUnusedConnections(t *testing.T) {
	dsn, _ := database(t)
	u := run(t, replica.Config{Node: node.Config{App: "drainunused", Postgres: node.PostgresConfig{DSN: dsn}}, DrainTimeout: 4 * time.Second})
	eventually(t, "ready", func() bool { return u.probe("/readyz") == 200 })
	for _, address := range []string{u.API(), u.Admin()} {
		c, err := net.Dial("tcp", address)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
	}
	// What was accepted after these connections was accepted after them.
	if code, _, _ := u.mustGet(t, u.API()+"/products/1"); code != 200 {
		t.Errorf("a read: %d", code)
	}
	if err := u.stop(); err != nil {
		t.Errorf("stop: %v", err)
	}
}

// Its peers hear at once that a drained replica leaves: silent, it would count as a member for 3.5 s. What it accepted to
// write later gets into Postgres, by it or by a peer.
func TestDrainedReplicaLeaves(t *testing.T) {
	dsn, db := database(t)
	stack := stacktest.Stack()
	start := func(id string) *running {
		return run(t, replica.Config{Node: node.Config{
			App: "drainleave", ID: id, Postgres: node.PostgresConfig{DSN: dsn}, NATS: node.NATSConfig{URLs: []string{stack.NATS.URL()}},
		}})
	}
	members := func(u *running) string {
		_, _, body := u.mustGet(t, u.Admin()+"/readyz?verbose")
		return body
	}
	stays, goes := start("stays"), start("goes")
	for _, u := range []*running{stays, goes} {
		eventually(t, u.ID()+" sees both", func() bool { return strings.Contains(members(u), "(2 members; ") })
	}
	shopper := newShopper(t, goes, true)
	for n := range 50 {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodPut, fmt.Sprintf("http://%s/carts/cart-%d", goes.API(), n), strings.NewReader(`{"lines": []}`))
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Content-Type", "application/json")
		resp, err := shopper.client.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if resp.StatusCode != http.StatusAccepted && resp.StatusCode != http.StatusOK {
			t.Fatalf("a cart: %s", resp.Status)
		}
	}
	if err := goes.stop(); err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	eventually(t, "it has left", func() bool { return strings.Contains(members(stays), "(1 members; ") })
	if took := time.Since(began); took > 2*time.Second {
		t.Errorf("it was a member for %v more", took)
	}
	eventually(t, "all carts are in Postgres", func() bool {
		var carts int
		return db.Get(&carts, `select count(*) from carts where id like 'cart-%'`) == nil && carts == 50
	})
}
