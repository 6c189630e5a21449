package coherence

import (
	"maps"
	"slices"
	"time"
)

// MaxGrace bounds the grace of a change.
const MaxGrace = time.Hour

const (
	// maxGraced bounds the changes in their grace that a directory holds, and keepGraced those of one scope.
	// What finds no room has no grace.
	maxGraced  = 1 << 12
	keepGraced = 8
)

// Grace is what is known of a value that lacks nothing but changes in their grace: its writers allow
// that it is served, labelled, while it is loaded anew.
type Grace struct {
	Since Instant // the value reflects every commit before
	Until Instant // when the first of the graces is over
}

// graced is a change in its grace.
type graced struct {
	xid uint64
	Grace
	learned uint32 // as in cell
}

// allow takes a change of the scope that was committed after the instant, with its grace. It reports
// false when the change has none: it is over by now, or there is no room.
func (d *Directory) allow(scope ScopeHash, xid uint64, since Instant, grace time.Duration, now Instant) bool {
	g := graced{xid, Grace{since, since.Add(min(grace, MaxGrace))}, momentOf(d.now)}
	if g.Until <= now {
		return false
	}
	all := d.graced[scope]
	for i := range all {
		if all[i].xid == xid {
			all[i].Until = min(all[i].Until, g.Until)
			return true
		}
	}
	if d.gracedCount >= maxGraced || len(all) >= keepGraced {
		return false
	}
	d.gracedCount++
	d.graced[scope] = append(all, g)
	return true
}

// CheckGrace reports whether a value read under the snapshot is valid for the scope but for changes
// in their grace at the instant. The zero Grace says that it lacks none.
func (d *Directory) CheckGrace(scope ScopeHash, value Snapshot, now Instant) (Grace, bool) {
	if d.judge(scope, value) != NotRefused {
		return Grace{}, false
	}
	var all Grace
	for _, g := range d.graced[scope] {
		if value.Sees(g.xid) {
			continue
		}
		if now >= g.Until {
			return Grace{}, false
		}
		all = all.and(g.Grace)
	}
	return all, true
}

// and is the grace of a value that lacks the changes of both; the zero Grace lacks none.
func (g Grace) and(o Grace) Grace {
	switch {
	case g.Until == 0:
		return o
	case o.Until == 0:
		return g
	}
	return Grace{min(g.Since, o.Since), min(g.Until, o.Until)}
}

// lacksGraced reports whether the value lacks a change in its grace, or one that was.
func (d *Directory) lacksGraced(scope ScopeHash, value Snapshot) bool {
	if d.gracedCount == 0 {
		return false
	}
	return slices.ContainsFunc(d.graced[scope], func(g graced) bool { return !value.Sees(g.xid) })
}

// lapse makes changes whose grace is over changes like any other, so that there is room. To a check they
// are from that instant on.
func (d *Directory) lapse(now Instant) {
	if d.gracedCount == 0 {
		return
	}
	// In an order that does not depend on the map: which cells are dropped must repeat in a simulation.
	for _, scope := range slices.Sorted(maps.Keys(d.graced)) {
		all := d.graced[scope]
		left := all[:0]
		for _, g := range all {
			if g.Until > now {
				left = append(left, g)
				continue
			}
			d.gracedCount--
			d.enforce(scope, g.xid, g.learned)
		}
		if d.graced[scope] = left; len(left) == 0 {
			delete(d.graced, scope)
		}
	}
}

// enforce records a change that may have been known for long, since the moment learned.
func (d *Directory) enforce(scope ScopeHash, xid uint64, learned uint32) {
	if !d.latest.Sees(xid) {
		d.Raise(scope, xid)
		return
	}
	c := d.cell(scope, d.latest)
	if c == nil || c.blockedAt != 0 {
		return // the floor that the set has now, or the cell gets, sees the change
	}
	if (c.floor == nil || !c.floor.Sees(xid)) && !slices.Contains(c.xids[:c.n], xid) {
		if c.n == keep {
			c.sink(d.latest)
		}
		c.learned = learned
		switch {
		case c.n == keep: // the others are not seen by any poll yet
			c.floor = d.latest
		case c.floor == nil || !c.floor.Sees(xid): // not sunk below the same floor
			c.xids[c.n] = xid
			c.n++
		}
	}
	if c.seenBy(d.latest) {
		c.settled = d.latest
	} else {
		d.queue(c)
	}
}
