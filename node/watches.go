package node

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/lib/pq"

	"github.com/freshet-cache/freshet/coherence"
)

// watches is what the node knows of the watches of tables. While one has a problem, changes may go unlogged, and
// nothing that is cached under its namespace or tags can be proven.
type watches struct {
	wake chan struct{} // asks for a check; has one request from the start, and then none
	// first is closed when the first check is over, whatever came of it.
	first  chan struct{}
	opened sync.Once

	mu      sync.Mutex
	found   []drift           // by the last check
	checked coherence.Instant // when the last check was sent that came back; 0 = none has
	doubts  map[coherence.ScopeHash]coherence.Instant
}

func newWatches() *watches {
	w := &watches{wake: make(chan struct{}, 1), first: make(chan struct{})}
	w.wake <- struct{}{}
	return w
}

// tried says that the first check is over, or will never be.
func (w *watches) tried() { w.opened.Do(func() { close(w.first) }) }

// drift is a row of freshet.drift().
type drift struct {
	Namespace, Relation, Problem string
	Tags                         pq.StringArray // of the watch; nil = not known
	// Whole: the watch is as it should be by now, but was not all the time.
	Whole bool
}

func (d drift) same(other drift) bool {
	return d.Namespace == other.Namespace && d.Relation == other.Relation && d.Problem == other.Problem && slices.Equal(d.Tags, other.Tags)
}

// scopes are what the watch can tell of. Tags with columns in them can be any.
func (d drift) scopes() []coherence.ScopeHash {
	scopes := []coherence.ScopeHash{coherence.Namespace(d.Namespace).Hash()}
	if d.Tags == nil {
		return append(scopes, coherence.AnyTag().Hash())
	}
	for _, tag := range d.Tags {
		if strings.Contains(tag, "{") {
			scopes = append(scopes, coherence.AnyTag().Hash())
		} else {
			scopes = append(scopes, coherence.Tag(tag).Hash())
		}
	}
	return scopes
}

// maxDrift bounds the problems that are told apart. Of more, everything is in doubt.
const maxDrift = 1000

// checkWatches asks Postgres what is wrong with the watches. What is, is in doubt from then on; what no longer is
// has been logged as changed, and is in doubt until a poll has brought that.
func (n *Node) checkWatches(ctx context.Context) error {
	w := n.watches
	defer w.tried()
	ctx, cancel := context.WithTimeout(ctx, n.config.loadTimeout())
	defer cancel()
	sent := n.tracker.Now()
	found, err := n.drift(ctx)
	if err != nil {
		return err
	}
	n.doubt(found, sent, false)
	if len(found) > 0 {
		if _, err := n.parts.Loads.ExecContext(ctx, `select freshet.mend()`); err != nil {
			return fmt.Errorf("mend watches: %w", err)
		}
		sent = n.tracker.Now()
		if found, err = n.drift(ctx); err != nil {
			return err
		}
		n.doubt(found, sent, false)
	}
	if len(found) < n.problems() {
		// The changes that came with the end of a problem have to be known before it is forgotten.
		if _, err := n.tracker.Barrier(ctx); err != nil {
			return fmt.Errorf("a watch is whole again: %w", err)
		}
	}
	n.doubt(found, sent, true)
	return nil
}

// drift asks Postgres for the problems.
func (n *Node) drift(ctx context.Context) ([]drift, error) {
	var found []drift
	err := n.parts.Loads.SelectContext(ctx, &found, fmt.Sprintf(
		`select namespace, relation, problem, tags, whole from freshet.drift() limit %d`, maxDrift+1))
	if err != nil {
		return nil, fmt.Errorf("check the watches: %w", err)
	}
	return found, nil
}

func (n *Node) problems() int {
	n.watches.mu.Lock()
	defer n.watches.mu.Unlock()
	return len(n.watches.found)
}

// doubt takes what a check has found, sent at the instant: in place of what was found before if alone, else
// besides it.
func (n *Node) doubt(found []drift, sent coherence.Instant, alone bool) {
	w := n.watches
	w.mu.Lock()
	defer w.mu.Unlock()
	all := slices.Clone(found)
	for _, d := range w.found {
		switch {
		case slices.ContainsFunc(found, d.same):
		case alone:
			n.log.Warn("node: a watched table tells of its changes again; what was cached of it counts as changed",
				"namespace", d.Namespace, "relation", d.Relation, "problem", d.Problem)
		default:
			all = append(all, d)
		}
	}
	for _, d := range found {
		if !d.Whole && !slices.ContainsFunc(w.found, d.same) {
			n.log.Error("node: changes of a watched table may go unnoticed; nothing cached of it is FRESH",
				"namespace", d.Namespace, "relation", d.Relation, "problem", d.Problem)
		}
	}
	since := w.checked // the last moment without doubt
	if since == 0 {
		since = never
	}
	doubts := map[coherence.ScopeHash]coherence.Instant{}
	put := func(scope coherence.ScopeHash) {
		if before, there := w.doubts[scope]; there {
			doubts[scope] = before
		} else {
			doubts[scope] = since
		}
	}
	for _, d := range all {
		for _, scope := range d.scopes() {
			put(scope)
		}
	}
	if len(all) > maxDrift {
		put(coherence.Everything().Hash())
	}
	if !maps.Equal(doubts, w.doubts) {
		n.tracker.Doubt(doubts)
	}
	w.found, w.doubts = all, doubts
	if alone {
		w.checked = sent
	}
}

// never is before every instant.
const never = coherence.Instant(-1 << 62)

// doubted are the scopes in doubt.
func (w *watches) doubted() []coherence.ScopeHash {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.Collect(maps.Keys(w.doubts))
}

// age is how long ago the last check was sent that came back; a day if none has.
func (w *watches) age(now coherence.Instant) time.Duration {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.checked == 0 {
		return 24 * time.Hour
	}
	return now.Sub(w.checked)
}

// stats are the problems that the last check has found, in the order of their names.
func (w *watches) stats() []DriftStats {
	w.mu.Lock()
	defer w.mu.Unlock()
	all := make([]DriftStats, len(w.found))
	for i, d := range w.found {
		all[i] = DriftStats{Namespace: d.Namespace, Relation: d.Relation, Problem: d.Problem}
	}
	slices.SortFunc(all, func(a, b DriftStats) int {
		return strings.Compare(a.Namespace+"\x00"+a.Relation+"\x00"+a.Problem, b.Namespace+"\x00"+b.Relation+"\x00"+b.Problem)
	})
	return all
}
