package tiers

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"time"

	"github.com/lib/pq"

	"github.com/freshet-cache/freshet/cluster"
	"github.com/freshet-cache/freshet/coherence"
)

// underLease loads what this replica gets the lease for, and lands the rest with what other replicas
// load meanwhile. alone needs no lease and is loaded with the first.
func (c *Cache[V]) underLease(ctx context.Context, batch, alone []*flight[V]) {
	asking, span := c.spans.Lease(ctx, len(batch))
	defer span.End("")
	patience := c.Tracker.Now().Add(c.LeaseWait)
	token := rand.Text() // of this load, not of this process: what an old holder does must not pass for a new one's
	for pause := 500 * time.Microsecond; ; pause = min(pause*3/2, 16*time.Millisecond) {
		last := ctx.Err() != nil || c.Tracker.Now() >= patience
		var others []*flight[V]
		load := alone
		alone = nil
		for i, reply := range c.L2.LeaseMany(asking, c.leasesOf(batch, token)) {
			f := batch[i]
			if reply.Held {
				f.lease = token
			}
			switch {
			case reply.Value != nil && c.landEntry(f, reply.Value, TierL2):
				f.course.lease.note(StepWaited)
				c.release(ctx, f)
			case reply.Held:
				f.course.lease.note(StepHeld)
				load = append(load, f)
			case reply.Err != nil:
				f.course.lease.note(StepSilent)
				load = append(load, f)
			default:
				others = append(others, f)
			}
		}
		if len(others) == 0 {
			span.End("") // the wait is over
		}
		if len(load) > 0 {
			c.load(ctx, load)
		}
		batch = others
		if len(batch) == 0 {
			return
		}
		if last {
			break
		}
		select {
		case <-ctx.Done():
		case <-time.After(pause):
		}
	}
	// The holder takes long, or died. What it loads is good for others; these readers have waited enough.
	c.counts.cutThru.Add(uint64(len(batch)))
	for _, f := range batch {
		f.course.lease.note(StepCutThrough)
	}
	span.Outcome("cut-through")
	span.End("")
	c.load(ctx, batch)
}

// release gives up the lease that the flight holds, if it does.
func (c *Cache[V]) release(ctx context.Context, f *flight[V]) {
	if f.lease == "" {
		return
	}
	// If this fails, the lease ends by itself.
	_ = c.L2.Release(context.WithoutCancel(ctx), cluster.Lease(f.key), f.lease)
	f.lease = ""
}

// fromOwners lands what the owner replicas answer and returns the rest.
func (c *Cache[V]) fromOwners(ctx context.Context, batch []*flight[V]) []*flight[V] {
	if c.Peers == nil {
		return batch
	}
	ctx, cancel := context.WithTimeout(ctx, c.PeerWait) // for all together: an owner may hang
	defer cancel()
	landed := make([]bool, len(batch))
	var next atomic.Int64
	ask := func() {
		for i := int(next.Add(1)) - 1; i < len(batch); i = int(next.Add(1)) - 1 {
			f := batch[i]
			b, err := c.Peers.Fetch(ctx, c.config.Namespace, c.config.View, f.id)
			switch {
			case err == nil:
				landed[i] = c.landEntry(f, b, TierOwner)
			case errors.Is(err, ErrNoOwner):
				f.course.owner.note(StepHere)
			default:
				f.course.owner.note(StepSilent)
			}
		}
	}
	var others sync.WaitGroup
	for range min(len(batch), maxQuestions) - 1 {
		others.Go(ask)
	}
	ask()
	others.Wait()
	var rest []*flight[V]
	for i, f := range batch {
		if !landed[i] {
			rest = append(rest, f)
		}
	}
	return rest
}

// maxQuestions bounds the questions to owners that one flight has under way.
const maxQuestions = 16

