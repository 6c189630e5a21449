package sim

import (
	"maps"
	"slices"
	"time"
)

// shards of the simulated Redis.
const shards = 2

// redis models a Redis Cluster of two primaries, each with a replica that is behind by some commands.
type redis struct {
	values map[string]stored
	// undo is what the last commands replaced, the latest last: a failover takes some of them back.
	undo []replaced
	dump map[string]stored // a state of long ago
}

type stored struct {
	text    string
	expires time.Duration
}

type replaced struct {
	key  string
	was  stored
	held bool
}

// maxUndo bounds the commands that a failover can lose.
const maxUndo = 32

func newRedis() *redis { return &redis{values: map[string]stored{}} }

// shardOf is the shard of a key; a lease has its value's.
func shardOf(key string) int {
	const lease = ":lease"
	if len(key) > len(lease) && key[len(key)-len(lease):] == lease {
		key = key[:len(key)-len(lease)]
	}
	return int(mixText(1, key) % shards)
}

func (r *redis) get(now time.Duration, key string) (text string, ok bool) {
	v, ok := r.values[key]
	if ok && now >= v.expires {
		delete(r.values, key)
		return "", false
	}
	return v.text, ok
}

func (r *redis) remember(key string) {
	was, held := r.values[key]
	if len(r.undo) == maxUndo {
		r.undo = slices.Delete(r.undo, 0, 1)
	}
	r.undo = append(r.undo, replaced{key, was, held})
}

func (r *redis) set(now time.Duration, key, text string, ttl time.Duration) {
	r.remember(key)
	r.values[key] = stored{text, now + ttl}
}

func (r *redis) unlink(key string) {
	if _, ok := r.values[key]; ok {
		r.remember(key)
		delete(r.values, key)
	}
}

// failover takes back the last n writes.
func (r *redis) failover(n int) {
	for ; n > 0 && len(r.undo) > 0; n-- {
		last := r.undo[len(r.undo)-1]
		r.undo = r.undo[:len(r.undo)-1]
		if last.held {
			r.values[last.key] = last.was
		} else {
			delete(r.values, last.key)
		}
	}
}

// save keeps the present state for [redis.restore].
func (r *redis) save() { r.dump = maps.Clone(r.values) }

// restore comes back with the saved state.
func (r *redis) restore() {
	if r.dump != nil {
		r.values, r.undo = maps.Clone(r.dump), nil
	}
}

func (r *redis) flush() {
	clear(r.values)
	r.undo = nil
}

// evict loses the values of one key in n.
func (r *redis) evict(d draw, n int) {
	for key := range r.values {
		if mixText(d.state, key)%uint64(max(n, 1)) == 0 {
			delete(r.values, key)
		}
	}
}
