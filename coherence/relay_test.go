package coherence_test

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/freshet-cache/freshet/coherence"
	"github.com/freshet-cache/freshet/coherence/logtest"
)

// member polls a log of its own way, and may be asked.
type member struct {
	log     *coherence.RelayedLog
	tracker *coherence.Tracker
}

func (m member) answer(ctx context.Context, request []byte) ([]byte, error) {
	return coherence.Relay{Log: m.log, Tracker: m.tracker}.Answer(ctx, request), nil
}

func noRelay(context.Context, []byte) ([]byte, error) { return nil, coherence.ErrNoRelay }

// startMember makes a member that the test closes.
func startMember(t testing.TB, direct coherence.Log, ask func(context.Context, []byte) ([]byte, error)) member {
	t.Helper()
	log := coherence.NewRelayedLog(coherence.RelayConfig{Direct: direct, Ask: ask})
	return member{log, startTracker(t, coherence.TrackerConfig{Log: log, MaxChanges: 100_000})}
}

// own is one member's connection to a log that others have, too. It counts what it polls.
type own struct {
	coherence.Log
	polls, trims, idles atomic.Int64
	closed              atomic.Bool
}

func (o *own) Poll(ctx context.Context, since coherence.Snapshot, limit int) (coherence.PollResult, error) {
	o.polls.Add(1)
	if o.closed.Load() {
		return coherence.PollResult{}, errors.New("closed")
	}
	return o.Log.Poll(ctx, since, limit)
}

func (o *own) Trim(ctx context.Context, keep time.Duration) (int, error) {
	o.trims.Add(1)
	return o.Log.Trim(ctx, keep)
}
func (o *own) Idle()        { o.idles.Add(1) }
func (o *own) Close() error { o.closed.Store(true); return nil }

// A log that is polled by way of a relay is a log like any other.
func TestRelayedLog(t *testing.T) {
	logtest.Exercise(t, func(t *testing.T) (coherence.Log, logtest.Writer) {
		t.Helper()
		memory := logtest.NewMemory()
		relay := startMember(t, &own{Log: memory}, noRelay)
		barrier(t, relay.tracker)
		log := coherence.NewRelayedLog(coherence.RelayConfig{Direct: &own{Log: memory}, Ask: relay.answer})
		t.Cleanup(func() {
			if s := log.Stats(); s.Relayed == 0 {
				t.Errorf("nothing was relayed: %+v", s)
			}
		})
		return log, memoryWriter{memory}
	})
}

// What committed before a poll was asked for is seen by the relay's answer, however recent its last poll.
func TestRelayPollsAfterRequest(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		memory := logtest.NewMemory()
		relay, direct := startMember(t, &own{Log: memory}, noRelay), &own{Log: memory}
		asker := startMember(t, direct, relay.answer)
		barrier(t, relay.tracker)
		barrier(t, asker.tracker)
		for i := range 100 {
			xid := memory.Commit(coherence.Entity("n", fmt.Sprint(i)))
			if i%2 == 0 {
				barrier(t, relay.tracker) // it knows already, and has to tell
			}
			if p := barrier(t, asker.tracker); !p.Sees(xid) {
				t.Fatalf("a barrier after the commit of %d got the poll at %s", xid, p)
			}
			if asker.tracker.Valid(1, []coherence.ScopeHash{coherence.Entity("n", fmt.Sprint(i)).Hash()}, before(memory, xid)) {
				t.Fatalf("change %d was not told", xid)
			}
			pass(time.Millisecond)
		}
		if polls := direct.polls.Load(); polls != 1 {
			t.Errorf("%d polls were direct, want the first: %+v", polls, asker.log.Stats())
		}
	})
}

// before is a snapshot that does not see the transaction.
func before(memory *logtest.Memory, xid uint64) coherence.Snapshot {
	return coherence.Snapshot{Timeline: memory.Snapshot().Timeline, Xmin: xid, Xmax: xid}
}

