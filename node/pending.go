package node

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// put is one message of the queue: a value for an id, or that there shall be none.
type put struct {
	id     string
	value  []byte // JSON; nil = the id is deleted
	seq    uint64 // its place in the stream
	epoch  int64  // of its place; see freshet.queues
	at     time.Time
	number uint64 // how often it was delivered to a flusher, this time included
}

// pending is what a cache knows of puts that its node may not see in Postgres yet. It holds no more ids than
// the stream holds messages.
type pending[V any] struct {
	name  cacheName
	store Store[V]
	size  atomic.Int64 // of byID; a read looks at it before it takes mu

	mu     sync.RWMutex
	byID   map[string]waiting[V] // id -> its newest put
	ids    map[uint64]string     // place in the stream -> id, of those in byID
	marked int                   // those in byID that are settled

	counts putCounts
}

// waiting is the newest put of an id.
type waiting[V any] struct {
	value   V
	removed bool
	seq     uint64
	at      time.Time
	// settled: it is committed, or given up. It goes when the node has polled since.
	settled bool
}

// putCounts is what a cache's flushers count.
type putCounts struct {
	applied, superseded, dead, retries atomic.Uint64
}

func newPending[V any](name cacheName, store Store[V]) *pending[V] {
	return &pending[V]{name: name, store: store, byID: map[string]waiting[V]{}, ids: map[uint64]string{}}
}

// any reports whether anything is pending, at the price of an atomic load.
func (p *pending[V]) any() bool { return p != nil && p.size.Load() > 0 }

// get is the id's newest pending put.
func (p *pending[V]) get(id string) (waiting[V], bool) {
	p.mu.RLock()
	defer p.mu.RUnlock()
	w, ok := p.byID[id]
	return w, ok
}

// add notes a put that is in the stream, unless a later one of its id is known. A value that is no V is not
// shown: it may be that of a newer build, and is the flushers' to judge.
func (p *pending[V]) add(m put) error {
	w, err := p.read(m)
	if err != nil {
		return err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.enter(m.id, w)
	return nil
}

// addFirst is add before the put was followed, unless it was meanwhile: then it may have come and gone.
func (p *pending[V]) addFirst(m put, followed func() bool) {
	w, err := p.read(m)
	if err != nil {
		return // a V that cannot be read again: the follower says so
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if !followed() {
		p.enter(m.id, w)
	}
}

// read is the put with its value.
func (p *pending[V]) read(m put) (waiting[V], error) {
	w := waiting[V]{removed: m.value == nil, seq: m.seq, at: m.at}
	if !w.removed {
		if err := json.Unmarshal(m.value, &w.value); err != nil {
			return w, fmt.Errorf("decode %T: %w", w.value, err)
		}
	}
	return w, nil
}

// enter puts it in the place of an earlier one. The caller holds mu.
func (p *pending[V]) enter(id string, w waiting[V]) {
	old, there := p.byID[id]
	if there && old.seq >= w.seq {
		return
	}
	if there {
		p.forget(id, old)
	}
	p.byID[id], p.ids[w.seq] = w, id
	p.size.Store(int64(len(p.byID)))
}

// forget takes out an entry. The caller holds mu.
func (p *pending[V]) forget(id string, w waiting[V]) {
	delete(p.byID, id)
	delete(p.ids, w.seq)
	if w.settled {
		p.marked--
	}
	p.size.Store(int64(len(p.byID)))
}

// settle marks the puts at the places as settled.
func (p *pending[V]) settle(places []uint64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, seq := range places {
		if id, ok := p.ids[seq]; ok {
			p.mark(id)
		}
	}
}

// settleIf marks those that the function chooses by their place.
func (p *pending[V]) settleIf(is func(seq uint64) bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for id, w := range p.byID {
		if is(w.seq) {
			p.mark(id)
		}
	}
}

func (p *pending[V]) mark(id string) {
	if w := p.byID[id]; !w.settled {
		w.settled = true
		p.byID[id] = w
		p.marked++
	}
}

// place is a put in the stream.
type place struct {
	id  string
	seq uint64
}

// settled is what is marked.
func (p *pending[V]) settled() []place {
	p.mu.RLock()
	defer p.mu.RUnlock()
	if p.marked == 0 {
		return nil
	}
	places := make([]place, 0, p.marked)
	for id, w := range p.byID {
		if w.settled {
			places = append(places, place{id, w.seq})
		}
	}
	return places
}

// drop takes out the puts, unless later ones of their ids have come.
func (p *pending[V]) drop(places []place) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, at := range places {
		if w, ok := p.byID[at.id]; ok && w.seq == at.seq {
			p.forget(at.id, w)
		}
	}
}

// clear takes out all.
func (p *pending[V]) clear() {
	p.mu.Lock()
	defer p.mu.Unlock()
	clear(p.byID)
	clear(p.ids)
	p.marked = 0
	p.size.Store(0)
}

// oldest is how many puts are pending, and since when the oldest of them.
func (p *pending[V]) oldest() (n int, since time.Time) {
	p.mu.RLock()
	defer p.mu.RUnlock()
	for _, w := range p.byID {
		if since.IsZero() || w.at.Before(since) {
			since = w.at
		}
	}
	return len(p.byID), since
}

func (p *pending[V]) cache() cacheName  { return p.name }
func (p *pending[V]) count() *putCounts { return &p.counts }
func (p *pending[V]) empty() bool       { return p.size.Load() == 0 }

// write has the store write puts of different ids in the transaction.
func (p *pending[V]) write(ctx context.Context, tx *Tx, puts []put) error {
	values := make(map[string]V, len(puts))
	var removed []string
	for _, m := range puts {
		if m.value == nil {
			removed = append(removed, m.id)
			continue
		}
		var v V
		if err := json.Unmarshal(m.value, &v); err != nil {
			return fmt.Errorf("decode %T: %w", v, err)
		}
		values[m.id] = v
	}
	return guarded(func() error {
		if len(values) > 0 {
			if err := p.store.Put(ctx, tx, values); err != nil {
				return err
			}
		}
		if len(removed) > 0 {
			slices.Sort(removed)
			return p.store.Delete(ctx, tx, removed)
		}
		return nil
	})
}

// newest are the latest puts of each id, in the order of the ids.
func newest(puts []put) []put {
	sorted := slices.SortedFunc(slices.Values(puts), func(a, b put) int {
		return cmp.Or(cmp.Compare(a.id, b.id), cmp.Compare(b.seq, a.seq))
	})
	return slices.CompactFunc(sorted, func(a, b put) bool { return a.id == b.id })
}
