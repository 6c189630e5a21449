package coherence

import (
	"slices"
	"time"
)

// Instant is a moment on the monotonic clock of one [Tracker], in nanoseconds since it was made.
type Instant int64

// Sub is the time from the earlier instant to i.
func (i Instant) Sub(earlier Instant) time.Duration { return time.Duration(i - earlier) }

// Add is the instant d later.
func (i Instant) Add(d time.Duration) Instant { return i + Instant(d) }

// Event is something that happened to a node: [PollReturned], [HintHeard], [PeerHeard], [HintsMissed]
// or [Wrote].
type Event interface{ event() }

// PollReturned says that a poll came back that began at Sent, when [Follower.Send] gave Mark.
type PollReturned struct {
	Sent   Instant
	Mark   uint64
	Result PollResult
}

// HintHeard says that another node published a hint, or that this node heard its own.
type HintHeard struct{ Hint Hint }

// PeerHeard says how many hints a node has published, by its heartbeat.
type PeerHeard struct{ Boot, Seq uint64 }

// HintsMissed says that hints may be lost, for example after a reconnect.
type HintsMissed struct{}

// Wrote says that this node's own transaction committed, or may have: its outcome is not known. Without
// a timeline it says that nothing is known of the transaction but that it may have committed.
type Wrote struct {
	Timeline uint64
	XID      uint64
	Scopes   []ScopeHash
	// Grace is that of the change, see [Change], which was committed after the instant Since; 0 = none.
	Grace time.Duration
	Since Instant
}

func (PollReturned) event() {}
func (HintHeard) event()    {}
func (PeerHeard) event()    {}
func (HintsMissed) event()  {}
func (Wrote) event()        {}

// FlushReason says why everything known was given up.
type FlushReason string

// The reasons of a flush.
const (
	FlushTimeline  FlushReason = "timeline"  // Postgres begins a new history of transaction ids
	FlushRegress   FlushReason = "regress"   // Postgres went back within one timeline
	FlushRetention FlushReason = "retention" // the log no longer has all changes since the last poll
	FlushOverrun   FlushReason = "overrun"   // more changes since the last poll than one poll takes
)

// Effects is what the follower wants done, in this order.
type Effects struct {
	// Raised are scopes that changed: what was cached for them must be looked at again.
	Raised []ScopeHash
	// Generations are those of now on, and everything cached must be looked at again; nil = as before.
	Generations *Generations
	// Flush: everything cached must be looked at again. Empty = no.
	Flush FlushReason
	// Unproven: no poll counts any more until Latest comes again.
	Unproven bool
	// Latest is the poll that answers are checked against from now on; nil = as before.
	Latest *Poll
	// Learned counts changes that nothing had told of before the poll: they were committed after LearnedSince,
	// when the poll before was sent.
	Learned      int
	LearnedSince Instant
	// Renew is a timeline that has proved broken and must be replaced before the next poll; 0 = none.
	Renew uint64
	// Poll: poll at once.
	Poll bool
	// Missed counts hints that were published and not heard; Refused those that made no sense.
	Missed, Refused uint64
}

const (
	// maxPublishers bounds the publishers whose sequence is followed. Beyond it all are forgotten and
	// followed anew: a loss in that moment is found by the next regular poll only.
	maxPublishers = 4096
	// maxAhead bounds how far ahead of the last poll a hint's transaction may be.
	maxAhead = 1 << 20
)

// Follower is the protocol by which a node follows Postgres: a pure state machine. Not safe for
// concurrent use.
type Follower struct {
	boot uint64
	dir  *Directory
	// needMark: a poll proves something only when it was sent after this many changes were heard.
	needMark   uint64
	publishers map[uint64]publisher // boot -> what was heard of it
	// generations are those of the last poll that counted; nil = there was none.
	generations *Generations
	// newGenerations is the scope by which hints tell of others.
	newGenerations ScopeHash
}

// publisher is what was heard of one publisher of hints.
type publisher struct {
	heard   uint64 // highest sequence number
	claimed uint64 // what its heartbeat before last said
}

// NewFollower makes the state of a node that knows nothing yet. boot is the node's own.
func NewFollower(boot uint64, dir *Directory) *Follower {
	return &Follower{boot: boot, dir: dir, publishers: map[uint64]publisher{}, newGenerations: AllGenerations().Hash()}
}

// Send says that a poll goes out: since is what it must be asked with, mark what [PollReturned] wants.
func (f *Follower) Send() (since Snapshot, mark uint64) {
	mark = f.dir.Sent()
	if latest := f.dir.Latest(); latest != nil {
		since = latest.Snapshot
	}
	return since, mark
}

// Step takes one event.
func (f *Follower) Step(e Event) Effects {
	switch e := e.(type) {
	case PollReturned:
		return f.polled(e)
	case HintHeard:
		return f.hint(e.Hint)
	case PeerHeard:
		return f.peer(e)
	case HintsMissed:
		return Effects{Poll: true}
	case Wrote:
		return f.wrote(e)
	}
	return Effects{}
}