// An asker that is further behind than the relay remembers, or is of another timeline, gets no answer and
// polls for itself: it must not take the relay's changes for all that it has missed.
func TestRelayBehindMemory(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		memory := logtest.NewMemory()
		old := memory.Snapshot()
		missed := memory.Commit(coherence.Entity("n", "missed"))
		relay := startMember(t, &own{Log: memory}, noRelay)
		barrier(t, relay.tracker)
		direct := &own{Log: memory}
		log := coherence.NewRelayedLog(coherence.RelayConfig{Direct: direct, Ask: relay.answer})
		poll := func(since coherence.Snapshot) coherence.PollResult {
			p, err := log.Poll(t.Context(), since, 100)
			if err != nil {
				t.Fatal(err)
			}
			return p
		}
		if p := poll(old); len(p.Changes) != 1 || p.Changes[0].XID != missed || direct.polls.Load() != 1 {
			t.Errorf("an asker that was behind got %+v, by %d direct polls", p, direct.polls.Load())
		}
		now := memory.Snapshot()
		memory.Crash()
		if p := poll(now); p.Snapshot.Timeline == now.Timeline || direct.polls.Load() != 2 {
			t.Errorf("an asker of the timeline before got %+v, by %d direct polls", p, direct.polls.Load())
		}
		now = memory.Snapshot()
		foreign := coherence.Snapshot{Timeline: now.Timeline + 7, Xmin: now.Xmin, Xmax: now.Xmax}
		if poll(foreign); direct.polls.Load() != 3 {
			t.Error("an asker of a timeline that the relay does not know got its answer")
		}
		if s := log.Stats(); s.Vain != 3 || s.Relayed != 0 {
			t.Errorf("%+v, want 3 polls in vain", s)
		}
	})
}

// Answers that cannot be right are not believed, whatever sends them.
func TestRelayAnswersRefused(t *testing.T) {
	memory := logtest.NewMemory()
	since := memory.Snapshot()
	a := memory.Commit(coherence.Entity("n", "1"))
	relay := startMember(t, &own{Log: memory}, noRelay)
	barrier(t, relay.tracker)
	now := memory.Snapshot()
	var earlier []byte
	for name, spoil := range map[string]func(request, answer []byte) []byte{
		"none":          func(_, _ []byte) []byte { return nil },
		"cut":           func(_, answer []byte) []byte { return answer[:len(answer)-1] },
		"a bit flipped": func(_, answer []byte) []byte { answer[len(answer)/2] ^= 4; return answer },
		"the request":   func(request, _ []byte) []byte { return request },
		"of another request": func(_, answer []byte) []byte {
			if earlier == nil {
				earlier = answer
			}
			return earlier
		},
		"older than the asker": func(request, _ []byte) []byte { return coherence.RelayAnswer(request, since) },
		"of another timeline": func(request, _ []byte) []byte {
			return coherence.RelayAnswer(request, coherence.Snapshot{Timeline: now.Timeline + 1, Xmin: now.Xmin, Xmax: now.Xmax})
		},
		"with a change from beyond": func(request, _ []byte) []byte {
			return coherence.RelayAnswer(request, now, coherence.Change{XID: now.Xmax + 5, Scope: 1})
		},
	} {
		direct := &own{Log: memory}
		log := coherence.NewRelayedLog(coherence.RelayConfig{
			Direct: direct, Silence: time.Nanosecond,
			Ask: func(ctx context.Context, request []byte) ([]byte, error) {
				answer, err := relay.answer(ctx, request)
				return spoil(request, answer), err
			},
		})
		for range 2 {
			p, err := log.Poll(t.Context(), now, 100)
			if err != nil || !p.Snapshot.Equal(now) {
				t.Errorf("%s: %+v, %v", name, p, err)
			}
		}
		if name != "of another request" && direct.polls.Load() != 2 || direct.polls.Load() == 0 {
			t.Errorf("%s: %d of 2 polls were direct", name, direct.polls.Load())
		}
	}
	if !now.Sees(a) {
		t.Error("nothing was committed")
	}
}

