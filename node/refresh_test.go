package node

import (
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// I6: of all replicas one refreshes, also without Redis and when the source is slow; and no read waits for it
// as long as the load takes less than what the entry has left.
func TestI6OneRefresher(t *testing.T) {
	const ttl, ahead = 2 * time.Second, 0.5
	for name, prepare := range map[string]func(w *world){
		"lease": func(*world) {},
		"owner": func(w *world) {
			for _, v := range w.replicas {
				v.l2.Down(true)
			}
		},
		"slow source": func(w *world) { w.slow(500 * time.Millisecond) },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorldOf(t, 2, CacheConfig[row]{
					TTL: ttl, NegativeTTL: ttl, Refresh: Refresh{Ahead: ahead},
					NoVerify: true, // whose loads would be counted, too
				})
				rest(3 * time.Second) // members see each other
				for _, v := range w.replicas {
					for key := range uint64(worldKeys) {
						v.read(t.Context(), key, 0, Token{}, time.Second, 0)
					}
				}
				prepare(w)
				var readers sync.WaitGroup
				for key, began := uint64(0), w.now(); w.now()-began < 20*time.Second; key = (key + 1) % worldKeys {
					rest(3 * time.Millisecond)
					for _, v := range w.replicas {
						readers.Go(func() {
							asked := w.now()
							e, err := v.rows.Lookup(t.Context(), rowID(key))
							if e.Tier != TierL1 || w.now() != asked {
								t.Errorf("at %v on replica %d: %+v, %v after %v", asked, v.number, e, err, w.now()-asked)
							}
						})
					}
					readers.Wait()
				}
				w.end()
				for key, loads := range w.loads {
					if len(loads) < 10 {
						t.Errorf("key %d was loaded at %v", key, loads)
					}
					for i := 1; i < len(loads); i++ {
						if d := loads[i] - loads[i-1]; d < time.Duration(0.9*ahead*float64(ttl)) {
							t.Errorf("key %d was loaded twice within %v, at %v", key, d, loads[i])
						}
					}
				}
			})
		})
	}
}
