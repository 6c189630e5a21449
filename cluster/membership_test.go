package cluster

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
)

const (
	testInterval = 20 * time.Millisecond
	testSilence  = 400 * time.Millisecond // long enough that a slow machine does not look like a dead one
	testPatience = 20 * time.Second       // for what must happen; only a failing test waits that long
)

// startNATS runs a NATS server in this process, on the port or, for -1, on a free one.
func startNATS(t *testing.T, port int) *server.Server {
	t.Helper()
	s, err := server.NewServer(&server.Options{Host: "127.0.0.1", Port: port, NoLog: true, NoSigs: true})
	if err != nil {
		t.Fatal(err)
	}
	s.Start()
	t.Cleanup(func() { stopNATS(s) })
	if !s.ReadyForConnections(testPatience) {
		t.Fatal("NATS server does not listen")
	}
	return s
}

func stopNATS(s *server.Server) {
	s.Shutdown()
	s.WaitForShutdown()
}

// connect returns a connection as a node has it: it may start without a server and never gives up.
func connect(t *testing.T, url string) *nats.Conn {
	t.Helper()
	conn, err := nats.Connect(url, nats.RetryOnFailedConnect(true), nats.MaxReconnects(-1), nats.ReconnectWait(testInterval))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(conn.Close)
	return conn
}

// running is a Membership whose Run was started by the test.
type running struct {
	*Membership
	views  chan struct{} // a token after each view that Run published
	cancel context.CancelFunc
	done   chan error // the result of Run
}

func run(t *testing.T, c MembershipConfig) *running {
	t.Helper()
	c.App = "shop"
	c.Interval, c.Expire = testInterval, cmp.Or(c.Expire, testSilence)
	c.Logger = slog.New(slog.DiscardHandler)
	m, err := NewMembership(c)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	r := &running{Membership: m, views: make(chan struct{}, 1), cancel: cancel, done: make(chan error, 1)}
	m.onPublish = func() {
		select {
		case r.views <- struct{}{}:
		default: // a token is there, and the waiter will look at the newest view
		}
	}
	go func() {
		r.done <- m.Run(ctx)
		close(r.done)
	}()
	t.Cleanup(func() { r.stop(t) })
	return r
}

func (r *running) stop(t *testing.T) {
	t.Helper()
	r.cancel()
	if err := <-r.done; err != nil {
		t.Errorf("Run: %v", err)
	}
}

// waitFor waits until ok holds; it looks after each published view, which is at least once per
// heartbeat of r.
func (r *running) waitFor(t *testing.T, what string, ok func() bool) {
	t.Helper()
	deadline := time.After(testPatience)
	for !ok() {
		select {
		case <-r.views:
		case <-deadline:
			t.Fatalf("%s does not see %s: view %v, stats %+v", r.config.Self.ID, what, runs(r.View()), r.Stats())
		}
	}
}

func (r *running) waitForView(t *testing.T, want ...string) {
	t.Helper()
	r.waitFor(t, strings.Join(want, " "), func() bool { return slices.Equal(runs(r.View()), want) })
}

func TestMembersJoinLeaveDieAndReuseAnID(t *testing.T) {
	url := startNATS(t, -1).ClientURL()
	a := run(t, MembershipConfig{Conn: NATS(connect(t, url)), Self: Member{ID: "a", Boot: 1, Address: "10.0.0.1:80"}})
	b := run(t, MembershipConfig{Conn: NATS(connect(t, url)), Self: Member{ID: "b", Boot: 1}})
	line := connect(t, url)
	c := run(t, MembershipConfig{Conn: NATS(line), Self: Member{ID: "c", Boot: 1}})
	all := []*running{a, b, c}
	for _, m := range all {
		m.waitForView(t, "a/1", "b/1", "c/1")
		if got := m.View().Members[0].Address; got != "10.0.0.1:80" {
			t.Errorf("the address of a is %q", got)
		}
	}
	for i := range 100 {
		entity := fmt.Sprint("product:", i)
		first, _ := Owner(a.View().Members, entity)
		for _, m := range all {
			if o, ok := Owner(m.View().Members, entity); !ok || o.ID != first.ID {
				t.Fatalf("a and %s differ about the owner of %s", m.config.Self.ID, entity)
			}
		}
	}

	b.stop(t) // says good-bye
	a.waitForView(t, "a/1", "c/1")
	c.waitForView(t, "a/1", "c/1")
	if got := runs(b.View()); !slices.Contains(got, "b/1") {
		t.Errorf("b does not see itself: %v", got)
	}

	line.Close() // cut off: c cannot say anything any more
	a.waitForView(t, "a/1")
	c.waitForView(t, "c/1")

	again := run(t, MembershipConfig{Conn: NATS(connect(t, url)), Self: Member{ID: "c", Boot: 2}})
	a.waitForView(t, "a/1", "c/2")
	again.waitForView(t, "a/1", "c/2")
	newer := run(t, MembershipConfig{Conn: NATS(connect(t, url)), Self: Member{ID: "c", Boot: 3}})
	a.waitForView(t, "a/1", "c/3") // replaces boot 2, which is still talking
	again.waitFor(t, "that its ID is used by another", func() bool { return again.Stats().Conflicts > 0 })
	newer.waitFor(t, "that its ID is used by another", func() bool { return newer.Stats().Conflicts > 0 })
	a.waitFor(t, "the heartbeats of the earlier boot as late", func() bool { return a.Stats().Late > 0 })
	again.waitForView(t, "a/1", "c/2") // oneself is always in one's view
	newer.waitForView(t, "a/1", "c/3")
}

