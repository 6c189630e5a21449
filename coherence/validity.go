package coherence

import "maps"

// Valid reports whether a value read under the snapshot is valid for all of its scopes, as far as this
// node knows, and not behind what this node has served for the same value.
func (t *Tracker) Valid(value ScopeHash, scopes []ScopeHash, snapshot Snapshot) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.valid(value, scopes, snapshot)
}

// Admit is [Tracker.Valid] for a value that comes from outside this process and is about to be served:
// when its snapshot is newer than the latest poll, the node will serve nothing older after it.
func (t *Tracker) Admit(value ScopeHash, scopes []ScopeHash, snapshot Snapshot) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if !t.valid(value, scopes, snapshot) {
		return false
	}
	if !t.dir.Note(value, snapshot) {
		ask(t.hurry)
	}
	return true
}

// Grace reports whether a value for which [Tracker.Valid] says no lacks nothing but changes in their
// grace, as far as this node knows, so that it may be served, labelled.
func (t *Tracker) Grace(value ScopeHash, scopes []ScopeHash, snapshot Snapshot) (Grace, bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.dir.gracedCount == 0 || !t.dir.CheckNote(value, snapshot) {
		return Grace{}, false
	}
	if _, doubted := t.Doubted(scopes...); doubted {
		return Grace{}, false // it may lack more
	}
	now := t.Now()
	var all Grace
	for _, scope := range scopes {
		g, ok := t.dir.CheckGrace(scope, snapshot, now)
		if !ok {
			return Grace{}, false
		}
		all = all.and(g)
	}
	return all, all != Grace{}
}

func (t *Tracker) valid(value ScopeHash, scopes []ScopeHash, snapshot Snapshot) bool {
	if !t.dir.CheckNote(value, snapshot) {
		return false
	}
	for _, scope := range scopes {
		if !t.dir.Check(scope, snapshot) {
			return false
		}
	}
	_, doubted := t.Doubted(scopes...)
	return !doubted
}

// Doubt says of which scopes changes may be missing in the log, and since when; they take the place of what
// was said before. Nothing is valid for such a scope, whatever the directory knows of it. Before the caller
// takes a scope back, the log has to say that it changed, and a barrier has to have brought that.
func (t *Tracker) Doubt(since map[ScopeHash]Instant) {
	doubts := maps.Clone(since)
	t.doubts.Store(&doubts)
	t.stamps.flush() // after the doubts: who sums the stamps from now on finds them
}

// Doubted reports whether changes of one of the scopes may be missing in the log, and since when.
func (t *Tracker) Doubted(scopes ...ScopeHash) (since Instant, doubted bool) {
	doubts := t.doubts.Load()
	if doubts == nil || len(*doubts) == 0 {
		return 0, false
	}
	for _, scope := range scopes {
		if at, ok := (*doubts)[scope]; ok && (!doubted || at < since) {
			since, doubted = at, true
		}
	}
	return since, doubted
}
