package node

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"github.com/freshet-cache/freshet/coherence"
	"github.com/freshet-cache/freshet/tiers"
)

// VerifyConfig has entries of L1 compared with the source, from time to time and drawn at random: what the node
// answers as FRESH is checked against Postgres while it runs. What could be wrong is not the node's rule but what the
// rule is told: a table that is written past its triggers, tags that leave something out, a source that reads more
// than is watched. The zero value is off, since it loads what nobody has asked for, and takes a source that does not
// give the same for the same state (see [CacheConfig].NoVerify) for one that is wrong.
type VerifyConfig struct {
	// Every is the time between two samples, give or take a fifth, 1 s to 24 h; 0 = never.
	Every time.Duration
	// Sample is how many entries one takes from all caches together, 1 to 1,000; 0 = 32.
	Sample int
}

// MaxVerify bounds the entries of one [Node.VerifySample].
const MaxVerify = 10_000

const (
	// maxMismatches bounds the mismatches that are kept; the oldest go first.
	maxMismatches = 100
	// maxScheduled bounds the scheduled changes that one look at mismatches goes through: more than Postgres keeps.
	maxScheduled = 200_000
)

// Mismatch is an entry that was given as FRESH and was not what the source had.
type Mismatch struct {
	Namespace string    `json:"namespace"`
	View      string    `json:"view"`
	ID        string    `json:"id"` // of a query's result, the text of its parameters behind a ?
	At        time.Time `json:"at"`
	// Tier is where L1 had the entry from: l2, owner or source.
	Tier string `json:"tier"`
	// Held is what the entry was, and Loaded what the source had, under their snapshots.
	Held   MismatchState `json:"held"`
	Loaded MismatchState `json:"loaded"`
}

// MismatchState is what an id had under a snapshot.
type MismatchState struct {
	Snapshot string `json:"snapshot"`       // timeline/xmin:xmax:xip
	Version  uint64 `json:"version,string"` // as [Entry.Version]
	Absent   bool   `json:"absent"`         // there was no such thing
}

// VerifyReport is what came of one sample.
type VerifyReport struct {
	// Checked are the entries that the source has, too; Moved those that changed while they were compared, or whose
	// change is scheduled ([After], [Batch]); Failed those for which the source or a poll could not be had; Skipped
	// those that no read would have been given as FRESH.
	Checked int `json:"checked"`
	Moved   int `json:"moved"`
	Failed  int `json:"failed"`
	Skipped int `json:"skipped"`
	// Mismatches are the others.
	Mismatches []Mismatch `json:"mismatches"`
}

func (r *VerifyReport) add(v tiers.Verified) {
	r.Checked, r.Moved, r.Failed, r.Skipped = r.Checked+v.Checked, r.Moved+v.Moved, r.Failed+v.Failed, r.Skipped+v.Skipped
}

// verifier is what a node keeps of its samples.
type verifier struct {
	turn chan struct{} // capacity 1: who takes a sample holds the token

	mu   sync.Mutex
	kept []Mismatch // the newest at the end
}

func newVerifier() *verifier { return &verifier{turn: make(chan struct{}, 1)} }

func (v *verifier) keep(m Mismatch) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if len(v.kept) == maxMismatches {
		v.kept = slices.Delete(v.kept, 0, 1)
	}
	v.kept = append(v.kept, m)
}

// Mismatches are the last that this node's samples have found, the newest first, at most 100. They hold ids, which may
// be personal data.
func (n *Node) Mismatches() []Mismatch {
	n.verifier.mu.Lock()
	defer n.verifier.mu.Unlock()
	last := slices.Clone(n.verifier.kept)
	slices.Reverse(last)
	return last
}

