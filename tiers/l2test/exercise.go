package l2test

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/freshet-cache/freshet/cluster"
	"github.com/freshet-cache/freshet/tiers"
)

// Site is a Store with what a test must be able to do to it. Each Store of one Site is another
// replica's.
type Site struct {
	// Open makes a replica's Store, ready for every key; whoever made the Site closes it.
	Open func(t *testing.T) tiers.Store
	// MaxValue is the largest value that it takes, in bytes.
	MaxValue int
	// Outage makes the Store unable to serve any key, and returns when it knows.
	Outage func(t *testing.T, s tiers.Store)
}

// Exercise checks what [tiers.Store] promises. open makes a Site, whose keys may be shared with others.
func Exercise(t *testing.T, open func(t *testing.T) Site) {
	t.Helper()
	for name, check := range map[string]func(*replicas){
		"Values":         values,
		"Expiry":         expiry,
		"Refused":        refused,
		"Many":           many,
		"Lease":          lease,
		"LeaseExpires":   leaseExpires,
		"LeaseOfAnother": leaseOfAnother,
		"LeaseRefused":   leaseRefused,
		"OneHolder":      oneHolder,
		"Unlink":         unlink,
		"CallerGone":     callerGone,
		"Outage":         outage,
	} {
		t.Run(name, func(t *testing.T) {
			s := open(t)
			check(&replicas{t: t, site: s, a: s.Open(t), b: s.Open(t)})
		})
	}
}

// replicas are two of one Site.
type replicas struct {
	t    *testing.T
	site Site
	a, b tiers.Store
}

func (r *replicas) key() string { return "l2test:v1:{n:" + rand.Text() + "}:v" }

func (r *replicas) set(s tiers.Store, key, text string, ttl time.Duration) {
	r.t.Helper()
	if err := s.SetMany(r.t.Context(), []tiers.Filling{{Key: key, Bytes: []byte(text), TTL: ttl}})[0]; err != nil {
		r.t.Fatalf("set: %v", err)
	}
}

// holds checks that there is such a value under the key; "" = none.
func (r *replicas) holds(s tiers.Store, key, want string) {
	r.t.Helper()
	b, err := s.Get(r.t.Context(), key)
	switch {
	case want == "" && !errors.Is(err, tiers.ErrMiss):
		r.t.Errorf("got %q, %v; want a miss", b, err)
	case want != "" && (err != nil || string(b) != want):
		r.t.Errorf("got %q, %v; want %q", b, err, want)
	}
}

func (r *replicas) lease(s tiers.Store, key, token string, ttl time.Duration) tiers.LeaseReply {
	return s.LeaseMany(r.t.Context(), []tiers.LeaseRequest{{Key: key, LeaseKey: cluster.Lease(key), Token: token, TTL: ttl}})[0]
}

// gets checks what came of asking for a lease.
func (r *replicas) gets(got tiers.LeaseReply, held bool, value string) {
	r.t.Helper()
	if got.Err != nil || got.Held != held || string(got.Value) != value || (value == "" && got.Value != nil) {
		r.t.Errorf("lease: %+v; want held %t, value %q", got, held, value)
	}
}

// eventually waits for what a time to live brings about.
func (r *replicas) eventually(what string, holds func() bool) {
	r.t.Helper()
	ticker := time.NewTicker(5 * time.Millisecond)
	defer ticker.Stop()
	limit := time.After(20 * time.Second)
	for !holds() {
		select {
		case <-ticker.C:
		case <-limit:
			r.t.Fatalf("waited in vain: %s", what)
		}
	}
}

func values(r *replicas) {
	key := r.key()
	r.holds(r.a, key, "")
	r.set(r.a, key, "one", time.Minute)
	r.holds(r.b, key, "one")
	r.set(r.b, key, "two\x00\xff", time.Minute)
	r.holds(r.a, key, "two\x00\xff")
	b, err := r.a.Get(r.t.Context(), key)
	if err != nil {
		r.t.Fatal(err)
	}
	clear(b) // is the caller's
	empty := r.key()
	r.set(r.a, empty, "", time.Minute)
	if b, err := r.b.Get(r.t.Context(), empty); err != nil || len(b) != 0 {
		r.t.Errorf("an empty value is %q, %v", b, err)
	}
	r.holds(r.a, key, "two\x00\xff")
	if !r.a.Available(key) {
		r.t.Error("it is not available")
	}
}

func expiry(r *replicas) {
	key, other := r.key(), r.key()
	r.set(r.a, other, "stays", time.Minute)
	r.set(r.a, key, "goes", 50*time.Millisecond)
	r.eventually("the value expires", func() bool {
		_, err := r.b.Get(r.t.Context(), key)
		return errors.Is(err, tiers.ErrMiss)
	})
	r.holds(r.b, other, "stays")
	r.set(r.a, key, "again", 50*time.Millisecond)
	r.set(r.a, key, "longer", time.Minute) // the last time to live counts
	began := time.Now()
	r.eventually("the first time to live is over", func() bool { return time.Since(began) > 60*time.Millisecond })
	r.holds(r.a, key, "longer")
}

