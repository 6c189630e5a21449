package devstack_test

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"net"
	"strings"
	"testing"
	"time"

	_ "github.com/lib/pq"
	"github.com/nats-io/nats.go"
	"github.com/redis/rueidis"

	"github.com/freshet-cache/freshet/internal/devstack"
	"github.com/freshet-cache/freshet/internal/devstack/stacktest"
)

// short bounds a question that is not answered.
const short = 300 * time.Millisecond

// within returns a context of the test that ends after the limit.
func within(t *testing.T, limit time.Duration) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	t.Cleanup(cancel)
	return ctx
}

// do sends one command to one Redis node.
func do(ctx context.Context, addr string, command ...string) (string, error) {
	c, err := rueidis.NewClient(rueidis.ClientOption{
		InitAddress: []string{addr}, ForceSingleClient: true, DisableCache: true, DisableRetry: true,
		Dialer: net.Dialer{Timeout: short}, ConnWriteTimeout: short,
	})
	if err != nil {
		return "", err
	}
	defer c.Close()
	reply, err := c.Do(ctx, c.B().Arbitrary(command...).Build()).ToAny()
	return fmt.Sprint(reply), err
}

func mustDo(t *testing.T, addr string, command ...string) string {
	t.Helper()
	reply, err := do(t.Context(), addr, command...)
	if err != nil {
		t.Fatalf("%v: %v", command, err)
	}
	return reply
}

// heal makes the whole cluster ready again after a test.
func heal(t *testing.T) {
	t.Helper()
	r := stacktest.Stack().Redis
	if err := r.StartAll(context.Background()); err != nil {
		t.Fatal(err)
	}
	if err := r.WaitReady(context.Background()); err != nil {
		t.Fatal(err)
	}
}

const (
	fooSlot = 12182 // CLUSTER KEYSLOT foo
	barSlot = 5061  // CLUSTER KEYSLOT bar
)

func primary(t *testing.T, slot uint16) *devstack.RedisNode {
	t.Helper()
	n, err := stacktest.Stack().Redis.Primary(slot)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// wantFirstOrder checks the roles in a cluster that has just started.
func wantFirstOrder(t *testing.T, r *devstack.Redis) {
	t.Helper()
	if len(r.Addrs()) != 6 || len(r.Nodes()) != 6 {
		t.Fatalf("%d addresses, %d nodes, want 6", len(r.Addrs()), len(r.Nodes()))
	}
	for slot, want := range map[uint16]int{0: 0, 5460: 0, 5461: 1, 10921: 1, 10922: 2, 16383: 2} {
		if n, err := r.Primary(slot); err != nil || n != r.Nodes()[want] {
			t.Errorf("slot %d is served by %v (%v), want node %d", slot, n, err, want)
		}
	}
	if _, err := r.Primary(16384); err == nil {
		t.Error("slot 16384 has a primary")
	}
	for i, n := range r.Nodes() {
		want := "role:master"
		if i >= 3 {
			want = "role:slave"
		}
		if info := mustDo(t, n.Addr(), "INFO", "replication"); !strings.Contains(info, want) {
			t.Errorf("node %d is not of %s", i, want)
		}
	}
}

func TestRedisReplicaTakesOverFromKilledPrimary(t *testing.T) {
	slow(t)
	defer heal(t)
	r := stacktest.Stack().Redis
	old := primary(t, fooSlot)
	mustDo(t, old.Addr(), "SET", "foo", "kept")
	mustDo(t, old.Addr(), "WAIT", "1", "1000")
	if err := old.Kill(); err != nil {
		t.Fatal(err)
	}
	if _, err := do(t.Context(), old.Addr(), "PING"); err == nil {
		t.Error("a killed node answers")
	}
	began := time.Now()
	eventually(t, "another primary for the slot of foo", 15*time.Second, func() bool {
		n, err := r.Primary(fooSlot)
		return err == nil && n != old
	})
	t.Logf("failover after %v", time.Since(began))
	if got := mustDo(t, primary(t, fooSlot).Addr(), "GET", "foo"); got != "kept" {
		t.Errorf("foo is %q after the failover, want what was replicated", got)
	}
	if err := r.WaitReady(within(t, short)); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("WaitReady with a node down: %v, want DeadlineExceeded", err)
	}
	if err := old.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := r.WaitReady(t.Context()); err != nil {
		t.Fatal(err)
	}
	if info := mustDo(t, old.Addr(), "INFO", "replication"); !strings.Contains(info, "role:slave") {
		t.Error("the old primary is not a replica of the new one")
	}
}