// The one who stays would wait for a minute before it called the other silent.
func TestLeavingIsSeenAtOnce(t *testing.T) {
	url := startNATS(t, -1).ClientURL()
	a := run(t, MembershipConfig{Conn: NATS(connect(t, url)), Self: Member{ID: "a", Boot: 1}, Expire: time.Minute})
	b := run(t, MembershipConfig{Conn: NATS(connect(t, url)), Self: Member{ID: "b", Boot: 1}, Expire: time.Minute})
	a.waitForView(t, "a/1", "b/1")
	b.stop(t)
	a.waitForView(t, "a/1")
}

func TestMembersShareTheirReports(t *testing.T) {
	url := startNATS(t, -1).ClientURL()
	type hints struct{ boot, seq uint64 }
	heard := make(chan hints, 1)
	a := run(t, MembershipConfig{
		Conn:   NATS(connect(t, url)),
		Self:   Member{ID: "a", Boot: 1},
		Expire: testPatience, // b may not seem to come and go
		OnHeartbeat: func(boot, hintSeq uint64) {
			select {
			case heard <- hints{boot, hintSeq}:
			default:
			}
		},
	})
	b := run(t, MembershipConfig{
		Conn:   NATS(connect(t, url)),
		Self:   Member{ID: "b", Boot: 7},
		Report: func() Report { return Report{PollAge: 250 * time.Millisecond, Load: 42, HintSeq: 1 << 40} },
	})
	want := Member{ID: "b", Boot: 7, PollAge: 250 * time.Millisecond, Load: 42}
	for _, m := range []*running{a, b} {
		m.waitFor(t, "the report of b", func() bool { return slices.Contains(m.View().Members, want) })
	}
	select {
	case got := <-heard:
		if got != (hints{7, 1 << 40}) {
			t.Errorf("OnHeartbeat got %+v", got)
		}
	case <-time.After(testPatience):
		t.Error("OnHeartbeat was not called")
	}
	number := a.View().Number
	sent := a.Stats().Sent
	a.waitFor(t, "more heartbeats", func() bool { return a.Stats().Sent > sent+2 })
	if got := a.View().Number; got != number {
		t.Errorf("view number went from %d to %d though nobody came or left", number, got)
	}
}

func TestMembershipRefusesForeignMessages(t *testing.T) {
	url := startNATS(t, -1).ClientURL()
	stranger := connect(t, url)
	heartbeats, err := stranger.SubscribeSync("freshet.shop.member")
	if err != nil {
		t.Fatal(err)
	}
	if err := stranger.Flush(); err != nil {
		t.Fatal(err)
	}
	a := run(t, MembershipConfig{Conn: NATS(connect(t, url)), Self: Member{ID: "a", Boot: 1}})
	if _, err := heartbeats.NextMsg(testPatience); err != nil { // from a, who listens before it speaks
		t.Fatal(err)
	}
	for _, message := range [][]byte{
		nil,
		[]byte("hello"),
		make([]byte, 512<<10),
		[]byte("FM\x02 from the future"),
	} {
		if err := stranger.Publish("freshet.shop.member", message); err != nil {
			t.Fatal(err)
		}
	}
	if err := stranger.Publish("freshet.other.member", heartbeat{member: Member{ID: "x", Boot: 1}, seq: 1}.append(nil)); err != nil {
		t.Fatal(err)
	}
	a.waitFor(t, "four refused messages", func() bool {
		s := a.Stats()
		return s.Malformed == 3 && s.OtherVersion == 1
	})
	a.waitForView(t, "a/1")
}