func refused(r *replicas) {
	large, short, good := r.key(), r.key(), r.key()
	leaseKey := cluster.Lease(large)
	r.gets(r.lease(r.a, large, "t", time.Minute), true, "")
	errs := r.a.SetMany(r.t.Context(), []tiers.Filling{
		{Key: large, Bytes: make([]byte, r.site.MaxValue+1), TTL: time.Minute, LeaseKey: leaseKey, Token: "t"},
		{Key: short, Bytes: []byte("x"), TTL: time.Microsecond},
		{Key: good, Bytes: bytes.Repeat([]byte("x"), r.site.MaxValue), TTL: time.Minute},
	})
	if !errors.Is(errs[0], tiers.ErrTooLarge) || errs[1] == nil || errors.Is(errs[1], tiers.ErrUnavailable) || errs[2] != nil {
		r.t.Errorf("%v", errs)
	}
	r.holds(r.a, large, "")
	r.holds(r.a, short, "")
	r.holds(r.a, good, strings.Repeat("x", r.site.MaxValue))
	// One's own lease is released also when the value is refused.
	r.gets(r.lease(r.b, large, "next", time.Minute), true, "")
}

func many(r *replicas) {
	const n = 250 // of every shard, and more than one pipeline
	keys, fillings := make([]string, n), make([]tiers.Filling, 0, n)
	for i := range keys {
		keys[i] = r.key()
		if i%3 != 0 {
			fillings = append(fillings, tiers.Filling{Key: keys[i], Bytes: fmt.Append(nil, i), TTL: time.Minute})
		}
	}
	for _, err := range r.a.SetMany(r.t.Context(), fillings) {
		if err != nil {
			r.t.Fatal(err)
		}
	}
	for i, reply := range r.b.GetMany(r.t.Context(), keys) {
		if i%3 == 0 {
			if !errors.Is(reply.Err, tiers.ErrMiss) {
				r.t.Errorf("%d: %+v, want a miss", i, reply)
			}
		} else if reply.Err != nil || string(reply.Bytes) != fmt.Sprint(i) {
			r.t.Errorf("%d: %q, %v", i, reply.Bytes, reply.Err)
		}
	}
	leases := make([]tiers.LeaseRequest, n)
	for i, key := range keys {
		leases[i] = tiers.LeaseRequest{Key: key, LeaseKey: cluster.Lease(key), Token: "t", TTL: time.Minute}
	}
	for i, reply := range r.b.LeaseMany(r.t.Context(), leases) {
		want := fmt.Sprint(i)
		if i%3 == 0 {
			want = ""
		}
		r.gets(reply, true, want)
	}
	if got := len(r.a.GetMany(r.t.Context(), nil)) + len(r.a.SetMany(r.t.Context(), nil)) + len(r.a.LeaseMany(r.t.Context(), nil)); got != 0 {
		r.t.Errorf("%d replies to nothing", got)
	}
}

func lease(r *replicas) {
	key := r.key()
	r.gets(r.lease(r.a, key, "first", time.Minute), true, "")
	r.gets(r.lease(r.b, key, "second", time.Minute), false, "")
	r.gets(r.lease(r.a, key, "first", time.Minute), false, "") // one load asks once
	fill := tiers.Filling{Key: key, Bytes: []byte("v"), TTL: time.Minute, LeaseKey: cluster.Lease(key), Token: "first"}
	if err := r.a.SetMany(r.t.Context(), []tiers.Filling{fill})[0]; err != nil {
		r.t.Fatal(err)
	}
	// Whoever comes next has both, the value and the lease, and gives it back.
	r.gets(r.lease(r.b, key, "third", time.Minute), true, "v")
	if err := r.b.Release(r.t.Context(), cluster.Lease(key), "third"); err != nil {
		r.t.Fatal(err)
	}
	r.gets(r.lease(r.a, key, "fourth", time.Minute), true, "v")
}

func leaseExpires(r *replicas) {
	key := r.key()
	r.gets(r.lease(r.a, key, "dead", 50*time.Millisecond), true, "")
	r.eventually("the lease of a holder that is gone ends", func() bool { return r.lease(r.b, key, "next", time.Minute).Held })
	// The old holder wakes up: what it does is not taken for the next one's.
	fill := tiers.Filling{Key: key, Bytes: []byte("late"), TTL: time.Minute, LeaseKey: cluster.Lease(key), Token: "dead"}
	if err := r.a.SetMany(r.t.Context(), []tiers.Filling{fill})[0]; err != nil {
		r.t.Fatal(err)
	}
	r.gets(r.lease(r.a, key, "third", time.Minute), false, "late")
}

