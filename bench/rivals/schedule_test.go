package main

import (
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/freshet-cache/freshet/internal/devstack"
	"github.com/freshet-cache/freshet/internal/devstack/stacktest"
	"github.com/freshet-cache/freshet/internal/verify"
)

// schedule is an order of events in which a cache may go wrong, brought about step by step. It returns what a read
// that must show a write answered, and that write.
type schedule struct {
	name string
	run  func(t *testing.T, s *site) (got, wrote uint64)
	// breaks are the rivals that it breaks; never Freshet.
	breaks string
	alone  bool // it looks at the goroutines of the process, and others' would mislead it
}

const key = 7

func schedules() []schedule {
	return []schedule{
		{"slow load", slowLoad, "cache-aside go-redis-cache jetcache-go", false},
		{"two loads of one client", twoLoads, "rueidisaside go-redis-cache jetcache-go", false},
		{"read after write joins an older load", joins, "rockscache go-redis-cache jetcache-go", true},
		{"invalidation lost", lost, "cache-aside rueidisaside rockscache go-redis-cache jetcache-go", false},
		{"write from outside", outside, "cache-aside rueidisaside rockscache go-redis-cache jetcache-go", false},
	}
}

// Every rival is broken by one schedule at least, and Freshet by none; and what a rival withstands, it withstands here.
func TestSchedules(t *testing.T) {
	if testing.Short() {
		t.Skip("it waits for budgets to pass")
	}
	var mu sync.Mutex
	broken, ran := map[string]int{}, 0
	t.Run("all", func(t *testing.T) {
		for _, c := range schedules() {
			for _, r := range systems() {
				t.Run(c.name+"/"+r.name, func(t *testing.T) {
					if !c.alone {
						t.Parallel()
					}
					got, wrote := c.run(t, newSite(t, r))
					mu.Lock()
					defer mu.Unlock()
					ran++
					breaks := strings.Contains(c.breaks, r.name)
					if breaks != (got != wrote) {
						t.Errorf("a read that must show the write %d answered %d; broken is %t, want %t", wrote, got, !breaks, breaks)
					}
					if got != wrote {
						broken[r.name]++
					}
				})
			}
		}
	})
	if ran < len(schedules())*len(systems()) {
		return // some were left out by -run, or failed
	}
	for _, r := range systems() {
		if (broken[r.name] == 0) != (r.name == freshet) {
			t.Errorf("%s is broken by %d schedules", r.name, broken[r.name])
		}
	}
}

// later runs a read beside the test. One that fails is 0.
func later(r replica) chan uint64 {
	answer := make(chan uint64, 1)
	go func() {
		a, err := r.Get(r.t.Context(), key, want)
		if err != nil {
			r.t.Logf("Get %d: %v", key, err)
		}
		answer <- a.Op
	}()
	return answer
}

// lasting is what the replica answers, to reads that begin up to a little more than the budget after now.
func lasting(r replica, wrote uint64) uint64 {
	return within(r.t.Context(), want.Budget, wrote, func() uint64 { return r.get(key) })
}

// slowLoad: one reads the row; two changes it; then what one has read arrives and is cached.
func slowLoad(t *testing.T, s *site) (got, wrote uint64) {
	t.Helper()
	gate, dsn := openGate(t, s.dsn)
	one, two, three := s.replica(t, func(at *verify.Endpoints) { at.Postgres = dsn }), s.replica(t, nil), s.replica(t, nil)
	slow := gate.next()
	answer := later(one)
	slow.wait(t)
	wrote = two.write(verify.Change{Kind: verify.Set, Key: key, Group: 1})
	slow.release()
	<-answer // may be the older one: it was asked for before the write
	return lasting(three, wrote), wrote
}

