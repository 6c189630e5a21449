package cluster

import "github.com/cespare/xxhash/v2"

// Owner returns the member that owns the entity, any text that names it; false when there are no
// members. It is rendezvous hashing (highest random weight: Thaler and Ravishankar, "Using
// name-based mappings to increase hit rates", 1998): every member gets a weight for the entity from
// its ID alone, and the heaviest owns it. So the order of members does not matter, each owns about
// an equal share, and when one leaves or joins only the entities that it owned or will own move.
//
// Two replicas agree on the owner as far as their views do; nothing correct may depend on it.
func Owner(members []Member, entity string) (Member, bool) {
	if len(members) == 0 {
		return Member{}, false
	}
	seed := xxhash.Sum64String(entity)
	owner, heaviest := 0, weight(seed, members[0].ID)
	for i := 1; i < len(members); i++ {
		w := weight(seed, members[i].ID)
		if w > heaviest || w == heaviest && members[i].ID < members[owner].ID {
			owner, heaviest = i, w
		}
	}
	return members[owner], true
}

// weight is the hash of the pair (entity, member ID); the entity comes as a seed so that it is read
// once for all members and the border between the two needs no mark.
func weight(entity uint64, id string) uint64 {
	var d xxhash.Digest
	d.ResetWithSeed(entity)
	_, _ = d.WriteString(id) // never fails
	return d.Sum64()
}
