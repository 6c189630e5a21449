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
	ctx, span := c.spans.Read(ctx, c.config.Namespace, c.config.View, len(missing))
	err := c.lookupMany(ctx, ids, missing, results, &r)
	endSpan(span, err)
	return results, err
}

// lookupMany is lookup for the ids at the given places, whose flights go together. It fills in their
// results and returns the error of the first that fails.
func (c *Cache[V]) lookupMany(ctx context.Context, ids []string, places []int, results []Result[V], r *reading) (failed error) {
	end := func(place int, answer Result[V], err error) {
		if !r.uncounted {
			answer, err = c.done(r, answer, err)
		}
		if results[place] = answer; err != nil && failed == nil {
			failed = err
		}
	}
	misses := map[int]Miss{} // place -> why L1 was not enough
	endMissed := func(place int, f *flight[V], answer Result[V], err error) {
		if !r.uncounted {
			c.ended(ids[place], misses[place], f, &answer, err)
		}
		end(place, answer, err)
	}
	unproven := c.prove(ctx, ids[places[0]], r)
	var open, graced []int // places without an answer, and with one in its grace
	for _, place := range places {
		if err := c.checkID(ids[place]); err != nil {
			end(place, Result[V]{}, err)
		} else if answer, ok := c.near(ids[place], r, unproven); ok && answer.Fresh {
			end(place, answer, nil)
		} else {
			misses[place] = c.missedL1(ids[place], r, unproven)
			switch {
			case !ok:
				open = append(open, place)
				continue
			case answer.Grace > 0:
				graced = append(graced, place)
			}
			endMissed(place, nil, answer, nil)
		}
	}
	c.flyAll(c.spans.Behind(ctx), ids, graced, r)
	last := make(map[int]*flight[V], len(open)) // place -> the flight before
	for range maxAttempts {
		flights := c.flyAll(ctx, ids, open, r)
		var again []int
		for n, place := range open {
			f := flights[n]
			if answer, ok, err := c.await(ctx, f, last[place].brought(), r); ok {
				endMissed(place, f, answer, nil)
			} else if err != nil {
				answer, err := c.giveUp(ids[place], last[place].brought(), r, err, unproven)
				endMissed(place, f, answer, err)
			} else if answer, ok := c.label(f.item, f.item.tier, r); ok {
				endMissed(place, f, answer, nil)
			} else {
				last[place] = f
				again = append(again, place)
			}
		}
		if open = again; len(open) == 0 || unproven != nil {
			break
		}
		if unproven = c.proveAgain(ctx, ids[open[0]], last[open[0]].item, r); unproven != nil {
			break
		}
	}
	for _, place := range open {
		answer, err := c.giveUp(ids[place], last[place].brought(), r, nil, unproven)
		endMissed(place, last[place], answer, err)
	}
	return failed
}
