package cluster

import (
	"slices"
	"strings"
	"time"
)

// table is what one replica knows of the others: the pure part of Membership. It has no clock, lock
// or goroutine; the time is passed in and must not go back.
//
// Heartbeats may be lost, doubled, late and out of order. Of one member only news counts: a later
// boot, or a later sequence number of the same boot. A member that announced its leaving is
// remembered for one more expire, so that a heartbeat overtaken by the announcement does not bring it
// back; one that comes even later shows it again for at most expire.
type table struct {
	self   Member
	expire time.Duration // a member silent for this long is gone
	limit  int           // members, self included and those that left but are remembered

	number uint64            // View.Number
	others map[string]*other // member ID -> what was heard of it last
}

type other struct {
	member Member
	seq    uint64
	heard  time.Time // when the last news came
	left   bool      // it announced its leaving: remembered, but not in the view
}

func newTable(self Member, expire time.Duration, limit int) *table {
	return &table{self: self, expire: expire, limit: limit, number: 1, others: map[string]*other{}}
}

// outcome says what a heartbeat meant to the table.
type outcome uint8

const (
	noted    outcome = iota // news of a member, which changes nothing about who is in the view
	joined                  // the member is new in the view, or new with this boot or address
	departed                // the member left the view
	late                    // no news: doubled, out of order, or of an earlier boot
	crowded                 // of a new member, for which there is no room
	echo                    // of this very run
	conflict                // of another run under this replica's own ID
)

func (t *table) hear(h heartbeat, now time.Time) outcome {
	if h.member.ID == t.self.ID {
		if h.member.Boot == t.self.Boot {
			return echo
		}
		return conflict
	}
	o := t.others[h.member.ID]
	if o == nil {
		if !t.makeRoom() {
			return crowded
		}
		o = &other{left: true} // as if it had left before its first boot
		t.others[h.member.ID] = o
	}
	if h.member.Boot < o.member.Boot || h.member.Boot == o.member.Boot && (o.left || h.seq <= o.seq) {
		return late
	}
	before := *o
	*o = other{member: h.member, seq: h.seq, heard: now, left: h.leaving}
	switch {
	case before.left && h.leaving:
		return noted
	case h.leaving:
		t.number++
		return departed
	case before.left || before.member.Boot != o.member.Boot || before.member.Address != o.member.Address:
		t.number++
		return joined
	}
	return noted
}

// makeRoom makes sure that one more member fits, at the cost of forgetting the one that left longest
// ago if need be; false when all the room is taken by members of the view.
func (t *table) makeRoom() bool {
	if 1+len(t.others) < t.limit {
		return true
	}
	var oldest *other
	for _, o := range t.others {
		if o.left && (oldest == nil || o.heard.Before(oldest.heard)) {
			oldest = o
		}
	}
	if oldest == nil {
		return false
	}
	delete(t.others, oldest.member.ID)
	return true
}

// expireSilent removes the members of the view that were silent for too long and returns them, and
// forgets those that left long enough ago.
func (t *table) expireSilent(now time.Time) (silent []Member) {
	for id, o := range t.others {
		if now.Sub(o.heard) < t.expire {
			continue
		}
		delete(t.others, id)
		if !o.left {
			silent = append(silent, o.member)
		}
	}
	if len(silent) > 0 {
		t.number++
	}
	return silent
}

// nextExpiry returns the earliest time at which expireSilent has something to do unless something is
// heard before; atMost if that is earlier.
func (t *table) nextExpiry(atMost time.Time) time.Time {
	next := atMost
	for _, o := range t.others {
		if at := o.heard.Add(t.expire); at.Before(next) {
			next = at
		}
	}
	return next
}

func (t *table) view() *View {
	members := make([]Member, 1, 1+len(t.others))
	members[0] = t.self
	for _, o := range t.others {
		if !o.left {
			members = append(members, o.member)
		}
	}
	slices.SortFunc(members, func(a, b Member) int { return strings.Compare(a.ID, b.ID) })
	return &View{Number: t.number, Members: members}
}
