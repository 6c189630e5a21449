package l2test

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/freshet-cache/freshet/tiers"
)

// Memory is a shared tier in memory: what all replicas reach. Each of them has a [Link] to it, which
// can fail by itself. It is safe for concurrent use, and has no goroutines.
type Memory struct {
	mu      sync.Mutex
	values  map[string]value // key -> value, leases among them; expired ones stay until they are asked for
	maximum int
}

type value struct {
	bytes   []byte
	expires time.Time
}

// NewMemory makes an empty one, which takes values up to maxValue bytes; 0 = 8 MiB, as L2.
func NewMemory(maxValue int) *Memory {
	return &Memory{values: map[string]value{}, maximum: cmp.Or(maxValue, 8<<20)}
}

// Keys are those that have a value, ascending; leases are among them.
func (m *Memory) Keys() []string {
	m.mu.Lock()
	defer m.mu.Unlock()
	maps.DeleteFunc(m.values, func(_ string, v value) bool { return !time.Now().Before(v.expires) })
	return slices.Sorted(maps.Keys(m.values))
}

// Copy is what the Memory holds now, to be put back by [Memory.Restore].
func (m *Memory) Copy() map[string][]byte {
	m.mu.Lock()
	defer m.mu.Unlock()
	all := make(map[string][]byte, len(m.values))
	for key, v := range m.values {
		all[key] = bytes.Clone(v.bytes)
	}
	return all
}

// Restore replaces all that the Memory holds, as a server that comes back with an old dump: every value
// lives for ttl. Restoring nil empties it.
func (m *Memory) Restore(all map[string][]byte, ttl time.Duration) {
	m.mu.Lock()
	defer m.mu.Unlock()
	clear(m.values)
	for key, b := range all {
		m.set(key, b, ttl)
	}
}

// Link makes a replica's way to the Memory.
func (m *Memory) Link() *Link { return &Link{memory: m, timeout: 50 * time.Millisecond} }

// get returns nil if there is nothing. The caller holds mu.
func (m *Memory) get(key string) []byte {
	v, ok := m.values[key]
	if ok && !time.Now().Before(v.expires) {
		delete(m.values, key)
		ok = false
	}
	if !ok {
		return nil
	}
	return v.bytes
}

// set stores a copy, to the millisecond as Redis does. The caller holds mu.
func (m *Memory) set(key string, b []byte, ttl time.Duration) {
	m.values[key] = value{append([]byte{}, b...), time.Now().Add(ttl.Truncate(time.Millisecond))}
}

// release deletes a lease if the token still holds it. The caller holds mu.
func (m *Memory) release(leaseKey, token string) {
	if held := m.get(leaseKey); held != nil && string(held) == token {
		delete(m.values, leaseKey)
	}
}

// Link is one replica's way to a [Memory]. It implements [tiers.Store] with the errors of [tiers.L2]. A
// call takes the latency, half of it before and half of it after its work, but 50 ms at most.
type Link struct {
	memory  *Memory
	timeout time.Duration

	mu      sync.Mutex
	down    bool
	closed  bool
	fault   error
	latency time.Duration
	calls   int
}

var _ tiers.Store = (*Link)(nil)

// Down makes the Link say [tiers.ErrUnavailable], or end that. While it is down nothing is
// [Link.Available], as behind an open breaker.
func (l *Link) Down(down bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.down = down
}

// Fail makes every call fail with the error, after its work is done, until it is called with nil; the
// Link stays available. The error should wrap [tiers.ErrUnavailable].
func (l *Link) Fail(err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.fault = err
}

// Delay sets the latency of every call. Above 50 ms calls fail, and what they asked for may be done.
func (l *Link) Delay(d time.Duration) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.latency = d
}

// Calls is how many calls were made, also those that failed.
func (l *Link) Calls() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.calls
}

var (
	errDown = fmt.Errorf("%w: it is down", tiers.ErrUnavailable)
	errLate = fmt.Errorf("%w: no answer in time", tiers.ErrUnavailable)
)

// Shards is the Link as [tiers.L2.Shards] shows one, "closed", or "open" while it is down.
func (l *Link) Shards() []tiers.ShardState {
	s := tiers.ShardState{Name: "memory", Slots: "0-16383", State: "closed", Connected: l.Available("")}
	if !s.Connected {
		s.State = "open"
	}
	return []tiers.ShardState{s}
}

// Close makes the Link say [tiers.ErrUnavailable] for ever.
func (l *Link) Close() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.closed = true
}

