package trace

import "fmt"

// MaxIDs bounds a [Mapping]: it keeps one entry (about 40 bytes) for each id in use.
const MaxIDs = 1 << 24

// Mapping puts trace keys onto the ids 1..n: the first n distinct keys get an id each, in an order
// that is scrambled, so that keys first seen together are not neighbours in the catalogue. When all
// are given, further keys share ids by hash: the mapping stays stable, its memory bounded.
//
// It is stable for one trace from its start: the same keys in the same order with the same seed
// give the same ids.
type Mapping struct {
	n, step, shift uint64
	ranks          map[uint64]uint32 // key -> rank of its first appearance, at most n entries
	shared         uint64
}

// NewMapping maps onto 1..n, with n in 1..[MaxIDs].
func NewMapping(n int64, seed uint64) (*Mapping, error) {
	if n < 1 || n > MaxIDs {
		return nil, fmt.Errorf("trace mapping: n is %d: want 1..%d ids", n, MaxIDs)
	}
	m := &Mapping{n: uint64(n), shift: mix(seed) % uint64(n), ranks: make(map[uint64]uint32)}
	// rank -> rank*step+shift is one to one modulo n when step and n have no common divisor; a step
	// near n/golden ratio keeps neighbours far apart.
	for m.step = uint64(float64(n)*0.6180339887) | 1; gcd(m.step, m.n) != 1; m.step += 2 {
	}
	return m, nil
}

// ID is the id of key, 1..n.
func (m *Mapping) ID(key uint64) int64 {
	rank, seen := m.ranks[key]
	switch {
	case seen:
	case uint64(len(m.ranks)) < m.n:
		rank = uint32(len(m.ranks))
		m.ranks[key] = rank
	default:
		m.shared++
		rank = uint32(mix(key) % m.n)
	}
	return int64((uint64(rank)*m.step+m.shift)%m.n) + 1
}

// Used is how many ids have a key of their own.
func (m *Mapping) Used() int { return len(m.ranks) }

// Shared is how many accesses were of keys that had to share another key's id, because there were
// more distinct keys than ids.
func (m *Mapping) Shared() uint64 { return m.shared }

func gcd(a, b uint64) uint64 {
	for b != 0 {
		a, b = b, a%b
	}
	return a
}

// mix is the finaliser of SplitMix64 (Steele, Lea and Flood, OOPSLA 2014).
func mix(x uint64) uint64 {
	x += 0x9E3779B97F4A7C15
	x = (x ^ x>>30) * 0xBF58476D1CE4E5B9
	x = (x ^ x>>27) * 0x94D049BB133111EB
	return x ^ x>>31
}
