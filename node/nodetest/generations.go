package nodetest

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"math"
	"slices"
	"time"
	"unicode/utf8"

	"github.com/freshet-cache/freshet/cluster"
	"github.com/freshet-cache/freshet/coherence"
	"github.com/freshet-cache/freshet/node"
)

// generations are freshet.generations and their history.
type generations struct {
	current, highest map[string]uint32      // namespace, "" for all -> number; 1 if it is not here
	history          []node.GenerationEvent // the earliest first
	last             int64                  // number of an event
}

func newGenerations() generations {
	return generations{current: map[string]uint32{}, highest: map[string]uint32{}}
}

func (g generations) clone() *generations {
	return &generations{maps.Clone(g.current), maps.Clone(g.highest), slices.Clone(g.history), g.last}
}

const (
	maxNamespaces = 1024 // with generations of their own
	maxEvents     = 1000 // of one namespace
)

// changeGeneration does what freshet.change_generation does in SQL.
func (tx *Tx) changeGeneration(s node.GenerationStep) (uint32, error) {
	switch {
	case s.Namespace != "" && cluster.CheckNamespace(s.Namespace) != nil:
		return 0, fmt.Errorf("nodetest: namespace is %q; want that of a cache, or none for all of them", s.Namespace)
	case s.Why == "" || utf8.RuneCountInString(s.Why) > 1000:
		return 0, errors.New("nodetest: why: want the reason, in 1 to 1000 characters")
	case utf8.RuneCountInString(s.By) > 200:
		return 0, fmt.Errorf("nodetest: by has %d characters; want at most 200", utf8.RuneCountInString(s.By))
	case s.Action == node.ActionSet && s.Number == 0:
		return 0, fmt.Errorf("nodetest: generation is 0; want 1 to %d", uint32(math.MaxUint32))
	}
	if err := tx.acquire(lock{of: ofGenerations}); err != nil {
		return 0, err
	}
	tx.db.mu.Lock()
	defer tx.db.mu.Unlock()
	if err := tx.usable(); err != nil {
		return 0, err
	}
	if tx.generations == nil {
		tx.generations = tx.db.generations.clone()
	}
	present, number, err := tx.generations.step(s)
	if err != nil || number == present {
		return present, err
	}
	tx.log.SetGeneration(s.Namespace, number)
	tx.written.Scopes = append(tx.written.Scopes, coherence.AllGenerations())
	return number, nil
}

// step makes a change and returns the number before and after it.
func (g *generations) step(s node.GenerationStep) (present, number uint32, err error) {
	present, highest := cmp.Or(g.current[s.Namespace], 1), cmp.Or(g.highest[s.Namespace], 1)
	if s.Expect != 0 && s.Expect != present {
		return 0, 0, fmt.Errorf("%w: nodetest: the generation of %q is %d, not %d as expected", node.ErrConflict, s.Namespace, present, s.Expect)
	}
	if _, there := g.current[s.Namespace]; !there && len(g.current) >= maxNamespaces {
		return 0, 0, fmt.Errorf("nodetest: %d namespaces have generations of their own, which is the most", maxNamespaces)
	}
	number = s.Number
	switch s.Action {
	case node.ActionIncrement:
		if highest == math.MaxUint32 {
			return 0, 0, fmt.Errorf("nodetest: %q has had the highest generation: set one that is free", s.Namespace)
		}
		number = highest + 1
	case node.ActionRollback:
		if number, err = g.back(s.Namespace, present, number); err != nil {
			return 0, 0, err
		}
	}
	if number == present {
		return present, present, nil
	}
	g.current[s.Namespace], g.highest[s.Namespace] = number, max(highest, number)
	g.last++
	g.history = append(g.history, node.GenerationEvent{
		Number: g.last, Namespace: s.Namespace, Generation: number, Previous: present, Action: s.Action,
		By: cmp.Or(s.By, "nodetest"), Why: s.Why, At: time.Now(),
	})
	var of int
	for i, e := range slices.Backward(g.history) {
		if e.Namespace != s.Namespace {
			continue
		}
		if of++; of > maxEvents {
			g.history = slices.Delete(g.history, i, i+1)
		}
	}
	return present, number, nil
}

// back is the number that a rollback leads to; to = 0: that before the present one came, if that did not come by a
// rollback itself.
func (g *generations) back(namespace string, present, to uint32) (uint32, error) {
	for _, e := range slices.Backward(g.history) {
		switch {
		case e.Namespace != namespace:
		case to == 0 && e.Generation == present && e.Action != node.ActionRollback:
			return e.Previous, nil
		case to != 0 && to != present && (e.Generation == to || e.Previous == to):
			return to, nil
		}
	}
	return 0, fmt.Errorf("nodetest: %q has not had the generation before %d that is wanted", namespace, present)
}

// generationHistory are the last changes of the namespace's generation, the latest first.
func (d *database) generationHistory(namespace string, limit int) []node.GenerationEvent {
	d.mu.Lock()
	defer d.mu.Unlock()
	events := []node.GenerationEvent{}
	for _, e := range slices.Backward(d.generations.history) {
		if e.Namespace == namespace && len(events) < limit {
			events = append(events, e)
		}
	}
	return events
}