// A relay that is silent costs one time-out, then nothing for a while; it is asked again when it is back.
// Meanwhile the node's knowledge is as fresh as if there were none.
func TestRelaySilent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		memory := logtest.NewMemory()
		relay, direct := startMember(t, &own{Log: memory}, noRelay), &own{Log: memory}
		var away atomic.Bool
		var asked atomic.Int64
		asker := startMember(t, direct, func(ctx context.Context, request []byte) ([]byte, error) {
			asked.Add(1)
			if away.Load() {
				<-ctx.Done()
				return nil, ctx.Err()
			}
			return relay.answer(ctx, request)
		})
		barrier(t, asker.tracker)
		pass(20 * time.Second)
		if direct.polls.Load() != 1 || direct.idles.Load() != 1 {
			t.Errorf("%d direct polls, the connection was closed %d times; want once each", direct.polls.Load(), direct.idles.Load())
		}
		away.Store(true)
		asked.Store(0)
		for began := time.Now(); time.Since(began) < 10*time.Second; pass(time.Millisecond) {
			if age := asker.tracker.Now().Sub(asker.tracker.Latest().Sent); age > 700*time.Millisecond {
				t.Fatalf("the latest poll is %v old", age)
			}
		}
		if n := asked.Load(); n < 4 || n > 20 {
			t.Errorf("a silent relay was asked %d times in 10 s", n)
		}
		away.Store(false)
		pass(3 * time.Second)
		polls := direct.polls.Load()
		pass(3 * time.Second)
		if direct.polls.Load() != polls {
			t.Error("the relay is back, and polls are direct")
		}
	})
}

// Two members that take each other for the relay make no circle.
func TestRelayCircle(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		memory := logtest.NewMemory()
		memory.Delay(2 * time.Millisecond)
		var members [2]member
		var ready atomic.Bool
		for i := range members {
			members[i] = startMember(t, &own{Log: memory}, func(ctx context.Context, request []byte) ([]byte, error) {
				if !ready.Load() {
					return nil, coherence.ErrNoRelay
				}
				return members[1-i].answer(ctx, request)
			})
		}
		ready.Store(true)
		for range 200 {
			for _, m := range members {
				xid := memory.Commit(coherence.Entity("n", "1"))
				began := time.Now()
				if p := barrier(t, m.tracker); !p.Sees(xid) {
					t.Fatalf("barrier at %s does not see %d", p, xid)
				}
				if took := time.Since(began); took > 50*time.Millisecond {
					t.Fatalf("a barrier took %v", took)
				}
			}
			pass(37 * time.Millisecond)
		}
	})
}

// Many who ask within the patience share one poll, and a barrier does not wait for the patience of the
// poll that is under way.
func TestRelayShares(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const askers = 64
		memory := logtest.NewMemory()
		memory.Delay(time.Millisecond)
		direct := &own{Log: memory}
		relay := startMember(t, direct, noRelay)
		barrier(t, relay.tracker)
		var crowd []member
		var trims []*own
		for range askers {
			o := &own{Log: memory}
			trims = append(trims, o)
			crowd = append(crowd, startMember(t, o, relay.answer))
		}
		for _, m := range crowd {
			barrier(t, m.tracker)
		}
		before := direct.polls.Load()
		pass(10 * time.Second)
		if perSecond := float64(direct.polls.Load()-before) / 10; perSecond > 16 {
			t.Errorf("%.1f polls per second for %d members; each for itself makes %d", perSecond, askers+1, 4*(askers+1))
		}
		for i, m := range crowd {
			pass(7 * time.Millisecond)
			began := time.Now()
			barrier(t, m.tracker)
			if took := time.Since(began); took > 10*time.Millisecond {
				t.Errorf("barrier of member %d took %v", i, took)
			}
		}
		pass(5 * time.Minute)
		for i, o := range trims {
			if o.trims.Load() > 0 {
				t.Errorf("member %d trims, whose polls are relayed", i)
			}
		}
		if direct.trims.Load() == 0 {
			t.Error("nobody trims")
		}
	})
}

// However answers are lost, late or doubled, relays die or restart, and Postgres begins a new timeline,
// the latest poll of every member sees whatever was committed before it was sent, and its changes are
// known.
func TestRelayHistories(t *testing.T) {
	var all coherence.RelayStats
	for seed := range uint64(8) {
		synctest.Test(t, func(t *testing.T) {
			s := relayHistory(t, seed)
			all.Relayed += s.Relayed
			all.Vain += s.Vain
		})
	}
	// One of them may find its relay silent or its timeline new each time.
	t.Logf("%+v", all)
	if all.Relayed < 20 || all.Vain < 20 {
		t.Errorf("%+v: the histories show nothing", all)
	}
}

