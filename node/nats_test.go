package node_test

import (
	"strings"
	"testing"
	"time"

	"github.com/freshet-cache/freshet/internal/devstack"
	"github.com/freshet-cache/freshet/internal/devstack/stacktest"
	"github.com/freshet-cache/freshet/node"
)

// twoPolls bounds how long a change takes to be seen without hints: two poll intervals with their
// jitter, the polls themselves, and a busy machine.
const twoPolls = 600*time.Millisecond + slack

// slack is what a busy machine adds to anything.
const slack = 800 * time.Millisecond

// changeSeen writes through a replica, which must neither fail nor block, and returns how long the
// others took to see it.
func (s *site) changeSeen(writer *replica, id string, others ...*replica) time.Duration {
	s.t.Helper()
	for _, r := range others {
		s.get(r, id)
	}
	var want int64
	began := time.Now()
	_, err := writer.Write(s.t.Context(), func(tx *node.Tx) error {
		return tx.GetContext(s.t.Context(), &want, nextRevision, id)
	})
	if err != nil {
		s.t.Fatalf("write: %v", err)
	}
	if took := time.Since(began); took > slack {
		s.t.Errorf("a write took %v", took)
	}
	if e := s.get(writer, id); e.Value.Revision != want {
		s.t.Errorf("own write not seen: %+v", e)
	}
	committed := time.Now()
	for _, r := range others {
		s.until("the change is seen", func() bool { return s.get(r, id).Value.Revision >= want })
	}
	return time.Since(committed)
}

// NATS away at the start, then there, then killed and restarted under traffic: changes travel by
// polling meanwhile, writes neither fail nor block, and members find each other again.
func TestI1I5NATSDown(t *testing.T) {
	s := newSite(t)
	nats := stacktest.Stack().NATS
	t.Cleanup(func() {
		if err := nats.Start(); err != nil {
			t.Error(err)
		}
	})
	if err := nats.Stop(); err != nil {
		t.Fatal(err)
	}
	r := []*replica{s.open(nil), s.open(nil)}
	s.ready(r[0])
	s.ready(r[1])
	for range 3 {
		if took := s.changeSeen(r[0], "thing-30", r[1]); took > twoPolls {
			t.Errorf("without NATS a change took %v", took)
		}
	}
	if n := r[0].Stats(); n.HintsSent != 0 || n.HintsUnsent != 3 {
		t.Errorf("without NATS %d hints were sent and %d were not, want 0 and 3", n.HintsSent, n.HintsUnsent)
	}
	together := func() bool { return len(r[0].Stats().Members) == 2 && len(r[1].Stats().Members) == 2 }
	if together() {
		t.Error("members see each other without a bus")
	}

	if err := nats.Start(); err != nil {
		t.Fatal(err)
	}
	s.until("members see each other", together)
	s.until("a hint arrives", func() bool {
		s.changeSeen(r[0], "thing-30", r[1])
		return r[1].Stats().HintsReceived > 0
	})

	f := s.traffic(r, trafficConfig{writers: 3})
	f.progress()
	if err := nats.Stop(); err != nil {
		t.Fatal(err)
	}
	if took := s.changeSeen(r[1], "thing-31", r[0]); took > twoPolls {
		t.Errorf("without NATS a change took %v", took)
	}
	s.until("the others are not members any more", func() bool { return len(r[0].Stats().Members) == 1 })
	f.progress()
	if err := nats.Start(); err != nil {
		t.Fatal(err)
	}
	s.until("members see each other again", together)
	f.progress()
	f.stop()
	f.noneFailed()
}

// A bus that loses messages: what is cut off from one replica it finds by polling, and the gap shows.
// A bus that swallows everything holds up no write.
func TestI1LossyNATS(t *testing.T) {
	s := newSite(t)
	proxy, err := devstack.NewProxy(strings.TrimPrefix(stacktest.Stack().NATS.URL(), "nats://"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(proxy.Close)
	direct := s.open(nil)
	cut := s.open(func(c *node.Config, _ *node.CacheConfig[Thing]) { c.NATS.URLs = []string{"nats://" + proxy.Addr()} })
	s.ready(direct)
	s.ready(cut)
	together := func() bool { return len(direct.Stats().Members) == 2 && len(cut.Stats().Members) == 2 }
	s.until("members see each other", together)
	s.until("a hint arrives", func() bool {
		s.changeSeen(direct, "thing-40", cut)
		return cut.Stats().HintsReceived > 0
	})

	f := s.traffic([]*replica{direct, cut}, trafficConfig{writers: 2})
	f.progress()
	proxy.Cut()
	gaps := cut.Stats().HintGaps
	for range 3 {
		if took := s.changeSeen(direct, "thing-41", cut); took > twoPolls {
			t.Errorf("cut off, a change took %v", took)
		}
	}
	proxy.Heal()
	s.until("the gap shows", func() bool { return cut.Stats().HintGaps > gaps })
	s.until("members see each other again", together)

	proxy.Stall()
	for range 3 {
		if took := s.changeSeen(direct, "thing-42", cut); took > twoPolls {
			t.Errorf("stalled, a change took %v", took)
		}
		if took := s.changeSeen(cut, "thing-43", direct); took > twoPolls {
			t.Errorf("stalled, a change the other way took %v", took)
		}
	}
	proxy.Heal()
	s.until("members see each other again", together)
	f.progress()
	f.stop()
	f.noneFailed()
}
