package nodetest

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/freshet-cache/freshet/coherence"
	"github.com/freshet-cache/freshet/node"
)

// scheduled is a row of freshet.scheduled.
type scheduled struct {
	batch string    // "" = of no batch
	due   time.Time // zero = not before its batch is run
	at    time.Time // when it was said
	scope coherence.Scope
	grace time.Duration
	by    *Tx // that runs or drops it; nil = none
}

// maxScheduled bounds what waits in one database.
const maxScheduled = 100_000

// schedule adds a change that counts later. The caller holds the database's mu.
func (tx *Tx) schedule(i node.Invalidation, scope coherence.Scope, grace time.Duration) error {
	if len(tx.db.scheduled)+len(tx.scheduled) >= maxScheduled {
		return fmt.Errorf("nodetest: %d changes wait already, which is the most", maxScheduled)
	}
	tx.write()
	s := &scheduled{batch: i.Batch, at: time.Now(), scope: scope, grace: grace}
	if i.Delay > 0 {
		s.due = s.at.Add(i.Delay)
	}
	tx.scheduled = append(tx.scheduled, s)
	return nil
}

// runScheduled logs what is in the batch, or with "" what is due and no other transaction runs, at most so many.
func (tx *Tx) runScheduled(batch string, limit int) (int64, error) {
	run, err := tx.claim(batch, limit)
	if err != nil {
		return 0, err
	}
	tx.db.mu.Lock()
	defer tx.db.mu.Unlock()
	graces := map[coherence.Scope]time.Duration{} // the least of each
	for _, s := range run {
		if before, there := graces[s.scope]; !there || s.grace < before {
			graces[s.scope] = s.grace
		}
	}
	for scope, grace := range graces {
		tx.change(grace, scope)
	}
	return int64(len(run)), nil
}

// dropBatch drops what is in the batch.
func (tx *Tx) dropBatch(batch string) (int64, error) {
	dropped, err := tx.claim(batch, maxScheduled)
	return int64(len(dropped)), err
}

// claim takes changes, which are gone when the transaction commits.
func (tx *Tx) claim(batch string, limit int) ([]*scheduled, error) {
	if batch != "" {
		if err := tx.acquire(lock{ofBatch, batch}); err != nil {
			return nil, err
		}
	}
	d := tx.db
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := tx.usable(); err != nil {
		return nil, err
	}
	var due []string
	if batch == "" {
		due = d.dueBatches(tx)
	}
	var claimed []*scheduled
	for _, s := range d.scheduled {
		if s.by == nil && (s.batch == "" && batch == "" && s.isDue() || s.batch != "" && (s.batch == batch || slices.Contains(due, s.batch))) {
			claimed = append(claimed, s)
		}
	}
	// The first of a batch that is due goes last: as long as anything is left, the batch is due.
	slices.SortStableFunc(claimed, func(a, b *scheduled) int {
		if a.batch == "" || b.batch == "" {
			return cmp.Or(strings.Compare(a.batch, b.batch), a.due.Compare(b.due))
		}
		switch {
		case a.due.IsZero() == b.due.IsZero():
			return b.due.Compare(a.due)
		case a.due.IsZero():
			return -1
		default:
			return 1
		}
	})
	claimed = claimed[:min(len(claimed), limit)]
	for _, s := range claimed {
		s.by = tx
		tx.write()
		if _, held := d.locks[lock{ofBatch, s.batch}]; !held && s.batch != "" {
			d.locks[lock{ofBatch, s.batch}] = tx
			tx.locks = append(tx.locks, lock{ofBatch, s.batch})
		}
	}
	tx.run = append(tx.run, claimed...)
	return claimed, nil
}

func (s *scheduled) isDue() bool { return !s.due.IsZero() && !s.due.After(time.Now()) }

// dueBatches are those with a change that is due and that no other transaction holds. The caller holds mu.
func (d *database) dueBatches(tx *Tx) []string {
	var names []string
	for _, s := range d.scheduled {
		if holder := d.locks[lock{ofBatch, s.batch}]; s.batch != "" && s.isDue() && (holder == nil || holder == tx) {
			names = append(names, s.batch)
		}
	}
	return names
}

// isDue reports whether anything is.
func (d *database) isDue() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return slices.ContainsFunc(d.scheduled, (*scheduled).isDue)
}

// waiting are the scopes of what waits, of tags and namespaces and of the entities named.
func (d *database) waiting(namespace string, ids []string, limit int) []coherence.Scope {
	d.mu.Lock()
	defer d.mu.Unlock()
	found := map[coherence.Scope]bool{}
	for _, s := range d.scheduled {
		wide := s.scope.Kind == coherence.KindTag || s.scope.Kind == coherence.KindNamespace
		if len(found) < limit && (wide || s.scope.Namespace == namespace && slices.Contains(ids, s.scope.ID)) {
			found[s.scope] = true
		}
	}
	return slices.Collect(maps.Keys(found))
}

// batches are those with something in them, by name.
func (d *database) batches() []node.BatchStats {
	d.mu.Lock()
	defer d.mu.Unlock()
	byName := map[string]*node.BatchStats{}
	for _, s := range d.scheduled {
		if s.batch == "" {
			continue
		}
		b := byName[s.batch]
		if b == nil {
			b = &node.BatchStats{Name: s.batch, Since: s.at}
			byName[s.batch] = b
		}
		b.Entries++
		if !s.due.IsZero() && (b.Due.IsZero() || s.due.Before(b.Due)) {
			b.Due = s.due
		}
	}
	all := []node.BatchStats{}
	for _, b := range byName {
		all = append(all, *b)
	}
	slices.SortFunc(all, func(a, b node.BatchStats) int { return strings.Compare(a.Name, b.Name) })
	return all[:min(len(all), node.MaxBatches)]
}
