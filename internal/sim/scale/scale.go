package scale

import (
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/freshet-cache/freshet/cluster"
	"github.com/freshet-cache/freshet/cluster/conntest"
	"github.com/freshet-cache/freshet/coherence"
	"github.com/freshet-cache/freshet/coherence/logtest"
)

// What a node has by default, and what the network takes.
const (
	Interval  = 250 * time.Millisecond // between polls
	Patience  = Interval / 2           // of a poll that is relayed
	Postgres  = time.Millisecond       // from a poll's snapshot to its arrival
	Network   = 2 * time.Millisecond   // bound of a message's way; the mean is half of it
	relayFrom = 32                     // replicas up to which each polls for itself

	app = "scale"
	// realMembers bounds the replicas that have real memberships; more see each other from the start,
	// and their heartbeats are counted by the formula that holds below.
	realMembers = 100
	// others is the part of the writes, one in so many, that replicas do not make: nobody hints at them.
	others = 10
	// keys bounds what the writes change: less than a directory of scopes remembers.
	keys, scopes = 128, 2048
)

// Options describe a run.
type Options struct {
	Replicas int
	Writes   int           // per second
	Relays   bool          // false: every replica polls for itself
	Warm     time.Duration // before anything is counted; the connections of those who joined are closed after 1 s
	For      time.Duration // how long it is counted
	Seed     uint64
}

// Result is what a run cost, per second of virtual time, and how old its knowledge was.
type Result struct {
	Options
	Relaying    int     // replicas that answered others
	Connections int     // open for polls, at the end
	Polls       float64 // on Postgres
	Requests    float64 // sent to relays
	Published   float64 // hints
	Delivered   float64 // hints, to each replica
	Heartbeats  float64 // delivered, to each replica
	Age         Spread  // of every replica's latest poll, from its start
	Hinted      Spread  // from a replica's commit until every replica knows it
	Polled      Spread  // from a commit that nobody hints at until every replica knows it
	Unproven    int     // samples of a replica that had no poll to rely on
	Unknown     int     // commits older than a second that some replica does not know
}

// Spread is a distribution of durations, in whole milliseconds but for Max. The zero Spread is empty.
type Spread struct {
	counts []int
	n      int
	Max    time.Duration
}

func (s *Spread) add(d time.Duration) {
	ms := int(d / time.Millisecond)
	if ms >= len(s.counts) {
		s.counts = append(s.counts, make([]int, ms+1-len(s.counts))...)
	}
	s.counts[ms]++
	s.n++
	s.Max = max(s.Max, d)
}

// Quantile is the duration that the part q of all does not exceed, rounded up to whole milliseconds or Max; 0 when there is none.
func (s *Spread) Quantile(q float64) time.Duration {
	left := int(q * float64(s.n))
	for ms, n := range s.counts {
		if left -= n; left < 0 {
			return min(time.Duration(ms+1)*time.Millisecond, s.Max)
		}
	}
	return s.Max
}

// world is one run.
type world struct {
	options  Options
	random   *rand.Rand
	log      *logtest.Memory
	hub      *conntest.Hub
	replicas []*replica
	ready    atomic.Bool // the view of those without a membership holds

	requests, delivered, heartbeats atomic.Uint64
}

// Run must be called in a synctest bubble. When it returns, no goroutine of it is left.
func Run(o Options) Result {
	w := &world{options: o, random: rand.New(rand.NewPCG(o.Seed, 1)), log: logtest.NewMemory(), hub: conntest.NewHub(o.Seed)}
	w.log.Delay(Postgres)
	w.hub.Set(conntest.Faults{Delay: Network})
	members := make([]cluster.Member, o.Replicas)
	for i := range members {
		members[i] = cluster.Member{ID: fmt.Sprintf("r%04d", i), Boot: uint64(i + 1)}
	}
	for _, m := range members {
		<-time.After(time.Second / time.Duration(o.Replicas)) // else all poll in step for a while
		w.replicas = append(w.replicas, w.start(m, members))
	}
	w.ready.Store(true)
	<-time.After(o.Warm)
	r := w.measure()
	for _, m := range w.replicas {
		m.close()
	}
	w.hub.Close()
	return r
}