func TestRedisReplicaTakesOverFromPausedPrimary(t *testing.T) {
	slow(t)
	defer heal(t)
	r := stacktest.Stack().Redis
	old := primary(t, barSlot)
	if err := old.Pause(); err != nil {
		t.Fatal(err)
	}
	if _, err := do(within(t, short), old.Addr(), "PING"); err == nil {
		t.Error("a paused node answers")
	}
	if conn, err := net.Dial("tcp", old.Addr()); err != nil {
		t.Errorf("a paused node refuses connections: %v", err)
	} else {
		conn.Close()
	}
	eventually(t, "another primary for the slot of bar", 15*time.Second, func() bool {
		n, err := r.Primary(barSlot)
		return err == nil && n != old
	})
	if err := old.Resume(); err != nil {
		t.Fatal(err)
	}
	if err := r.WaitReady(t.Context()); err != nil {
		t.Fatal(err)
	}
}

func TestRedisNodeStartsEmptyOnItsPort(t *testing.T) {
	defer heal(t)
	n := primary(t, fooSlot)
	mustDo(t, n.Addr(), "SET", "foo", "lost")
	for name, end := range map[string]func() error{"Stop": n.Stop, "Kill": n.Kill} {
		if err := end(); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if err := end(); err != nil {
			t.Errorf("second %s: %v", name, err)
		}
		if err := n.Pause(); err == nil {
			t.Errorf("Pause after %s returned no error", name)
		}
		if err := n.Resume(); err == nil {
			t.Errorf("Resume after %s returned no error", name)
		}
		if err := n.Start(t.Context()); err != nil {
			t.Fatal(err)
		}
		pid := n.PID()
		if err := n.Start(t.Context()); err != nil || n.PID() != pid {
			t.Errorf("second Start: %v, process %d became %d", err, pid, n.PID())
		}
		if got := mustDo(t, n.Addr(), "DBSIZE"); got != "0" {
			t.Errorf("%s keys after %s and Start, want none", got, name)
		}
	}
}

func TestRedisNodeStopsAndStartsWhilePaused(t *testing.T) {
	defer heal(t)
	n := stacktest.Stack().Redis.Nodes()[0]
	for name, control := range map[string]func() error{
		"Stop":  n.Stop,
		"Kill":  n.Kill,
		"Start": func() error { return n.Start(t.Context()) },
	} {
		if err := n.Start(t.Context()); err != nil {
			t.Fatal(err)
		}
		if err := n.Pause(); err != nil {
			t.Fatal(err)
		}
		if err := n.Pause(); err != nil {
			t.Errorf("second Pause: %v", err)
		}
		if err := control(); err != nil {
			t.Errorf("%s while paused: %v", name, err)
		}
		if _, err := do(t.Context(), n.Addr(), "PING"); (err == nil) != (name == "Start") {
			t.Errorf("PING after %s while paused: %v", name, err)
		}
	}
}

