package devstack_test

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/freshet-cache/freshet/internal/devstack"
	"github.com/freshet-cache/freshet/internal/devstack/stacktest"
)

// natsPair connects a publisher directly and a subscriber through a proxy.
func natsPair(t *testing.T, seed uint64) (pub, sub *nats.Conn, p *devstack.NATSProxy) {
	t.Helper()
	n := stacktest.Stack().NATS
	p, err := devstack.NewNATSProxy(n.Addr(), seed)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.Close)
	if pub, err = nats.Connect(n.URL()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(pub.Close)
	if sub, err = nats.Connect("nats://"+p.Addr(), nats.NoReconnect()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(sub.Close)
	return pub, sub, p
}

// nasty returns a payload that looks like the protocol itself.
func nasty(r *rand.Rand) []byte {
	words := []string{"\r\n", "MSG a 1 5\r\n", "PUB a 3\r\nabc\r\n", "PING\r\n", "-ERR 'x'\r\n", "\x00\xff", "+OK", "NATS/1.0\r\n\r\n"}
	var b bytes.Buffer
	for range r.IntN(40) {
		b.WriteString(words[r.IntN(len(words))])
	}
	if r.IntN(20) == 0 {
		b.Write(make([]byte, 50_000)) // longer than a read
	}
	return b.Bytes()
}

// meddled sends numbered messages and returns the order in which they came.
func meddled(t *testing.T, subject string, seed uint64, m devstack.Mishaps) (order []int, counts devstack.MishapCounts) {
	t.Helper()
	const messages = 500
	pub, sub, p := natsPair(t, seed)
	s, err := sub.SubscribeSync(subject + ".*")
	if err != nil {
		t.Fatal(err)
	}
	if err := s.SetPendingLimits(-1, -1); err != nil {
		t.Fatal(err)
	}
	if err := sub.Flush(); err != nil {
		t.Fatal(err)
	}
	p.Meddle(devstack.Down, m)
	r := rand.New(rand.NewPCG(seed, 7))
	payloads := make(map[int][]byte)
	for i := range messages {
		payloads[i] = nasty(r)
		msg := &nats.Msg{Subject: subject + ".x", Data: payloads[i], Header: nats.Header{"N": {fmt.Sprint(i)}}}
		if err := pub.PublishMsg(msg); err != nil {
			t.Fatal(err)
		}
	}
	// Another subject, which nobody meddles with, and no header.
	if err := pub.Publish(subject+".end", []byte("\r\n")); err != nil {
		t.Fatal(err)
	}
	for ended := false; ; {
		wait := 20 * time.Second
		if ended {
			wait = m.Delay*4 + short
		}
		msg, err := s.NextMsg(wait)
		if err != nil {
			if !ended {
				t.Fatalf("the message of the other subject did not come (%v)", err)
			}
			break
		}
		if msg.Subject == subject+".end" {
			ended = true
			continue
		}
		var i int
		if _, err := fmt.Sscan(msg.Header.Get("N"), &i); err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(msg.Data, payloads[i]) {
			t.Fatalf("message %d has another payload than was sent", i)
		}
		order = append(order, i)
	}
	if err := sub.LastError(); err != nil || !sub.IsConnected() {
		t.Errorf("the stream broke: %v", err)
	}
	return order, p.Mishaps(devstack.Down)
}

func TestNATSProxyLosesAndRepeatsBySeed(t *testing.T) {
	m := devstack.Mishaps{Subject: "lossy.x", Drop: 0.2, Duplicate: 0.1}
	first, counts := meddled(t, "lossy", 1, m)
	if counts.Matched != 500 || counts.Dropped < 50 || counts.Duplicated < 15 {
		t.Errorf("counts %+v of 500 messages", counts)
	}
	if want := int(counts.Matched - counts.Dropped + counts.Duplicated); len(first) != want {
		t.Errorf("%d messages came, want %d", len(first), want)
	}
	again, _ := meddled(t, "lossy", 1, m)
	if fmt.Sprint(first) != fmt.Sprint(again) {
		t.Error("the same seed had another effect")
	}
	other, _ := meddled(t, "lossy", 2, m)
	if fmt.Sprint(first) == fmt.Sprint(other) {
		t.Error("another seed had the same effect")
	}
}

func TestNATSProxyReordersButLosesNothing(t *testing.T) {
	order, _ := meddled(t, "late", 1, devstack.Mishaps{Subject: "late.x", Delay: 50 * time.Millisecond})
	seen := make(map[int]bool)
	backwards := 0
	for at, i := range order {
		seen[i] = true
		if at > 0 && i < order[at-1] {
			backwards++
		}
	}
	if len(order) != 500 || len(seen) != 500 || backwards < 5 {
		t.Errorf("%d messages, %d of them different, %d out of order; want 500, 500, and many", len(order), len(seen), backwards)
	}
}

func TestNATSProxyMeddlesWithWhatIsPublished(t *testing.T) {
	receiver, publisher, p := natsPair(t, 1)
	s, err := receiver.SubscribeSync("up.>")
	if err != nil {
		t.Fatal(err)
	}
	if err := receiver.Flush(); err != nil {
		t.Fatal(err)
	}
	p.Meddle(devstack.Up, devstack.Mishaps{Subject: "up.lost.>", Drop: 1})
	for _, subject := range []string{"up.lost.a", "up.a", "up.lost.b.c"} {
		if err := publisher.Publish(subject, []byte("\r\nPING\r\n")); err != nil {
			t.Fatal(err)
		}
	}
	p.Meddle(devstack.Down, devstack.Mishaps{})
	if err := publisher.Flush(); err != nil { // a PING behind them
		t.Fatal(err)
	}
	msg, err := s.NextMsg(10 * time.Second)
	if err != nil || msg.Subject != "up.a" {
		t.Fatalf("received %v (%v), want up.a", msg, err)
	}
	if _, err := s.NextMsg(short); err == nil {
		t.Error("a message that was dropped came")
	}
}

func TestNATSCutsOffASlowConsumer(t *testing.T) {
	n := stacktest.Stack().NATS
	if err := n.LimitPending(1<<20, 500*time.Millisecond); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := n.LimitPending(0, 0); err != nil {
			t.Error(err)
		}
	}()
	pub, sub, p := natsPair(t, 1)
	if _, err := sub.SubscribeSync("slow"); err != nil {
		t.Fatal(err)
	}
	if err := sub.Flush(); err != nil {
		t.Fatal(err)
	}
	p.Limit(devstack.Down, 1000)
	eventually(t, "the slow consumer cut off", 20*time.Second, func() bool {
		for range 64 {
			if err := pub.Publish("slow", make([]byte, 32<<10)); err != nil {
				t.Fatal(err)
			}
		}
		return pub.Flush() == nil && n.SlowConsumers() > 0
	})
}