// replica is one process.
type replica struct {
	world   *world
	self    cluster.Member
	conn    *conntest.Conn
	own     *own
	polls   *coherence.RelayedLog
	tracker *coherence.Tracker
	bus     *coherence.Bus
	sub     cluster.Subscription // of requests for polls

	members *cluster.Membership // nil = all are seen from the start
	relay   cluster.Member      // without members: who relays
	relayed bool

	stop context.CancelFunc
	work sync.WaitGroup
}

func (w *world) start(self cluster.Member, all []cluster.Member) *replica {
	r := &replica{world: w, self: self, own: &own{Log: w.log}, conn: w.hub.Connect(nil)}
	quiet := slog.New(slog.DiscardHandler)
	ctx, stop := context.WithCancel(context.Background())
	r.stop = stop
	if len(all) > realMembers {
		r.relay, r.relayed = cluster.Relay(all, self.ID, relayFrom)
	}
	r.polls = coherence.NewRelayedLog(coherence.RelayConfig{Direct: r.own, Ask: r.ask, Patience: Patience, Idle: time.Second})
	bus, err := coherence.OpenBus(r.conn, app, self.Boot, func(h coherence.Hint) {
		w.delivered.Add(1)
		r.tracker.Observe(coherence.HintHeard{Hint: h})
	})
	must(err)
	r.bus = bus
	if len(all) <= realMembers {
		r.members, err = cluster.NewMembership(cluster.MembershipConfig{
			Conn: r.conn, App: app, Self: self, Logger: quiet,
			Report: func() cluster.Report { return cluster.Report{HintSeq: bus.Published()} },
			OnHeartbeat: func(boot, seq uint64) {
				w.heartbeats.Add(1)
				r.tracker.Observe(coherence.PeerHeard{Boot: boot, Seq: seq})
			},
		})
		must(err)
	}
	// Nothing has been published yet, so that nobody observes a tracker that is not there.
	r.tracker = coherence.NewTracker(coherence.TrackerConfig{Log: r.polls, Boot: self.Boot, Interval: Interval, Scopes: scopes, Logger: quiet})
	relay := coherence.Relay{Log: r.polls, Tracker: r.tracker}
	r.sub, err = r.conn.Subscribe(subject(self), cluster.Queue{}, func(m cluster.Message) {
		r.work.Go(func() { _ = m.Respond(relay.Answer(ctx, m.Data)) })
	})
	must(err)
	if r.members != nil {
		r.work.Go(func() { must(r.members.Run(ctx)) })
	}
	return r
}

// must: what fails here is the simulation.
func must(err error) {
	if err != nil {
		panic(err)
	}
}

func subject(m cluster.Member) string { return "freshet." + app + ".poll." + m.ID }

func (r *replica) ask(ctx context.Context, request []byte) ([]byte, error) {
	relay, ok := r.relay, r.relayed && r.world.ready.Load()
	if r.members != nil {
		relay, ok = cluster.Relay(r.members.View().Members, r.self.ID, relayFrom)
	}
	if !ok || !r.world.options.Relays {
		return nil, coherence.ErrNoRelay
	}
	r.world.requests.Add(1)
	return r.conn.Request(ctx, subject(relay), request)
}

func (r *replica) close() {
	r.stop()
	_ = r.sub.Close()
	_ = r.bus.Close()
	_ = r.tracker.Close()
	r.work.Wait()
	r.conn.Close()
}

// own is a replica's connection to Postgres for polls.
type own struct {
	coherence.Log
	open atomic.Bool
}