func TestRedisAllStopAndStart(t *testing.T) {
	defer heal(t)
	r := stacktest.Stack().Redis
	if err := r.StopAll(); err != nil {
		t.Fatal(err)
	}
	if _, err := r.Primary(0); err == nil {
		t.Error("a stopped cluster has a primary for slot 0")
	}
	if err := r.StartAll(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := r.WaitReady(t.Context()); err != nil {
		t.Fatal(err)
	}
	for _, n := range r.Nodes() {
		if got := mustDo(t, n.Addr(), "DBSIZE"); got != "0" {
			t.Errorf("%s has %s keys, want none", n.Addr(), got)
		}
	}
}

func TestRedisStartSaysWhyItFailed(t *testing.T) {
	defer heal(t)
	n := stacktest.Stack().Redis.Nodes()[0]
	if err := n.Stop(); err != nil {
		t.Fatal(err)
	}
	squatter, err := net.Listen("tcp", n.Addr())
	if err != nil {
		t.Fatal(err)
	}
	err = n.Start(t.Context())
	if closeErr := squatter.Close(); closeErr != nil {
		t.Fatal(closeErr)
	}
	if err == nil || !strings.Contains(err.Error(), "redis-0") || !strings.Contains(err.Error(), "in use") {
		t.Errorf("Start on a taken port: %v, want an error with the end of the node's log", err)
	}
}

// database opens a fresh database with a table t of one column.
func database(t *testing.T, name string) *sql.DB {
	t.Helper()
	dsn, err := stacktest.Stack().Postgres.CreateDatabase(t.Context(), name)
	if err != nil {
		t.Fatal(err)
	}
	db, err := sql.Open("postgres", dsn)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { db.Close() })
	if _, err := db.ExecContext(t.Context(), "create table t (x int)"); err != nil {
		t.Fatal(err)
	}
	return db
}

func rows(t *testing.T, db *sql.DB) (n int) {
	t.Helper()
	eventually(t, "an answer from the restarted server", 10*time.Second, func() bool {
		// A connection from before the restart fails once.
		return db.QueryRowContext(t.Context(), "select count(*) from t").Scan(&n) == nil
	})
	return n
}

func TestPostgresKeepsCommitsThroughStopAndKill(t *testing.T) {
	p := stacktest.Stack().Postgres
	for name, end := range map[string]func() error{
		"Stop": p.Stop,
		"Kill": p.Kill,
		"Stop while paused": func() error {
			return errors.Join(p.Pause(), p.Stop())
		},
		"Kill while paused": func() error {
			return errors.Join(p.Pause(), p.Kill())
		},
	} {
		t.Run(name, func(t *testing.T) {
			defer func() {
				if err := p.Start(context.Background()); err != nil {
					t.Fatal(err)
				}
			}()
			db := database(t, "kept")
			if _, err := db.ExecContext(t.Context(), "insert into t values (1)"); err != nil {
				t.Fatal(err)
			}
			open, err := db.BeginTx(t.Context(), nil)
			if err != nil {
				t.Fatal(err)
			}
			defer open.Rollback()
			if _, err := open.ExecContext(t.Context(), "insert into t values (2)"); err != nil {
				t.Fatal(err)
			}
			if err := end(); err != nil {
				t.Fatal(err)
			}
			if err := end(); err == nil && strings.Contains(name, "paused") {
				t.Error("Pause of a stopped server returned no error")
			}
			if err := open.Commit(); err == nil {
				t.Error("a transaction that was open when the server ended was committed")
			}
			if _, err := db.ExecContext(t.Context(), "select 1"); err == nil {
				t.Error("the server answers though it has ended")
			}
			if err := p.Start(t.Context()); err != nil {
				t.Fatal(err)
			}
			if got := rows(t, db); got != 1 {
				t.Errorf("%d rows after the restart, want the committed one", got)
			}
		})
	}
}

