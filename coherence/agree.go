package coherence

import "github.com/freshet-cache/freshet/cluster"

// Holding is a value in hand: which it is, the scopes whose changes change it, the snapshot that it was read
// under, and the generation of its namespace that it is of; without a namespace it is of none.
type Holding struct {
	Value      ScopeHash
	Scopes     []ScopeHash
	Snapshot   Snapshot
	Namespace  string
	Generation cluster.Generation
}

// Agreement says how values in hand stand to the latest poll.
type Agreement uint8

// The agreements, from the worst to the best.
const (
	// Changed: one at least is known to have changed since it was read, or is of another generation than the
	// current one.
	Changed Agreement = iota
	// Ahead: none is, but one at least is newer than the poll, or of another timeline, or there is no poll. A
	// poll that is sent from now on may bring agreement.
	Ahead
	// Agreed: each is exactly the state of its key at the poll's snapshot.
	Agreed
)

// Agree compares the values with the latest poll, which it returns, all of them at one moment. It is the whole
// reason why values that were read at different times can be of one snapshot: the node knows every change that
// the poll's snapshot sees, so a value that was read under a snapshot which that includes, and that has not
// changed since, is what a read under the poll's snapshot would have found.
func (t *Tracker) Agree(values []Holding) (*Poll, Agreement) {
	t.mu.Lock()
	defer t.mu.Unlock()
	poll, agreement := t.latest.Load(), Agreed
	if poll == nil {
		return nil, Ahead
	}
	for i := range values {
		switch v := &values[i]; {
		case v.Snapshot.Timeline != poll.Timeline:
			agreement = Ahead
		case v.Namespace != "" && v.Generation != t.Generations().Of(v.Namespace):
			return poll, Changed
		case !t.valid(v.Value, v.Scopes, v.Snapshot):
			return poll, Changed
		case !poll.Includes(v.Snapshot):
			agreement = Ahead
		}
	}
	return poll, agreement
}