func (o *own) Poll(ctx context.Context, since coherence.Snapshot, limit int) (coherence.PollResult, error) {
	o.open.Store(true)
	return o.Log.Poll(ctx, since, limit)
}
func (o *own) Idle()        { o.open.Store(false) }
func (o *own) Close() error { return nil }

// commit is a change that some replicas do not know yet.
type commit struct {
	scope    coherence.ScopeHash
	snapshot coherence.Snapshot // that does not see it
	at       time.Time
	hinted   bool
	unknown  []*replica
}

func (w *world) measure() Result {
	const step, sample = time.Millisecond, 10 // steps
	r := Result{Options: w.options}
	polls, requests, delivered, heartbeats := w.log.Polls(), w.requests.Load(), w.delivered.Load(), w.heartbeats.Load()
	published, written := w.published(), 0
	answered := make([]uint64, len(w.replicas))
	for i, m := range w.replicas {
		answered[i] = m.polls.Stats().Answered
	}
	var pending []*commit
	began, ticks := time.Now(), time.NewTicker(step)
	defer ticks.Stop()
	for i := 0; time.Since(began) < w.options.For; i++ {
		<-ticks.C
		for written*int(time.Second) < w.options.Writes*int(time.Since(began)) {
			pending = append(pending, w.write(written))
			written++
		}
		pending = slices.DeleteFunc(pending, func(c *commit) bool {
			if !c.hinted && i%sample != 0 {
				return false
			}
			c.unknown = slices.DeleteFunc(c.unknown, func(r *replica) bool {
				return !r.tracker.Valid(1, []coherence.ScopeHash{c.scope}, c.snapshot)
			})
			switch known := len(c.unknown) == 0; {
			case known && c.hinted:
				r.Hinted.add(time.Since(c.at))
			case known:
				r.Polled.add(time.Since(c.at))
			}
			return len(c.unknown) == 0
		})
		if i%sample != 0 {
			continue
		}
		for _, m := range w.replicas {
			if p := m.tracker.Latest(); p != nil {
				r.Age.add(m.tracker.Now().Sub(p.Sent))
			} else {
				r.Unproven++
			}
		}
	}
	seconds := time.Since(began).Seconds()
	r.Polls = float64(w.log.Polls()-polls) / seconds
	r.Requests = float64(w.requests.Load()-requests) / seconds
	r.Published = float64(w.published()-published) / seconds
	r.Delivered = float64(w.delivered.Load()-delivered) / seconds
	r.Heartbeats = float64(w.heartbeats.Load()-heartbeats) / seconds
	if w.options.Replicas > realMembers {
		r.Heartbeats = float64(w.options.Replicas * (w.options.Replicas - 1))
	}
	for _, c := range pending {
		if time.Since(c.at) > time.Second {
			r.Unknown++
		}
	}
	for i, m := range w.replicas {
		if m.polls.Stats().Answered > answered[i] {
			r.Relaying++
		}
		if m.own.open.Load() {
			r.Connections++
		}
	}
	return r
}

func (w *world) published() (n uint64) {
	for _, r := range w.replicas {
		n += r.bus.Published()
	}
	return n
}

// write commits the n-th change: through a replica, or past all.
func (w *world) write(n int) *commit {
	scope := coherence.Entity("n", fmt.Sprint(n%keys))
	xid := w.log.Commit(scope)
	timeline := w.log.Snapshot().Timeline
	c := &commit{
		scope: scope.Hash(), at: time.Now(), hinted: n%others != 0, unknown: slices.Clone(w.replicas),
		snapshot: coherence.Snapshot{Timeline: timeline, Xmin: xid, Xmax: xid},
	}
	if c.hinted {
		r := w.replicas[w.random.IntN(len(w.replicas))]
		r.tracker.Observe(coherence.Wrote{Timeline: timeline, XID: xid, Scopes: []coherence.ScopeHash{c.scope}})
		must(r.bus.Publish(timeline, xid, []coherence.ScopeHash{c.scope}))
	}
	return c
}