func TestPostgresPauseFreezesEveryProcess(t *testing.T) {
	p := stacktest.Stack().Postgres
	db := database(t, "paused")
	db.SetMaxOpenConns(1)
	if err := p.Pause(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := p.Start(context.Background()); err != nil {
			t.Error(err)
		}
	}()
	states, err := p.States()
	if err != nil {
		t.Fatal(err)
	}
	if len(states) < 3 || strings.Trim(states, "TZ") != "" {
		t.Errorf("process states %q, want the postmaster, its helpers and a backend, all stopped (T) or just ended (Z)", states)
	}
	answer := make(chan error, 1)
	go func() {
		var n int
		answer <- db.QueryRowContext(t.Context(), "select count(*) from t").Scan(&n)
	}()
	select {
	case err := <-answer:
		t.Fatalf("a paused server answered (%v)", err)
	case <-time.After(short):
	}
	if err := p.Resume(); err != nil {
		t.Fatal(err)
	}
	if err := p.Resume(); err != nil {
		t.Errorf("Resume of a running server: %v", err)
	}
	if err := <-answer; err != nil {
		t.Errorf("the query that waited failed: %v", err)
	}
}

func TestPostgresDatabasesAreFreshAndOwn(t *testing.T) {
	p := stacktest.Stack().Postgres
	first := database(t, "fresh")
	if _, err := first.ExecContext(t.Context(), "insert into t values (1)"); err != nil {
		t.Fatal(err)
	}
	again := database(t, "fresh") // though somebody is still connected
	if got := rows(t, again); got != 0 {
		t.Errorf("%d rows in a fresh database", got)
	}
	for _, name := range []string{"", "postgres", "freshet", "template1", "Upper", "a-b", `a"b`, "1a", strings.Repeat("a", 64)} {
		if _, err := p.CreateDatabase(t.Context(), name); err == nil || !strings.Contains(err.Error(), "name") {
			t.Errorf("CreateDatabase(%q): %v, want an error about the name", name, err)
		}
	}
	if !strings.Contains(p.DSN(), "/freshet?") {
		t.Errorf("DSN %q, want one of the database freshet", p.DSN())
	}
}

func TestPostgresAsksForThePassword(t *testing.T) {
	dsn := stacktest.Stack().Postgres.DSN()
	user, rest, _ := strings.Cut(dsn, "@")
	db, err := sql.Open("postgres", user[:len(user)-1]+"x@"+rest)
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	if err := db.PingContext(t.Context()); err == nil {
		t.Error("connected with a wrong password")
	}
}

func TestNATSKeepsStreamsAndPortThroughStop(t *testing.T) {
	n := stacktest.Stack().NATS
	lost, back := make(chan struct{}, 1), make(chan struct{}, 1)
	nc, err := nats.Connect(n.URL(), nats.MaxReconnects(-1), nats.ReconnectWait(10*time.Millisecond),
		nats.DisconnectErrHandler(func(*nats.Conn, error) { lost <- struct{}{} }),
		nats.ReconnectHandler(func(*nats.Conn) { back <- struct{}{} }))
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	js, err := nc.JetStream()
	if err != nil {
		t.Fatal(err)
	}
	// A run with -count finds the stream of the run before.
	if err := js.DeleteStream("KEPT"); err != nil && !errors.Is(err, nats.ErrStreamNotFound) {
		t.Fatal(err)
	}
	if _, err := js.AddStream(&nats.StreamConfig{Name: "KEPT", Subjects: []string{"kept"}}); err != nil {
		t.Fatal(err)
	}
	if _, err := js.Publish("kept", []byte("1")); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := n.Stop(); err != nil {
			t.Fatal(err)
		}
	}
	<-lost
	if _, err := net.Dial("tcp", strings.TrimPrefix(n.URL(), "nats://")); err == nil {
		t.Error("a stopped server accepts connections")
	}
	for range 2 {
		if err := n.Start(); err != nil {
			t.Fatal(err)
		}
	}
	<-back
	info, err := js.StreamInfo("KEPT", nats.Context(within(t, 5*time.Second)))
	if err != nil {
		t.Fatal(err)
	}
	if info.State.Msgs != 1 {
		t.Errorf("%d messages in the stream, want the one from before", info.State.Msgs)
	}
}