// call carries out the work within the timeout. After an error the caller does not know whether it was
// done.
func (l *Link) call(ctx context.Context, work func(m *Memory)) error {
	l.mu.Lock()
	l.calls++
	down, fault, latency := l.down || l.closed, l.fault, l.latency
	l.mu.Unlock()
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("%w: the caller gave up: %w", tiers.ErrUnavailable, err)
	}
	if down {
		return errDown
	}
	ctx, cancel := context.WithTimeoutCause(ctx, l.timeout, errLate)
	defer cancel()
	if err := wait(ctx, latency/2); err != nil {
		return err
	}
	l.memory.mu.Lock()
	work(l.memory)
	l.memory.mu.Unlock()
	if err := wait(ctx, latency-latency/2); err != nil {
		return err
	}
	return fault
}

func wait(ctx context.Context, d time.Duration) error {
	if d <= 0 {
		return nil
	}
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
	}
	if cause := context.Cause(ctx); !errors.Is(cause, tiers.ErrUnavailable) {
		return fmt.Errorf("%w: the caller gave up: %w", tiers.ErrUnavailable, cause)
	}
	return errLate
}

// Get implements [tiers.Store].
func (l *Link) Get(ctx context.Context, key string) ([]byte, error) {
	r := l.GetMany(ctx, []string{key})[0]
	return r.Bytes, r.Err
}

// GetMany implements [tiers.Store].
func (l *Link) GetMany(ctx context.Context, keys []string) []tiers.Reply {
	replies := make([]tiers.Reply, len(keys))
	err := l.call(ctx, func(m *Memory) {
		for i, key := range keys {
			if b := m.get(key); b != nil {
				replies[i].Bytes = slices.Clone(b)
			} else {
				replies[i].Err = tiers.ErrMiss
			}
		}
	})
	if err != nil {
		for i := range replies {
			replies[i] = tiers.Reply{Err: err}
		}
	}
	return replies
}

// LeaseMany implements [tiers.Store].
func (l *Link) LeaseMany(ctx context.Context, leases []tiers.LeaseRequest) []tiers.LeaseReply {
	replies := make([]tiers.LeaseReply, len(leases))
	for i, r := range leases {
		switch {
		case r.Token == "":
			replies[i].Err = errors.New("l2test: lease Token is empty")
		case r.TTL < time.Millisecond:
			replies[i].Err = fmt.Errorf("l2test: lease TTL %v", r.TTL)
		}
	}
	err := l.call(ctx, func(m *Memory) {
		for i, r := range leases {
			if replies[i].Err != nil {
				continue
			}
			if m.get(r.LeaseKey) == nil {
				m.set(r.LeaseKey, []byte(r.Token), r.TTL)
				replies[i].Held = true
			}
			replies[i].Value = slices.Clone(m.get(r.Key))
		}
	})
	if err != nil {
		for i := range replies {
			replies[i] = tiers.LeaseReply{Err: cmp.Or(replies[i].Err, err)}
		}
	}
	return replies
}

// Release implements [tiers.Store].
func (l *Link) Release(ctx context.Context, leaseKey, token string) error {
	return l.call(ctx, func(m *Memory) { m.release(leaseKey, token) })
}

// SetMany implements [tiers.Store].
func (l *Link) SetMany(ctx context.Context, fillings []tiers.Filling) []error {
	errs := make([]error, len(fillings))
	for i, f := range fillings {
		switch {
		case len(f.Bytes) > l.memory.maximum:
			errs[i] = fmt.Errorf("l2test: value of %d bytes: %w", len(f.Bytes), tiers.ErrTooLarge)
		case f.TTL < time.Millisecond:
			errs[i] = fmt.Errorf("l2test: TTL %v", f.TTL)
		}
	}
	err := l.call(ctx, func(m *Memory) {
		for i, f := range fillings {
			if errs[i] == nil {
				m.set(f.Key, f.Bytes, f.TTL)
			}
			if f.LeaseKey != "" {
				m.release(f.LeaseKey, f.Token)
			}
		}
	})
	for i := range errs {
		errs[i] = cmp.Or(errs[i], err)
	}
	return errs
}

// Unlink implements [tiers.Store].
func (l *Link) Unlink(ctx context.Context, keys ...string) error {
	return l.call(ctx, func(m *Memory) {
		for _, key := range keys {
			delete(m.values, key)
		}
	})
}

// Available implements [tiers.Store].
func (l *Link) Available(string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return !l.down && !l.closed
}