// relayHistory is one history; it returns how often its members' polls were relayed, or asked for in vain.
func relayHistory(t *testing.T, seed uint64) (total coherence.RelayStats) {
	t.Helper()
	random := rand.New(rand.NewPCG(seed, 0))
	var mu sync.Mutex
	chance := func(p float64) bool { mu.Lock(); defer mu.Unlock(); return random.Float64() < p }
	upTo := func(d time.Duration) time.Duration {
		mu.Lock()
		defer mu.Unlock()
		return time.Duration(random.Int64N(int64(d)))
	}
	memory := logtest.NewMemory()
	memory.Delay(3 * time.Millisecond)
	const relays, askers = 2, 4
	var serving [relays]atomic.Pointer[member]
	start := func(ask func(context.Context, []byte) ([]byte, error)) *member {
		m := startMember(t, &own{Log: memory}, ask)
		return &m
	}
	for i := range serving {
		serving[i].Store(start(noRelay))
	}
	var old atomic.Pointer[[]byte]
	ask := func(ctx context.Context, request []byte) ([]byte, error) {
		i := 0
		if chance(0.5) {
			i = 1
		}
		pass(upTo(5 * time.Millisecond))
		answer, err := serving[i].Load().answer(ctx, request)
		switch {
		case chance(0.1): // lost
			<-ctx.Done()
			return nil, ctx.Err()
		case chance(0.1): // that to an earlier request
			if p := old.Swap(&answer); p != nil {
				return *p, nil
			}
		case chance(0.2):
			pass(upTo(150 * time.Millisecond)) // perhaps too late
		default:
			pass(upTo(5 * time.Millisecond))
		}
		return answer, cmp.Or(err, ctx.Err())
	}
	var crowd []*member
	for range askers {
		crowd = append(crowd, start(ask))
	}
	type commit struct {
		xid      uint64
		timeline uint64
		acked    time.Time
		scope    coherence.Scope
	}
	var commits []commit
	for step := range 400 {
		switch {
		case chance(0.5):
			scope := coherence.Entity("n", fmt.Sprint(step))
			xid := memory.Commit(scope)
			commits = append(commits, commit{xid, memory.Snapshot().Timeline, time.Now(), scope})
		case chance(0.02):
			memory.Crash()
			commits = nil
		case chance(0.05):
			serving[step%relays].Store(start(noRelay)) // a new process: it remembers nothing
		}
		pass(upTo(20 * time.Millisecond))
		for _, m := range crowd {
			now := m.tracker.Now()
			p := m.tracker.Latest()
			if p == nil {
				continue
			}
			sent := time.Now().Add(-now.Sub(p.Sent))
			for _, c := range commits {
				if c.timeline != p.Timeline || !c.acked.Before(sent) {
					continue
				}
				if !p.Sees(c.xid) {
					t.Fatalf("seed %d: the poll sent %v after the commit of %d does not see it", seed, sent.Sub(c.acked), c.xid)
				}
				if m.tracker.Valid(1, []coherence.ScopeHash{c.scope.Hash()}, coherence.Snapshot{Timeline: c.timeline, Xmin: c.xid, Xmax: c.xid}) {
					t.Fatalf("seed %d: the change of %d is not known, and the latest poll was sent %v after it", seed, c.xid, sent.Sub(c.acked))
				}
			}
		}
	}
	for _, m := range crowd {
		s := m.log.Stats()
		total.Relayed += s.Relayed
		total.Vain += s.Vain
	}
	return total
}

func FuzzDecodeRelay(f *testing.F) {
	since := coherence.Snapshot{Timeline: 3, Xmin: 700, Xmax: 710, Xip: []uint64{700, 705}}
	request := coherence.RelayRequest(1, time.Millisecond, since)
	f.Add(request)
	f.Add(coherence.RelayAnswer(request, since))
	f.Add(coherence.RelayAnswer(request, since, coherence.Change{XID: 703, Scope: 9}, coherence.Change{XID: 704, Scope: 1 << 63, Grace: 1500 * time.Millisecond}))
	f.Add(coherence.RelayAnswerWith(request, since, nil))
	f.Add(coherence.RelayAnswerWith(request, since, coherence.NewGenerations("v1", map[string]uint32{"": 2, "product": 7})))
	f.Add([]byte("Fp\x09"))
	f.Add([]byte(""))
	f.Fuzz(func(t *testing.T, b []byte) {
		for _, b := range [][]byte{b, coherence.SealRelay(b)} {
			if err := coherence.RelayRoundTrip(b); err != nil {
				t.Errorf("%x: %v", b, err)
			}
		}
	})
}