func leaseOfAnother(r *replicas) {
	key := r.key()
	r.gets(r.lease(r.a, key, "own", time.Minute), true, "")
	for _, token := range []string{"other", "", "ow"} {
		if err := r.b.Release(r.t.Context(), cluster.Lease(key), token); err != nil {
			r.t.Fatal(err)
		}
	}
	r.gets(r.lease(r.b, key, "next", time.Minute), false, "")
	if err := r.a.Release(r.t.Context(), cluster.Lease(key), "own"); err != nil {
		r.t.Fatal(err)
	}
	if err := r.a.Release(r.t.Context(), cluster.Lease(key), "own"); err != nil {
		r.t.Errorf("releasing what nobody holds: %v", err)
	}
	r.gets(r.lease(r.b, key, "next", time.Minute), true, "")
}

func leaseRefused(r *replicas) {
	key, good := r.key(), r.key()
	replies := r.a.LeaseMany(r.t.Context(), []tiers.LeaseRequest{
		{Key: key, LeaseKey: cluster.Lease(key), TTL: time.Minute},
		{Key: good, LeaseKey: cluster.Lease(good), Token: "t", TTL: time.Minute},
		{Key: key, LeaseKey: cluster.Lease(key), Token: "t", TTL: time.Microsecond},
	})
	for _, reply := range []tiers.LeaseReply{replies[0], replies[2]} {
		if reply.Err == nil || errors.Is(reply.Err, tiers.ErrUnavailable) || reply.Held {
			r.t.Errorf("a request without a token or time: %+v", reply)
		}
	}
	r.gets(replies[1], true, "")
	r.gets(r.lease(r.b, key, "t", time.Minute), true, "")
}

func oneHolder(r *replicas) {
	for range 20 {
		key := r.key()
		var holders atomic.Int32
		var all sync.WaitGroup
		for i := range 16 {
			all.Go(func() {
				if r.lease([]tiers.Store{r.a, r.b}[i%2], key, rand.Text(), time.Minute).Held {
					holders.Add(1)
				}
			})
		}
		all.Wait()
		if n := holders.Load(); n != 1 {
			r.t.Fatalf("%d of 16 hold the lease", n)
		}
	}
}

func unlink(r *replicas) {
	one, other, none := r.key(), r.key(), r.key()
	r.set(r.a, one, "1", time.Minute)
	r.set(r.a, other, "2", time.Minute)
	if err := r.b.Unlink(r.t.Context(), one, none); err != nil {
		r.t.Error(err)
	}
	r.holds(r.a, one, "")
	r.holds(r.a, other, "2")
	if err := r.b.Unlink(r.t.Context()); err != nil {
		r.t.Errorf("nothing to unlink: %v", err)
	}
}

// unavailable checks that no call for the key gets an answer.
func (r *replicas) unavailable(ctx context.Context, s tiers.Store, key string) {
	r.t.Helper()
	_, err := s.Get(ctx, key)
	filling := tiers.Filling{Key: key, Bytes: []byte("x"), TTL: time.Minute}
	reply := s.LeaseMany(ctx, []tiers.LeaseRequest{{Key: key, LeaseKey: cluster.Lease(key), Token: "t", TTL: time.Minute}})[0]
	for what, err := range map[string]error{
		"get": err, "get many": s.GetMany(ctx, []string{key})[0].Err, "lease": reply.Err,
		"release": s.Release(ctx, cluster.Lease(key), "t"), "set": s.SetMany(ctx, []tiers.Filling{filling})[0], "unlink": s.Unlink(ctx, key),
	} {
		if !errors.Is(err, tiers.ErrUnavailable) || errors.Is(err, tiers.ErrMiss) {
			r.t.Errorf("%s: %v, want that it is not available", what, err)
		}
	}
	if reply.Held || reply.Value != nil {
		r.t.Errorf("lease: %+v", reply)
	}
}

func callerGone(r *replicas) {
	key := r.key()
	ctx, cancel := context.WithCancel(r.t.Context())
	cancel()
	r.unavailable(ctx, r.a, key)
	if _, err := r.a.Get(ctx, key); !errors.Is(err, context.Canceled) {
		r.t.Errorf("%v does not say that the caller gave up", err)
	}
	r.holds(r.a, key, "")
	if !r.a.Available(key) {
		r.t.Error("a caller that gave up makes it unavailable")
	}
}

func outage(r *replicas) {
	key := r.key()
	r.set(r.a, key, "v", time.Minute)
	r.site.Outage(r.t, r.a)
	if r.a.Available(key) {
		r.t.Error("it seems available")
	}
	r.unavailable(r.t.Context(), r.a, key)
	r.holds(r.b, key, "v") // of the others' way to it nothing is known
}
