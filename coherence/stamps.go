package coherence

import (
	"slices"
	"sync/atomic"
)

// stampBits: 2^16 stamps, 512 KiB.
const stampBits = 16

// Stamps let a reader learn, without a lock, that something may have changed since it last looked: a
// scope's stamp grows whenever the scope changes. Scopes share stamps, so a stamp that grew means
// "look again", never "changed"; one that did not grow means "nothing changed".
type Stamps struct {
	// cells: the first is that of all namespaces, of any tag, of everything, of flushes and of doubts; a
	// hash names the others.
	cells [1 << stampBits]atomic.Uint64
}

// stampOf is the place of a scope's stamp: its hash's upper bits, which a view has from its entity and
// which are 0 for a namespace, for any tag and for everything.
func stampOf(scope ScopeHash) uint32 { return uint32(scope >> (64 - stampBits)) }

// StampSet is where the stamps of one value's scopes are.
type StampSet struct {
	first uint32
	rest  []uint32
}

// StampsOf is the set of the scopes' stamps.
func StampsOf(scopes []ScopeHash) StampSet {
	places := make([]uint32, 0, len(scopes))
	for _, scope := range scopes {
		if place := stampOf(scope); place != 0 && !slices.Contains(places, place) {
			places = append(places, place)
		}
	}
	if len(places) == 0 {
		return StampSet{}
	}
	return StampSet{first: places[0], rest: slices.Clip(places[1:])}
}

// Sum is the sum of the set's stamps. They only grow, so the sum is the same as before iff none has
// grown.
func (s *Stamps) Sum(set *StampSet) uint64 {
	sum := s.cells[0].Load() + s.cells[set.first].Load()
	for _, place := range set.rest {
		sum += s.cells[place].Load()
	}
	return sum
}

func (s *Stamps) raise(scope ScopeHash) { s.cells[stampOf(scope)].Add(1) }

func (s *Stamps) flush() { s.cells[0].Add(1) }
