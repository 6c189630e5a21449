package model

import (
	"maps"
	"slices"
	"time"

	"github.com/freshet-cache/freshet/cluster"
)

// Redis is a Redis Cluster of some primaries with one replica each, and slots in equal parts. Times are
// since any zero, and count in whole milliseconds as Redis counts them. No method takes time back.
type Redis struct {
	shards []shard
	first  []uint16 // shard -> its first slot
}

// shard is a primary, and what its replica lacks.
type shard struct {
	entries map[string]entry
	// behind undoes the commands that the replica has not got, the oldest first.
	behind []undo
}

// entry is a string with its end: it is there up to that millisecond. 0 = it has no end.
type entry struct {
	value string
	ends  int64
}

// undo is what one command replaced.
type undo struct {
	key string
	was entry
	had bool
	// all is the whole shard before a flush; nil = the command was about key.
	all map[string]entry
}

// maxBehind bounds the commands that a replica lacks; above it the oldest arrives by itself.
const maxBehind = 1 << 10

// NewRedis makes an empty cluster of so many primaries, from 1 to 1000.
func NewRedis(primaries int) *Redis {
	r := &Redis{shards: make([]shard, primaries), first: make([]uint16, primaries)}
	for i := range r.shards {
		r.shards[i].entries = map[string]entry{}
		r.first[i] = uint16(i * cluster.Slots / primaries)
	}
	return r
}

// Shards is how many primaries there are.
func (r *Redis) Shards() int { return len(r.shards) }

// Shard is the number of the primary that serves the key, from 0.
func (r *Redis) Shard(key string) int {
	i, found := slices.BinarySearch(r.first, cluster.Slot(key))
	if !found {
		i--
	}
	return i
}

func (r *Redis) of(key string) *shard { return &r.shards[r.Shard(key)] }

// Get is GET.
func (r *Redis) Get(now time.Duration, key string) (value string, ok bool) {
	e, ok := r.of(key).live(now, key)
	return e.value, ok
}

// TTL is PTTL: how long the key stays. 0 = there is none, or it has no end.
func (r *Redis) TTL(now time.Duration, key string) time.Duration {
	e, _ := r.of(key).live(now, key)
	if e.ends == 0 {
		return 0
	}
	return time.Duration(e.ends-now.Milliseconds()) * time.Millisecond
}

// Set is SET with PX, of a value.
func (r *Redis) Set(now time.Duration, key, value string, ttl time.Duration) {
	r.of(key).put(key, entry{value, now.Milliseconds() + ttl.Milliseconds()})
}

// Lease is SET with NX and PX, of a lease's token, and reports whether it was taken.
func (r *Redis) Lease(now time.Duration, key, token string, ttl time.Duration) bool {
	s := r.of(key)
	if _, held := s.live(now, key); held {
		return false
	}
	s.put(key, entry{token, now.Milliseconds() + ttl.Milliseconds()})
	return true
}

// Release is the script that deletes a lease if the token holds it, and reports whether it did.
func (r *Redis) Release(now time.Duration, key, token string) bool {
	s := r.of(key)
	if e, held := s.live(now, key); !held || e.value != token {
		return false
	}
	s.remove(key)
	return true
}

// Unlink is UNLINK, and reports whether there was the key.
func (r *Redis) Unlink(now time.Duration, key string) bool {
	s := r.of(key)
	_, there := s.live(now, key)
	if there {
		s.remove(key)
	}
	return there
}

// Evict drops the key for want of memory, if it is there.
func (r *Redis) Evict(key string) bool {
	s := r.of(key)
	_, there := s.entries[key]
	if there {
		s.remove(key)
	}
	return there
}

// Keys are the keys of a shard that are there, in order.
func (r *Redis) Keys(now time.Duration, shard int) []string {
	var keys []string
	for key, e := range r.shards[shard].entries {
		if !e.over(now) {
			keys = append(keys, key)
		}
	}
	slices.Sort(keys)
	return keys
}

// Flush is FLUSHALL on one shard.
func (r *Redis) Flush(shard int) {
	s := &r.shards[shard]
	s.note(undo{all: s.entries})
	s.entries = map[string]entry{}
}

// Behind is how many commands the shard's replica lacks.
func (r *Redis) Behind(shard int) int { return len(r.shards[shard].behind) }

// Replicate gives the shard's replica the next n commands that it lacks.
func (r *Redis) Replicate(shard, n int) {
	s := &r.shards[shard]
	s.behind = slices.Delete(s.behind, 0, min(n, len(s.behind)))
}

// Failover makes the shard's replica its primary: what it lacks is lost. It returns how many commands
// that was. The new replica lacks nothing.
func (r *Redis) Failover(shard int) (lost int) {
	s := &r.shards[shard]
	for _, u := range slices.Backward(s.behind) {
		switch {
		case u.all != nil:
			s.entries = u.all
		case u.had:
			s.entries[u.key] = u.was
		default:
			delete(s.entries, u.key)
		}
	}
	lost = len(s.behind)
	s.behind = nil
	return lost
}

// RedisDump is what a primary wrote to disk.
type RedisDump map[string]entry

// Save is the shard's present state.
func (r *Redis) Save(shard int) RedisDump { return maps.Clone(r.shards[shard].entries) }

// Restart brings the shard's primary back with the dump, an empty one for nil, before its replica takes
// over; the replica copies it.
func (r *Redis) Restart(shard int, dump RedisDump) {
	s := &r.shards[shard]
	s.entries, s.behind = map[string]entry{}, nil
	maps.Copy(s.entries, dump)
}

func (e entry) over(now time.Duration) bool { return e.ends != 0 && now.Milliseconds() > e.ends }

// live is the entry if it is there. One whose time is over is deleted now, for the replica too.
func (s *shard) live(now time.Duration, key string) (entry, bool) {
	e, there := s.entries[key]
	if there && e.over(now) {
		s.remove(key)
		return entry{}, false
	}
	return e, there
}

func (s *shard) put(key string, e entry) {
	was, had := s.entries[key]
	s.note(undo{key: key, was: was, had: had})
	s.entries[key] = e
}

func (s *shard) remove(key string) {
	s.note(undo{key: key, was: s.entries[key], had: true})
	delete(s.entries, key)
}

func (s *shard) note(u undo) {
	if len(s.behind) == maxBehind {
		s.behind = slices.Delete(s.behind, 0, 1)
	}
	s.behind = append(s.behind, u)
}
