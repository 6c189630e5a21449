package tiers

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/redis/rueidis"

	"github.com/freshet-cache/freshet/cluster"
)

// A lease is the right to load one key, for all replicas: a Redis key beside the value's (same slot)
// that holds the holder's random token until it is released or its time is over. It saves loads and
// promises nothing: a failover may grant it twice.

// LeaseReply says who may load: this caller if Held. Value is what is under the key, nil if nothing
// is; whoever holds the lease and gets a value should release it.
type LeaseReply struct {
	Held  bool
	Value []byte
	// Err is ErrUnavailable, or names the argument that is wrong. Then nothing is known, and a lease may
	// have been taken until its time is over.
	Err error
}

// LeaseRequest asks for the lease of a key.
type LeaseRequest struct {
	Key      string        // the value's key
	LeaseKey string        // the lease's: [cluster.Lease] of Key
	Token    string        // who asks: random, new for each load; required
	TTL      time.Duration // how long the lease holds if it is not released; at least a millisecond
}

func (r LeaseRequest) validate() error {
	switch {
	case r.Token == "":
		return errors.New("tiers: lease Token is empty, want a random one")
	case r.TTL < time.Millisecond:
		return fmt.Errorf("tiers: lease TTL %v, want at least 1ms", r.TTL)
	}
	return nil
}

// Lease takes the lease of a key if it is free and reads the key, in one round trip.
func (l *L2) Lease(ctx context.Context, r LeaseRequest) LeaseReply {
	return l.LeaseMany(ctx, []LeaseRequest{r})[0]
}

// LeaseMany is [L2.Lease] for many keys, in their order, as [L2.GetMany] is for Get.
func (l *L2) LeaseMany(ctx context.Context, leases []LeaseRequest) []LeaseReply {
	replies := make([]LeaseReply, len(leases))
	reqs := make([]request, 0, 2*len(leases))
	for i, r := range leases {
		if replies[i].Err = r.validate(); replies[i].Err != nil {
			continue
		}
		reqs = append(reqs, request{command: "SET", slot: cluster.Slot(r.LeaseKey), build: func(b rueidis.Builder) rueidis.Completed {
			return b.Set().Key(r.LeaseKey).Value(r.Token).Nx().PxMilliseconds(r.TTL.Milliseconds()).Build()
		}}, getRequest(r.Key))
	}
	l.do(ctx, reqs)
	for i := range replies {
		if replies[i].Err == nil {
			replies[i] = leaseReply(&reqs[0], &reqs[1])
			reqs = reqs[2:]
		}
	}
	return replies
}

func leaseReply(set, get *request) LeaseReply {
	value, err := get.value()
	if errors.Is(err, ErrMiss) {
		err = nil
	}
	if err != nil {
		return LeaseReply{Err: err}
	}
	// SET NX answers OK to one and nil to the others.
	if err := set.failure(); err != nil && value == nil {
		return LeaseReply{Err: err}
	}
	return LeaseReply{Held: set.err == nil && set.reply.Error() == nil, Value: value}
}

// Filling is a value to store, with the lease that its load held.
type Filling struct {
	Key   string
	Bytes []byte        // must not be changed any more, see Set
	TTL   time.Duration // at least a millisecond
	// LeaseKey and Token name the lease to release; empty = none.
	LeaseKey, Token string
}

// Fill stores a value as [L2.Set] does and then releases the lease of its load, in one round trip. A
// lease that another has taken meanwhile is left alone, and one's own is released also when the value is
// refused. The error is about the value only.
func (l *L2) Fill(ctx context.Context, f Filling) error {
	return l.SetMany(ctx, []Filling{f})[0]
}

// SetMany is [L2.Fill] for many values, in their order, as [L2.GetMany] is for Get.
func (l *L2) SetMany(ctx context.Context, fillings []Filling) []error {
	errs := make([]error, len(fillings))
	sets := make([]int, len(fillings)) // filling -> its SET among reqs
	reqs := make([]request, 0, 2*len(fillings))
	for i, f := range fillings {
		if errs[i] = f.validate(l.config.maxValue()); errs[i] == nil {
			sets[i] = len(reqs)
			reqs = append(reqs, request{command: "SET", slot: cluster.Slot(f.Key), build: func(b rueidis.Builder) rueidis.Completed {
				return b.Set().Key(f.Key).Value(rueidis.BinaryString(f.Bytes)).PxMilliseconds(f.TTL.Milliseconds()).Build()
			}})
		}
		if f.LeaseKey != "" {
			reqs = append(reqs, releaseRequest(f.LeaseKey, f.Token))
		}
	}
	l.do(ctx, reqs)
	for i := range errs {
		if errs[i] == nil {
			errs[i] = reqs[sets[i]].failure()
		}
	}
	return errs
}

func (f Filling) validate(maxValue int) error {
	switch {
	case len(f.Bytes) > maxValue:
		return fmt.Errorf("tiers: value of %d bytes under %.100q, L2 takes %d: %w", len(f.Bytes), f.Key, maxValue, ErrTooLarge)
	case f.TTL < time.Millisecond:
		return fmt.Errorf("tiers: TTL %v of %.100q, want at least 1ms", f.TTL, f.Key)
	}
	return nil
}

// Release gives up a lease if token still holds it, and does nothing otherwise.
func (l *L2) Release(ctx context.Context, leaseKey, token string) error {
	reqs := []request{releaseRequest(leaseKey, token)}
	l.do(ctx, reqs)
	return reqs[0].failure()
}

// release deletes KEYS[1] if it holds ARGV[1]: comparing and deleting must be one step, else a holder
// whose time ran out between the two would delete the lease of the next.
const release = `if redis.call("get",KEYS[1])==ARGV[1] then return redis.call("del",KEYS[1]) end return 0`

func releaseRequest(leaseKey, token string) request {
	return request{command: "EVAL", slot: cluster.Slot(leaseKey), build: func(b rueidis.Builder) rueidis.Completed {
		return b.Eval().Script(release).Numkeys(1).Key(leaseKey).Arg(token).Build()
	}}
}
