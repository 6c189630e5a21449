package tiers

import "context"

// LookupMany reads several ids; the results stand in the order of the ids. All that cannot be answered
// from L1 travels together. An error is that of the first id that failed; its result and those of
// others that failed are zero, with Tier 0. Where the values are to be of one moment, all fail with one.
func (c *Cache[V]) LookupMany(ctx context.Context, ids []string, want Want) ([]Result[V], error) {
	if want.Consistent {
		return c.lookupTogether(ctx, ids, want)
	}
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
	return results, c.lookupMany(ctx, ids, missing, results, &r)
}

// lookupMany is lookup for the ids at the given places, whose flights go together. It fills in their
// results and returns the error of the first that fails.
func (c *Cache[V]) lookupMany(ctx context.Context, ids []string, places []int, results []Result[V], r *reading) (failed error) {
	end := func(place int, answer Result[V], err error) {
		if !r.uncounted {
			answer, err = c.count(answer, err)
		}
		if results[place] = answer; err != nil && failed == nil {
			failed = err
		}
	}
	unproven := c.prove(ctx, ids[places[0]], r)
	var open, graced []int // places without an answer, and with one in its grace
	for _, place := range places {
		if err := c.checkID(ids[place]); err != nil {
			end(place, Result[V]{}, err)
		} else if answer, ok := c.near(ids[place], r, unproven); ok {
			if answer.Grace > 0 {
				graced = append(graced, place)
			}
			end(place, answer, nil)
		} else {
			open = append(open, place)
		}
	}
	c.flyAll(ids, graced, r)
	last := make(map[int]*item[V], len(open)) // place -> what the flight before brought
	for range maxAttempts {
		flights := c.flyAll(ids, open, r)
		var again []int
		for n, place := range open {
			f := flights[n]
			if answer, ok, err := c.await(ctx, f, last[place], r); ok {
				end(place, answer, nil)
			} else if err != nil {
				answer, err := c.giveUp(ids[place], last[place], r, err, unproven)
				end(place, answer, err)
			} else if answer, ok := c.label(f.item, f.item.tier, r); ok {
				end(place, answer, nil)
			} else {
				last[place] = f.item
				again = append(again, place)
			}
		}
		if open = again; len(open) == 0 || unproven != nil {
			break
		}
		if unproven = c.proveAgain(ctx, ids[open[0]], last[open[0]], r); unproven != nil {
			break
		}
	}
	for _, place := range open {
		answer, err := c.giveUp(ids[place], last[place], r, nil, unproven)
		end(place, answer, err)
	}
	return failed
}