func TestMembershipLivesWithoutNATS(t *testing.T) {
	first := startNATS(t, -1)
	port := first.Addr().(*net.TCPAddr).Port
	url := first.ClientURL()
	stopNATS(first)

	a := run(t, MembershipConfig{Conn: NATS(connect(t, url)), Self: Member{ID: "a", Boot: 1}})
	b := run(t, MembershipConfig{Conn: NATS(connect(t, url)), Self: Member{ID: "b", Boot: 1}})
	a.waitFor(t, "heartbeats that could not be sent", func() bool { return a.Stats().SendErrors > 2 })
	a.waitForView(t, "a/1")

	second := startNATS(t, port)
	a.waitForView(t, "a/1", "b/1")
	b.waitForView(t, "a/1", "b/1")

	stopNATS(second)
	a.waitForView(t, "a/1")
	b.waitForView(t, "b/1")

	startNATS(t, port)
	a.waitForView(t, "a/1", "b/1")
	b.waitForView(t, "a/1", "b/1")
}

func TestMembershipWithoutABusIsAlone(t *testing.T) {
	m := run(t, MembershipConfig{Self: Member{ID: "a", Boot: 1}, Report: func() Report { return Report{PollAge: -1, Load: 3} }})
	want := Member{ID: "a", Boot: 1, Load: 3}
	m.waitFor(t, "itself", func() bool { return slices.Equal(m.View().Members, []Member{want}) })
	m.stop(t)
	if s := m.Stats(); s != (MembershipStats{}) {
		t.Errorf("stats %+v", s)
	}
}

func TestRunRefuses(t *testing.T) {
	ended, cancel := context.WithCancel(context.Background())
	cancel()
	m, err := NewMembership(MembershipConfig{App: "shop", Self: Member{ID: "a", Boot: 1, PollAge: 1, Load: 1}})
	if err != nil {
		t.Fatal(err)
	}
	if v := m.View(); len(v.Members) != 1 || v.Members[0] != (Member{ID: "a", Boot: 1}) {
		t.Errorf("view before Run: %+v", v)
	}
	if err := m.Run(ended); err != nil {
		t.Error(err)
	}
	if err := m.Run(ended); err == nil || !strings.Contains(err.Error(), "called before") {
		t.Errorf("second Run: %v", err)
	}

	conn := connect(t, startNATS(t, -1).ClientURL())
	conn.Close()
	if m, err = NewMembership(MembershipConfig{Conn: NATS(conn), App: "shop", Self: Member{ID: "a", Boot: 1}}); err != nil {
		t.Fatal(err)
	}
	if err := m.Run(ended); !errors.Is(err, nats.ErrConnectionClosed) {
		t.Errorf("Run on a closed connection: %v", err)
	}
}

func TestNewMembershipNamesAllProblems(t *testing.T) {
	_, err := NewMembership(MembershipConfig{
		App:      "Shop",
		Self:     Member{ID: "a b", Address: "a\nb"},
		Interval: time.Nanosecond,
		Expire:   1,
	})
	for _, want := range []string{`app "Shop"`, `ID "a b"`, "Boot is 0", `Address "a\nb"`, "Interval is 1ns", "Expire is 1ns"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("error %q does not say %q", err, want)
		}
	}
	m, err := NewMembership(MembershipConfig{App: "shop", Self: Member{ID: "a", Boot: 1}})
	if err != nil {
		t.Fatal(err)
	}
	if m.config.interval() != time.Second || m.table.expire != 3500*time.Millisecond || m.table.limit != 1024 {
		t.Errorf("defaults: interval %v, expire %v, limit %d", m.config.interval(), m.table.expire, m.table.limit)
	}
	for range 1000 {
		if p := m.pause(); p < 900*time.Millisecond || p >= 1100*time.Millisecond {
			t.Fatalf("pause of %v", p)
		}
	}
}
