package coherence

import "sync/atomic"

// stampBits: 2^16 stamps, 512 KiB.
const stampBits = 16

// Stamp is the place of a scope in a table of [Stamps].
type Stamp uint32

// Stamps let a reader learn, without a lock, that something may have changed since it last looked: a
// scope's stamp grows whenever the scope changes. Scopes share stamps, so a stamp that grew means
// "look again", never "changed"; one that did not grow means "nothing changed".
type Stamps struct {
	cells [1 << stampBits]atomic.Uint64
	// flushes grows when everything may have changed.
	flushes atomic.Uint64
}

// StampOf is the scope's place.
func StampOf(scope ScopeHash) Stamp { return Stamp(scope >> (64 - stampBits)) }

// Sum is the sum of the stamps. They only grow, so the sum is the same as before iff none has grown.
func (s *Stamps) Sum(stamps []Stamp) uint64 {
	sum := s.flushes.Load()
	for _, stamp := range stamps {
		sum += s.cells[stamp].Load()
	}
	return sum
}

func (s *Stamps) raise(scope ScopeHash) { s.cells[StampOf(scope)].Add(1) }

func (s *Stamps) flush() { s.flushes.Add(1) }