// load lands the flights with what the source has, and shares it.
func (c *Cache[V]) load(ctx context.Context, batch []*flight[V]) {
	defer func() {
		for _, f := range batch {
			c.release(ctx, f)
		}
	}()
	began, loaded, err := c.ask(ctx, idsOf(batch))
	if err != nil && len(batch) > 1 && ofOneID(err) {
		for _, f := range batch {
			c.load(ctx, []*flight[V]{f})
		}
		return
	}
	if err != nil {
		c.counts.classes[ClassOf(err)].Add(1)
		if began.order != 0 { // else the bulkhead let nobody ask
			c.counts.loadErrs.Add(uint64(len(batch)))
		}
		failed := StepFailed
		if errors.Is(err, ErrOverloaded) {
			failed = StepOverloaded
		}
		for _, f := range batch {
			f.course.source.note(failed)
			c.land(f, nil, err)
		}
		return
	}
	cost := c.Tracker.Now().Sub(began.at)
	var fillings []Filling
	for _, f := range batch {
		it := c.loadedItem(f, loaded, began, cost)
		brought := StepFound
		if it.absent {
			brought = StepNothing
		}
		f.course.source.note(brought)
		keep := it.snapshot.Timeline != 0 && c.revalidate(it)
		e, err := c.encode(f.key, it)
		if err != nil {
			c.cannotKeep(err)
			keep = false
		}
		it.version, it.size = e.version, sizeOf(f.id, e.payload)
		if keep {
			c.l1.put(f.id, it)
		}
		c.land(f, it, nil)
		if keep && c.L2 != nil && c.L2.Available(f.key) {
			filling := Filling{Key: f.key, Bytes: e.bytes, TTL: it.ttl}
			if f.lease != "" {
				filling.LeaseKey, filling.Token = cluster.Lease(f.key), f.lease
				f.lease = ""
			}
			fillings = append(fillings, filling)
		}
	}
	if len(fillings) == 0 {
		return
	}
	// Best effort, bounded by L2's own time-out; the readers have their answer.
	for _, err := range c.L2.SetMany(context.WithoutCancel(ctx), fillings) {
		if err != nil {
			c.countUnfilled(err)
		} else {
			c.counts.fills.Add(1)
		}
	}
}

// ofOneID reports whether one id of a batch may have spoilt it for the others: Postgres could not read
// one as the type of its column, say, or its row does not fit V.
func ofOneID(err error) bool {
	var answer *pq.Error
	return errors.Is(err, errRow) || (errors.As(err, &answer) && answer.Code.Class() == "22") // data exception
}

// loadStart is when a load began, on the clock and in the order of reads and loads.
type loadStart struct {
	at    coherence.Instant
	order uint64
}

// ask loads the ids through the bulkhead. A panic of the source is an error of this load only.
func (c *Cache[V]) ask(ctx context.Context, ids []string) (began loadStart, loaded Batch[V], err error) {
	if err := c.Bulkhead.Enter(ctx); err != nil {
		return began, loaded, err
	}
	defer c.Bulkhead.Leave()
	c.counts.loads.Add(uint64(len(ids)))
	began = loadStart{at: c.Tracker.Now(), order: c.order.Add(1)}
	ctx, span := c.spans.Load(ctx, c.config.Namespace, c.config.View, len(ids), c.runsSQL, c.Database)
	defer func() {
		c.counts.loadTimes.Observe(c.Tracker.Now().Sub(began.at))
		endSpan(span, err)
	}()
	defer func() {
		if p := recover(); p != nil {
			c.Logger.Error("tiers: the source panicked", "namespace", c.config.Namespace, "panic", loggablePanic(p), "stack", string(debug.Stack()))
			err = fmt.Errorf("the source panicked: %v", p)
		}
	}()
	loaded, err = c.config.Source.Load(ctx, ids)
	return began, loaded, err
}

func idsOf[V any](batch []*flight[V]) []string {
	ids := make([]string, len(batch))
	for i, f := range batch {
		ids[i] = f.id
	}
	return ids
}

func keysOf[V any](batch []*flight[V]) []string {
	keys := make([]string, len(batch))
	for i, f := range batch {
		keys[i] = f.key
	}
	return keys
}

func (c *Cache[V]) leasesOf(batch []*flight[V], token string) []LeaseRequest {
	leases := make([]LeaseRequest, len(batch))
	for i, f := range batch {
		leases[i] = LeaseRequest{Key: f.key, LeaseKey: cluster.Lease(f.key), Token: token, TTL: c.LeaseTTL}
	}
	return leases
}
