package tiers

import "context"

// LookupMany reads several ids; the results stand in the order of the ids. All that cannot be answered
// from L1 travels together. An error is that of the first id that failed; its result and those of
// others that failed are zero, with Tier 0.
func (c *Cache[V]) LookupMany(ctx context.Context, ids []string, want Want) ([]Result[V], error) {
	results := make([]Result[V], len(ids))
	poll := c.Tracker.Latest()
	seen := want.Token.IsZero() || (poll != nil && want.Token.SeenBy(poll.Snapshot))
	var missing []int
	for i, id := range ids {
		if seen {
			if it, poll, now := c.hit(id, want.Budget); it != nil {
				results[i] = it.result(TierL1, true, now.Sub(max(poll.Sent, it.loaded)), now, poll)
				continue
			}
		}
		missing = append(missing, i)
	}
	if len(missing) == 0 {
		return results, nil
	}
	r := c.begin(want)
	_ = c.prove(ctx, ids[missing[0]], &r) // if it cannot be, each read below finds out by itself
	// Fetch what is not here in as few flights as possible.
	flights := make(map[int]*flight[V], len(missing))
	var cold []string
	var at []int
	for _, i := range missing {
		if it, _ := c.l1.get(ids[i]); (it == nil || !c.revalidate(it)) && c.checkID(ids[i]) == nil {
			cold, at = append(cold, ids[i]), append(at, i)
		}
	}
	for n, f := range c.flyAll(cold) {
		flights[at[n]] = f
	}
	var failed error
	for _, i := range missing {
		if f := flights[i]; f != nil && f.wait(ctx) == nil {
			if answer, ok := c.label(f.item, f.item.tier, &r); ok {
				c.counts.slow.Add(1)
				results[i], _ = c.count(answer, nil)
				continue
			}
		}
		var err error
		if results[i], err = c.lookup(ctx, ids[i], &r); err != nil && failed == nil {
			failed = err
		}
	}
	return results, failed
}
