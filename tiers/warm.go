package tiers

import "context"

// Cold returns those of the ids that a plain hit within the budget would not find in L1 now.
func (c *Cache[V]) Cold(ids []string, want Want) []string {
	var cold []string
	for _, id := range ids {
		if it, _, _, _ := c.seek(id, want.Budget); it == nil {
			cold = append(cold, id)
		}
	}
	return cold
}

// Warmed is what became of ids that were to be in L1 before anybody reads them.
type Warmed struct {
	Loaded, Failed int
	Bytes          int64 // accounted in L1 to those loaded
}

// Warm reads the ids so that they are in L1, on the way that [Cache.LookupMany] takes, but uncounted: nobody
// waits for the answers. The error is that of the first id that failed.
func (c *Cache[V]) Warm(ctx context.Context, ids []string, want Want) (Warmed, error) {
	var w Warmed
	if len(ids) == 0 {
		return w, nil
	}
	results := make([]Result[V], len(ids))
	places := make([]int, len(ids))
	for i := range ids {
		places[i] = i
	}
	r := c.begin(want)
	r.uncounted = true
	err := c.lookupMany(ctx, ids, places, results, &r)
	for i := range results {
		if results[i].Tier == 0 {
			w.Failed++
			continue
		}
		w.Loaded++
		if it, _ := c.l1.get(ids[i]); it != nil {
			w.Bytes += it.size
		}
	}
	return w, err
}