// VerifySample compares up to so many entries of L1, 1 to [MaxVerify], with the source: drawn at random from all
// caches, one at least from each, past L1 and L2, at most 20 in a load, and behind readers. An entry that is not what
// the source has is a mismatch only if, after a poll that was sent when the source had answered, nothing says that it
// has changed. A mismatch is logged as an error, counted, kept for [Node.Mismatches], and replaced by what was loaded;
// all other replicas load it anew, too, since the log says that its entity changed.
//
// Samples of one node take turns. The error says why some entries failed; what is not Failed counts all the same.
func (n *Node) VerifySample(ctx context.Context, entries int) (VerifyReport, error) {
	report := VerifyReport{Mismatches: []Mismatch{}}
	fail := func(err error) (VerifyReport, error) { return report, &Error{Op: "verify", Err: err} }
	if entries < 1 || entries > MaxVerify {
		return fail(fmt.Errorf("%d entries: want 1 to %d", entries, MaxVerify))
	}
	if !n.enter() {
		return fail(ErrClosed)
	}
	defer n.writes.Done()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(n.life, cancel)() //nolint:contextcheck // it ends with the caller's or with the node
	select {
	case n.verifier.turn <- struct{}{}:
		defer func() { <-n.verifier.turn }()
	case <-ctx.Done():
		return fail(context.Cause(ctx))
	}
	var problems []error
	wrong := map[string][]string{} // namespace -> ids
	for _, s := range n.shares(entries) {
		if ctx.Err() != nil {
			problems = append(problems, context.Cause(ctx))
			break
		}
		v, err := s.cache.Verify(ctx, s.entries)
		problems = append(problems, err)
		report.add(v)
		for _, m := range v.Mismatches {
			report.Mismatches = append(report.Mismatches, n.mismatch(s.name, m))
			if m.ID != "" { // the log knows no such entity
				wrong[s.name.namespace] = append(wrong[s.name.namespace], m.ID)
			}
		}
	}
	if len(wrong) > 0 && n.parts.Database != nil {
		_, err := n.Write(ctx, func(tx *Tx) error {
			for namespace, ids := range wrong {
				if err := tx.Invalidate(namespace, ids); err != nil {
					return err
				}
			}
			return nil
		})
		if err != nil {
			n.log.Warn("node: entries that were found to be wrong are replaced here, and others could not be told", "error", err)
		}
	}
	if err := errors.Join(problems...); err != nil {
		return fail(err)
	}
	return report, nil
}

// share is how many entries of a sample come from one cache.
type share struct {
	name    cacheName
	cache   cache
	entries int
	left    int // that the cache has beyond
}

// shares divides a sample: one entry from each cache that has any, or from some by chance if there are more caches than
// that, and the rest as if all caches were one.
func (n *Node) shares(entries int) []share {
	var all []share
	n.mu.RLock()
	for name, c := range n.caches {
		if has := c.Verifiable(); has > 0 {
			all = append(all, share{name: name, cache: c, entries: 1, left: has - 1})
		}
	}
	n.mu.RUnlock()
	rand.Shuffle(len(all), func(i, j int) { all[i], all[j] = all[j], all[i] })
	all = all[:min(len(all), entries)]
	left := 0
	for i := range all {
		left += all[i].left
	}
	for range min(entries-len(all), left) {
		at := rand.IntN(left)
		left--
		for i := range all {
			if at -= all[i].left; at < 0 {
				all[i].entries++
				all[i].left--
				break
			}
		}
	}
	return all
}

// mismatch logs and keeps one.
func (n *Node) mismatch(name cacheName, found tiers.Mismatch) Mismatch {
	m := Mismatch{
		Namespace: name.namespace, View: name.view, ID: found.ID, At: time.Now(), Tier: found.Tier.String(),
		Held: stateOf(found.Held), Loaded: stateOf(found.Loaded),
	}
	n.verifier.keep(m)
	n.log.Error("node: an entry that was FRESH is not what the source has: something changes it that is not logged",
		"namespace", m.Namespace, "view", m.View, "entity_hash", fmt.Sprintf("%016x", uint64(coherence.Entity(m.Namespace, m.ID).Hash())),
		"held", m.Held.Snapshot, "loaded", m.Loaded.Snapshot)
	return m
}

func stateOf(s tiers.State) MismatchState {
	return MismatchState{Snapshot: s.Snapshot.String(), Version: s.Version, Absent: s.Absent}
}

// verify takes a sample: a duty of every replica for itself.
func (n *Node) verify(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, max(n.config.Verify.Every, n.config.loadTimeout()))
	defer cancel()
	r, err := n.VerifySample(ctx, n.config.verifySample())
	if err == nil || errors.Is(err, ErrClosed) || r.Checked+r.Moved+len(r.Mismatches) > 0 {
		return nil
	}
	// What Postgres says may hold an id.
	return fmt.Errorf("none of %d entries could be compared with the source", r.Failed)
}

// scheduledScopes are those of all changes that wait in Postgres, the entities of the namespace with other ids left out.
func (n *Node) scheduledScopes(ctx context.Context, namespace string, ids []string) ([]coherence.ScopeHash, error) {
	if err := n.bulkhead.Enter(ctx); err != nil {
		return nil, err
	}
	defer n.bulkhead.Leave()
	found, err := n.parts.Database.Scheduled(ctx, namespace, ids, maxScheduled)
	if err != nil {
		return nil, fmt.Errorf("look for scheduled changes: %w", err)
	}
	if len(found) == maxScheduled {
		return nil, fmt.Errorf("look for scheduled changes: there are %d and more", maxScheduled)
	}
	scopes := hashesOf(found)
	return scopes, nil
}
