package cluster_test

import (
	"fmt"
	"testing"

	"github.com/freshet-cache/freshet/cluster"
)

// Few members poll for themselves; of many, a few relay, each for about as many.
func TestRelay(t *testing.T) {
	const from = 32
	for _, n := range []int{1, 2, 3, 32, 33, 64, 128, 129, 1000} {
		var members []cluster.Member
		for i := range n {
			members = append(members, cluster.Member{ID: fmt.Sprintf("m%04d", i)})
		}
		askers, direct := map[string]int{}, map[string]bool{}
		for _, m := range members {
			if relay, ok := cluster.Relay(members, m.ID, from); ok {
				askers[relay.ID]++
			} else {
				direct[m.ID] = true
			}
		}
		want := n
		if n > from {
			want = max(2, (n+63)/64)
		}
		if len(direct) != want {
			t.Errorf("of %d members %d poll for themselves, want %d", n, len(direct), want)
		}
		for relay, count := range askers {
			if !direct[relay] {
				t.Errorf("of %d members %s relays and is relayed", n, relay)
			}
			if count > 128 {
				t.Errorf("of %d members %s relays for %d", n, relay, count)
			}
		}
	}
	if _, ok := cluster.Relay(nil, "a", 0); ok {
		t.Error("nobody relays")
	}
}