// twoLoads: one reads the row; two changes it; one loads it a second time, and before that is there, what it has read
// first arrives and is cached. A lease that names the client and not the load takes the first for the second.
func twoLoads(t *testing.T, s *site) (got, wrote uint64) {
	t.Helper()
	gate, dsn := openGate(t, s.dsn)
	one, two, three := s.replica(t, func(at *verify.Endpoints) { at.Postgres = dsn }), s.replica(t, nil), s.replica(t, nil)
	slow := gate.next()
	first := later(one)
	slow.wait(t)
	wrote = two.write(verify.Change{Kind: verify.Set, Key: key, Group: 1})
	again := gate.next()
	second := later(one)
	select {
	case <-again.reached:
	case <-time.After(shared): // it waits for the first load
	}
	slow.release()
	<-first
	again.release()
	<-second
	return lasting(three, wrote), wrote
}

// joins: one reads the row; then it changes it; then it reads it again, while the first read is still under way.
func joins(t *testing.T, s *site) (got, wrote uint64) {
	t.Helper()
	gate, dsn := openGate(t, s.dsn)
	one := s.replica(t, func(at *verify.Endpoints) { at.Postgres = dsn })
	slow := gate.next()
	first := later(one)
	slow.wait(t)
	wrote = one.write(verify.Change{Kind: verify.Set, Key: key, Group: 1})
	second := later(one)
	select {
	case got = <-second:
		slow.release()
	case <-joined(t): // what it waits for
		slow.release()
		got = <-second
	}
	<-first
	if got == 0 {
		got = one.get(key) // what cannot be answered breaks no promise
	}
	return got, wrote
}

// joined is closed when a goroutine of this process waits for another's load: as the rivals do it, or, as Freshet may,
// in a way of which its stack does not tell, after shared.
func joined(t *testing.T) <-chan struct{} {
	t.Helper()
	found := make(chan struct{})
	go func() {
		defer close(found)
		stacks := make([]byte, 4<<20)
		tick := time.NewTicker(5 * time.Millisecond)
		defer tick.Stop()
		over := time.After(shared)
		for {
			for stack := range strings.SplitSeq(string(stacks[:runtime.Stack(stacks, true)]), "\n\n") {
				if strings.Contains(stack, "singleflight.(*Group).Do(") && strings.Contains(stack, "sync.(*WaitGroup).Wait(") {
					return
				}
			}
			select {
			case <-tick.C:
			case <-over:
				return
			case <-t.Context().Done():
				return
			}
		}
	}()
	return found
}

// shared is after how long a read that has caused no load is taken to wait for one that is under way.
const shared = time.Second

// lost: both have the row; one changes it while its way to Redis is cut, and heals.
func lost(t *testing.T, s *site) (got, wrote uint64) {
	t.Helper()
	var proxies []*devstack.Proxy
	one := s.replica(t, func(at *verify.Endpoints) {
		at.RedisDial = map[string]string{}
		for _, addr := range stacktest.Stack().Redis.Addrs() {
			p, err := devstack.NewProxy(addr)
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(p.Close)
			proxies = append(proxies, p)
			at.RedisDial[addr] = p.Addr()
		}
	})
	two := s.replica(t, nil)
	for _, r := range []replica{one, two} {
		if op := r.get(key); op != key {
			t.Fatalf("row %d has the op %d", key, op)
		}
	}
	for _, p := range proxies {
		p.Cut()
	}
	wrote = one.write(verify.Change{Kind: verify.Set, Key: key, Group: 1})
	for _, p := range proxies {
		p.Heal()
	}
	return lasting(two, wrote), wrote
}

// outside: a replica has the row; another service changes it in SQL.
func outside(t *testing.T, s *site) (got, wrote uint64) {
	t.Helper()
	one := s.replica(t, nil)
	if op := one.get(key); op != key {
		t.Fatalf("row %d has the op %d", key, op)
	}
	s.ops++
	if _, err := s.db.ExecContext(t.Context(), `update verify_row set op = $1 where id = $2`, s.ops, key); err != nil {
		t.Fatal(err)
	}
	return lasting(one, s.ops), s.ops
}
