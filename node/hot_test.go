package node

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/freshet-cache/freshet/cluster"
	"github.com/freshet-cache/freshet/tiers"
)

// What several replicas read counts together; what none was seen to read is in the order of the best place.
func TestMergeHot(t *testing.T) {
	answers := [][]tiers.Hot{
		{{ID: "a", Reads: 1<<32 - 1}, {ID: "b", Reads: 50}, {ID: "z"}, {ID: "x"}},
		{{ID: "c", Reads: 70}, {ID: "b", Reads: 30}, {ID: "a", Reads: 2}, {ID: "x"}},
	}
	if got := mergeHot(answers, 10); !slices.Equal(got, []string{"a", "b", "c", "z", "x"}) {
		t.Errorf("%q", got)
	}
	if got := mergeHot(answers, 2); !slices.Equal(got, []string{"a", "b"}) {
		t.Errorf("of two: %q", got)
	}
}

// Those are asked first that have run longest, a few at once and not for ever.
func TestOldest(t *testing.T) {
	var members []cluster.Member
	for i := range 20 {
		members = append(members, cluster.Member{ID: fmt.Sprint(i), Boot: uint64(100 - i)})
	}
	asked := map[uint64]bool{100: true}
	var boots []uint64
	for {
		peers := oldest(members, asked)
		if len(peers) == 0 {
			break
		}
		if len(peers) > enoughPeers {
			t.Errorf("%d at once", len(peers))
		}
		for _, p := range peers {
			boots = append(boots, p.Boot)
		}
	}
	if want := []uint64{81, 82, 83, 84, 85, 86, 87, 88, 89}; !slices.Equal(boots, want) {
		t.Errorf("asked %v, want %v", boots, want)
	}
}

// An answer has as many ids as have room in a message.
func TestHotAnswerIsBounded(t *testing.T) {
	var hot []tiers.Hot
	for i := range 3000 {
		hot = append(hot, tiers.Hot{ID: fmt.Sprintf("%d %s", i, strings.Repeat("x", 500)), Reads: uint32(i)})
	}
	b := encodeHot(hot)
	got, err := parseHot(b, len(hot))
	if err != nil || len(b) > maxHotAnswer || len(b) < maxHotAnswer-1000 || !slices.Equal(got, hot[:len(got)]) {
		t.Errorf("%d bytes of %d ids: %v", len(b), len(got), err)
	}
	if _, err := parseHot(b, 10); err == nil {
		t.Error("an answer of more than was asked for was taken")
	}
}

// Whatever comes from the network is an error or what was sent, and no request is for more than is allowed.
func FuzzHot(f *testing.F) {
	f.Add(encodeHot([]tiers.Hot{{ID: "42", Reads: 7}, {ID: "?page=1"}}), 10)
	f.Add(appendHotRequest(nil, cacheName{"product", "detail"}, 10_000), 10)
	f.Add([]byte(hotMagic+"\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01\x00"), 10)
	f.Add([]byte(hotMagic+"\x01\xff"), 0)
	f.Fuzz(func(t *testing.T, b []byte, limit int) {
		if hot, err := parseHot(b, limit); err == nil {
			if len(hot) > max(limit, 0) {
				t.Errorf("%d ids, %d were asked for", len(hot), limit)
			}
			if again, err := parseHot(encodeHot(hot), limit); err != nil || !slices.Equal(again, hot) {
				t.Errorf("%v became %v, %v", hot, again, err)
			}
		}
		if name, limit, err := parseHotRequest(b); err == nil {
			if limit < 0 || limit > maxWarmUp {
				t.Errorf("a request for %d ids", limit)
			}
			if n, l, err := parseHotRequest(appendHotRequest(nil, name, limit)); err != nil || n != name || l != limit {
				t.Errorf("%v, %d became %v, %d, %v", name, limit, n, l, err)
			}
		}
	})
}
