package cluster

import (
	"cmp"
	"slices"
	"strings"

	"github.com/cespare/xxhash/v2"
)

const (
	// relayShare is how many members share one relay.
	relayShare = 64
	// minRelays is how many there are at least, so that one that dies takes half with it at most.
	minRelays = 2
)

// Relay returns the member by which the member of the given ID polls; false when it polls for itself: it
// relays, or there are no more than from members. One member in 64, but at least two, relay; which ones,
// and for whom, is rendezvous hashing as in [Owner]. Nothing correct depends on it.
func Relay(members []Member, id string, from int) (Member, bool) {
	if len(members) <= from || len(members) <= minRelays {
		return Member{}, false
	}
	seed := xxhash.Sum64String("relay")
	ranked := slices.Clone(members)
	slices.SortFunc(ranked, func(a, b Member) int {
		return cmp.Or(cmp.Compare(weight(seed, b.ID), weight(seed, a.ID)), strings.Compare(a.ID, b.ID))
	})
	relays := ranked[:max(minRelays, (len(ranked)+relayShare-1)/relayShare)]
	if slices.ContainsFunc(relays, func(m Member) bool { return m.ID == id }) {
		return Member{}, false
	}
	return Owner(relays, "poll:"+id)
}
