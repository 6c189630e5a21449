package trace

import (
	"encoding/binary"
	"fmt"
	"hash/fnv"
	"math"
	"math/rand/v2"
)

// Theta is the skew that YCSB uses, and the usual one of web caches.
const Theta = 0.99

// MaxZipf bounds the population of [NewZipf]: its constructor sums one term per key.
const MaxZipf = 1 << 24

// Zipf is an endless seeded source whose i-th most popular key has a share proportional to
// 1/i^theta, with theta below 1, as math/rand/v2's Zipf (s > 1) cannot have it. Keys are scrambled
// with FNV-1a as in YCSB's ScrambledZipfianGenerator, so that popular keys are not neighbours.
//
// The method is that of Gray et al., "Quickly Generating Billion-Record Synthetic Databases",
// SIGMOD 1994, which YCSB follows as well: exact for the first two ranks, an approximation by a
// closed form for the others.
type Zipf struct {
	n                       uint64
	theta, alpha, zeta, eta float64
	half                    float64 // 0.5^theta
	random                  *rand.Rand
}

// NewZipf draws from n keys (1..[MaxZipf]) with skew theta (over 0, under 1; [Theta] if unsure).
// The same arguments give the same keys.
func NewZipf(n int, theta float64, seed uint64) (*Zipf, error) {
	if n < 1 || n > MaxZipf {
		return nil, fmt.Errorf("zipf: n is %d: want 1..%d keys", n, MaxZipf)
	}
	if !(theta > 0 && theta < 1) {
		return nil, fmt.Errorf("zipf: theta is %v: want more than 0 and less than 1, usually %v", theta, Theta)
	}
	z := &Zipf{
		n:      uint64(n),
		theta:  theta,
		alpha:  1 / (1 - theta),
		zeta:   zeta(n, theta),
		half:   math.Pow(0.5, theta),
		random: rand.New(rand.NewPCG(seed, 0x667265736865_74)),
	}
	z.eta = (1 - math.Pow(2/float64(n), 1-theta)) / (1 - zeta(2, theta)/z.zeta)
	return z, nil
}

func zeta(n int, theta float64) float64 {
	sum := 0.0
	for i := 1; i <= n; i++ {
		sum += math.Pow(float64(i), -theta)
	}
	return sum
}

// Next returns the next key. The error is always nil.
func (z *Zipf) Next() (uint64, error) {
	var b [8]byte
	binary.LittleEndian.PutUint64(b[:], z.rank())
	h := fnv.New64a()
	_, _ = h.Write(b[:]) // a hash never fails
	return h.Sum64(), nil
}

// rank draws 0..n-1, 0 the most popular.
func (z *Zipf) rank() uint64 {
	u := z.random.Float64()
	switch uz := u * z.zeta; {
	case uz < 1 || z.n == 1:
		return 0
	case uz < 1+z.half || z.n == 2:
		return 1
	}
	return min(uint64(float64(z.n)*math.Pow(z.eta*u-z.eta+1, z.alpha)), z.n-1)
}