func (f *Follower) polled(e PollReturned) Effects {
	var do Effects
	r, latest := e.Result, f.dir.Latest()
	switch {
	case r.Snapshot.Timeline == 0:
		return f.giveUp(Effects{Flush: FlushTimeline})
	case latest == nil:
		// The first poll asked for all that the log has; what is past its horizon cannot be known.
		f.dir.Reset(r.Horizon)
		if r.Overrun {
			f.dir.Reset(r.Snapshot)
			r.Changes, do.Flush = nil, FlushOverrun
		}
	case r.Snapshot.Timeline != latest.Timeline:
		return f.giveUp(Effects{Flush: FlushTimeline})
	case !r.Snapshot.Includes(latest.Snapshot), !f.dir.noted(r.Snapshot):
		return f.giveUp(Effects{Flush: FlushRegress, Renew: latest.Timeline})
	case r.Overrun:
		f.dir.Flush(r.Snapshot) // it sees all changes that are not told
		r.Changes, do.Flush = nil, FlushOverrun
	case !latest.Includes(r.Horizon):
		f.dir.Flush(r.Horizon) // it sees all changes that may be gone
		do.Flush = FlushRetention
	}
	if r.Generations != nil && r.Generations.Version() != f.generations.Version() {
		f.generations, do.Generations = r.Generations, r.Generations
	}
	poll := f.dir.Polled(r.Snapshot, e.Sent, e.Mark, r.Changes)
	if latest != nil {
		do.Learned, do.LearnedSince = f.dir.learned, latest.Sent
	}
	for _, change := range r.Changes {
		do.Raised = append(do.Raised, change.Scope)
	}
	if e.Mark >= f.needMark {
		do.Latest = poll
	} else {
		do.Poll = true
	}
	return do
}

// giveUp forgets everything, so that the next poll asks for all that the log has. What was heard and is
// forgotten with it must be seen by a poll that was sent later.
func (f *Follower) giveUp(do Effects) Effects {
	f.dir.Reset(Snapshot{})
	f.needMark = f.dir.heard
	do.Unproven, do.Poll = true, true
	return do
}

func (f *Follower) hint(h Hint) Effects {
	var do Effects
	if h.Boot == f.boot {
		return do
	}
	p, known := f.publishers[h.Boot]
	if known && h.Seq > p.heard+1 {
		do.Missed, do.Poll = h.Seq-p.heard-1, true
	}
	if h.Seq > p.heard {
		p.heard = h.Seq
		f.follow(h.Boot, p)
	}
	latest := f.dir.Latest()
	switch {
	case latest == nil:
		do.Poll = true
	case h.Timeline != latest.Timeline:
		do.Poll, do.Refused = true, 1
	case h.XID >= latest.Xmax+maxAhead:
		do.Poll, do.Refused = true, 1
	default:
		do.Raised = f.raise(h.XID, h.Scopes)
		if slices.Contains(h.Scopes, f.newGenerations) {
			do.Poll = true // a hint does not say which
		}
	}
	return do
}

// peer compares what a publisher had sent by its heartbeat before with what was heard since: the last
// hints before a heartbeat may still be on their way.
func (f *Follower) peer(e PeerHeard) Effects {
	var do Effects
	if e.Boot == f.boot {
		return do
	}
	p, known := f.publishers[e.Boot]
	if !known {
		// Nothing that was published before can be told from what is on its way.
		p.heard = e.Seq
	}
	if p.claimed > p.heard {
		do.Missed, do.Poll = p.claimed-p.heard, true
		p.heard = p.claimed
	}
	p.claimed = e.Seq
	f.follow(e.Boot, p)
	return do
}

func (f *Follower) follow(boot uint64, p publisher) {
	if _, known := f.publishers[boot]; !known && len(f.publishers) >= maxPublishers {
		clear(f.publishers)
	}
	f.publishers[boot] = p
}

func (f *Follower) wrote(e Wrote) Effects {
	latest := f.dir.Latest()
	if latest == nil || latest.Timeline != e.Timeline {
		// The directory cannot hold it: nothing is proven until a poll that was sent from now on.
		f.dir.heard++
		f.needMark = f.dir.heard
		return Effects{Raised: e.Scopes, Unproven: true, Poll: true}
	}
	if e.Grace == 0 || latest.Sees(e.XID) {
		return Effects{Raised: f.raise(e.XID, e.Scopes)}
	}
	var do Effects
	for _, scope := range e.Scopes {
		if f.dir.allow(scope, e.XID, e.Since, e.Grace, e.Since) || f.dir.Raise(scope, e.XID) {
			do.Raised = append(do.Raised, scope)
		}
	}
	return do
}

// raise records a change and returns the scopes for which it was news.
func (f *Follower) raise(xid uint64, scopes []ScopeHash) []ScopeHash {
	raised := scopes[:0:0]
	for _, scope := range scopes {
		if f.dir.Raise(scope, xid) {
			raised = append(raised, scope)
		}
	}
	return raised
}
