package node

import (
	"errors"
	"fmt"
	"slices"
	"time"
	"unicode/utf8"

	"github.com/freshet-cache/freshet/cluster"
	"github.com/freshet-cache/freshet/coherence"
)

// Strategy says how an invalidation takes effect. An Invalidate method takes several that fit together:
// [View] with [After], [Batch] or [WithGrace], say. The zero Strategy is [Immediately].
type Strategy struct {
	kind     strategyKind
	duration time.Duration
	text     string
}

type strategyKind uint8

const (
	strategyImmediately strategyKind = iota
	strategyAfter
	strategyGrace
	strategyView
	strategyBatch
	strategyGeneration
)

// String is the strategy's name in errors.
func (k strategyKind) String() string {
	return [...]string{"Immediately", "After", "WithGrace", "View", "Batch", "NextGeneration"}[k]
}

// Bounds of strategies.
const (
	// MaxDelay bounds the delay of [After].
	MaxDelay = 365 * 24 * time.Hour
	// MaxGrace bounds the grace of [WithGrace].
	MaxGrace = coherence.MaxGrace
	// maxName bounds the name of a [Batch] and the reason of [NextGeneration], in characters.
	maxName = 200
)

// Immediately has what changed count from the commit on: the default.
func Immediately() Strategy { return Strategy{} }

// After has it count as changed when the delay is over, 1 ms to [MaxDelay], counted by Postgres' clock
// from the call. It waits in Postgres: some replica does it, within two seconds or so of its time, once in
// effect, also when the caller and that replica die. With [Batch], the batch is run then.
func After(d time.Duration) Strategy { return Strategy{kind: strategyAfter, duration: d} }

// WithGrace allows that values from before the change are still served for so long after its commit, 1 ms
// to [MaxGrace], labelled as such ([Entry.Grace]) and never FRESH, while one load replaces them: readers do
// not wait for it. Those that name a budget ([Within]), or bring a token ([AtLeast]) for which the old value
// is not new enough, get the new value: so does, with the token of the call, who makes the change. Other
// replicas hear of it by polling.
func WithGrace(d time.Duration) Strategy { return Strategy{kind: strategyGrace, duration: d} }

// View has only that view of the entities change.
func View(name string) Strategy { return Strategy{kind: strategyView, text: name} }

// Batch puts what changes into the named batch, in Postgres: it counts as changed when the batch is run, by
// [Node.RunBatch], freshet.run_batch or its time. The name has 1 to 200 characters.
func Batch(name string) Strategy { return Strategy{kind: strategyBatch, text: name} }

// NextGeneration begins a new generation of the whole namespace, for the given reason, of 1 to 200
// characters, as [Tx.NextGeneration] does. It takes no ids and no other strategy.
func NextGeneration(reason string) Strategy {
	return Strategy{kind: strategyGeneration, text: reason}
}

// how is what several strategies come to.
type how struct {
	delay, grace        time.Duration
	view, batch, reason string
}

// planOf checks the strategies one by one and together.
func planOf(strategies []Strategy) (how, error) {
	var h how
	given := make([]strategyKind, 0, len(strategies))
	for _, s := range strategies {
		if slices.Contains(given, s.kind) {
			return h, fmt.Errorf("%v is given twice; want it once", s.kind)
		}
		given = append(given, s.kind)
		switch s.kind {
		case strategyAfter:
			if s.duration < time.Millisecond || s.duration > MaxDelay {
				return h, fmt.Errorf("After(%v): want a delay of 1ms to %v", s.duration, MaxDelay)
			}
			h.delay = s.duration
		case strategyGrace:
			if s.duration < time.Millisecond || s.duration > MaxGrace {
				return h, fmt.Errorf("WithGrace(%v): want a grace of 1ms to %v", s.duration, MaxGrace)
			}
			h.grace = s.duration
		case strategyView:
			if err := cluster.CheckView(s.text); err != nil {
				return h, err
			}
			h.view = s.text
		case strategyBatch:
			if err := s.named(); err != nil {
				return h, err
			}
			h.batch = s.text
		case strategyGeneration:
			if err := s.named(); err != nil {
				return h, err
			}
			h.reason = s.text
		default:
		}
	}
	switch {
	case len(given) > 1 && slices.Contains(given, strategyGeneration):
		return h, errors.New("NextGeneration with another strategy: want it alone, since a generation begins at once and is of all views")
	case slices.Contains(given, strategyImmediately) && (h.delay > 0 || h.batch != ""):
		return h, errors.New("Immediately with After or Batch: want one of them")
	}
	return h, nil
}

// named checks the length of the text.
func (s Strategy) named() error {
	if n := utf8.RuneCountInString(s.text); n == 0 || n > maxName {
		return fmt.Errorf("%v of %d characters: want 1 to %d", s.kind, n, maxName)
	}
	return nil
}

// what is what an invalidation is about.
type what struct {
	kind      coherence.Kind // of the ids, but for the view
	namespace string
	ids       []string // of a namespace, one that is empty
}

// invalidate does what all Invalidate methods do.
func (tx *Tx) invalidate(w what, strategies []Strategy) error {
	h, err := planOf(strategies)
	switch {
	case err != nil:
	case h.reason != "" && (w.kind != coherence.KindNamespace && len(w.ids) > 0 || w.kind == coherence.KindTag):
		err = errors.New("NextGeneration: want no ids and no tags, since a generation is of a whole namespace")
	case h.view != "" && w.kind != coherence.KindEntity:
		err = errors.New("View: want it with ids, since tags and namespaces are of all views")
	case h.reason != "" && w.namespace == "":
		err = errors.New("NextGeneration: namespace is empty; want the namespace of a cache, or Tx.NextGeneration for all")
	case h.reason != "":
		_, err = tx.NextGeneration(w.namespace, GenerationChange{Why: h.reason})
		return err
	case len(w.ids) == 0:
		return nil
	}
	if err != nil {
		return fmt.Errorf("node: invalidate: %w", err)
	}
	if h.view != "" {
		w.kind = coherence.KindView
	}
	if h.delay > 0 && (tx.due == 0 || h.delay < tx.due) {
		tx.due = h.delay
	}
	err = tx.transaction.Invalidate(tx.ctx, Invalidation{
		Kind: w.kind, Namespace: w.namespace, IDs: w.ids, View: h.view, Grace: h.grace, Delay: h.delay, Batch: h.batch,
	})
	if err != nil {
		return fmt.Errorf("node: invalidate: %w", err)
	}
	return nil
}
