package tiers

import (
	"sync"

	"github.com/freshet-cache/freshet/coherence"
)

// OwnWrites remembers what this replica has written and when, so that not even a STALE answer lacks
// it: what is FRESH the directory keeps right. The zero value is ready; it is safe for concurrent use.
type OwnWrites struct {
	mu    sync.Mutex
	at    map[coherence.ScopeHash]coherence.Instant // scope -> when its last write was acknowledged
	floor coherence.Instant                         // stands in for those that found no room
}

// maxOwnWrites bounds the scopes that are told apart. Beyond it all are forgotten, and no STALE answer
// is given from before that moment.
const maxOwnWrites = 1 << 14

// Wrote notes a write that was acknowledged by now. many says that the scopes are not all of it.
func (w *OwnWrites) Wrote(now coherence.Instant, scopes []coherence.ScopeHash, many bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if many || len(w.at)+len(scopes) > maxOwnWrites {
		w.floor = now
		clear(w.at)
		return
	}
	if w.at == nil {
		w.at = map[coherence.ScopeHash]coherence.Instant{}
	}
	for _, scope := range scopes {
		w.at[scope] = now
	}
}

// writtenSince reports whether one of the scopes may have been written at the instant or later.
func (w *OwnWrites) writtenSince(as coherence.Instant, scopes []coherence.ScopeHash) bool {
	if w == nil {
		return false
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if as <= w.floor && w.floor != 0 {
		return true
	}
	for _, scope := range scopes {
		if at, ok := w.at[scope]; ok && as <= at {
			return true
		}
	}
	return false
}
