package stacktest_test

import (
	"database/sql"
	"net"
	"testing"

	_ "github.com/lib/pq"
	"github.com/nats-io/nats.go"
	"github.com/redis/rueidis"

	"github.com/freshet-cache/freshet/internal/devstack"
	"github.com/freshet-cache/freshet/internal/devstack/stacktest"
)

func TestMain(m *testing.M) { stacktest.Main(m, devstack.Options{}) }

func TestEachPartServes(t *testing.T) {
	t.Run("Postgres", func(t *testing.T) {
		dsn, err := stacktest.Stack().Postgres.CreateDatabase(t.Context(), "each_part")
		if err != nil {
			t.Fatal(err)
		}
		db, err := sql.Open("postgres", dsn)
		if err != nil {
			t.Fatal(err)
		}
		defer db.Close()
		var name string
		if err := db.QueryRowContext(t.Context(), "select current_database()").Scan(&name); err != nil {
			t.Fatal(err)
		}
		if name != "each_part" {
			t.Errorf("connected to the database %q, want each_part", name)
		}
	})
	t.Run("Redis", func(t *testing.T) {
		client, err := rueidis.NewClient(rueidis.ClientOption{InitAddress: stacktest.Stack().Redis.Addrs()})
		if err != nil {
			t.Fatal(err)
		}
		defer client.Close()
		for _, key := range []string{"a", "b", "c"} { // on three shards
			if err := client.Do(t.Context(), client.B().Set().Key(key).Value("1").Build()).Error(); err != nil {
				t.Errorf("SET %s: %v", key, err)
			}
		}
	})
	t.Run("NATS", func(t *testing.T) {
		nc, err := nats.Connect(stacktest.Stack().NATS.URL())
		if err != nil {
			t.Fatal(err)
		}
		defer nc.Close()
		js, err := nc.JetStream()
		if err != nil {
			t.Fatal(err)
		}
		if _, err := js.AddStream(&nats.StreamConfig{Name: "EACH", Subjects: []string{"each"}}); err != nil {
			t.Errorf("add a stream: %v", err)
		}
	})
}

func TestServersAreOnLoopback(t *testing.T) {
	for _, addr := range stacktest.Stack().Redis.Addrs() {
		host, _, err := net.SplitHostPort(addr)
		if err != nil || host != "127.0.0.1" {
			t.Errorf("Redis listens on %q (%v), want 127.0.0.1", addr, err)
		}
	}
}
