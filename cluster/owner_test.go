package cluster_test

import (
	"encoding/binary"
	"fmt"
	"math/bits"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/cespare/xxhash/v2"

	"github.com/freshet-cache/freshet/cluster"
)

func replicas(n int) []cluster.Member {
	members := make([]cluster.Member, n)
	for i := range members {
		members[i] = cluster.Member{ID: fmt.Sprintf("shop-%d", i), Boot: 1}
	}
	return members
}

func owners(t *testing.T, members []cluster.Member, entities int) []string {
	t.Helper()
	ids := make([]string, entities)
	for i := range ids {
		m, ok := cluster.Owner(members, fmt.Sprintf("product:%d", i))
		if !ok {
			t.Fatal("no owner among members")
		}
		ids[i] = m.ID
	}
	return ids
}

func TestOwnerOfNoMembers(t *testing.T) {
	if m, ok := cluster.Owner(nil, "product:42"); ok || m != (cluster.Member{}) {
		t.Errorf("Owner = %+v, %v; want none", m, ok)
	}
}

// The choice is part of the protocol between replicas of different builds: it must not change.
func TestOwnerIsStable(t *testing.T) {
	members := replicas(5)
	got := owners(t, members, 12)
	want := []string{
		"shop-2", "shop-0", "shop-0", "shop-3", "shop-4", "shop-2",
		"shop-4", "shop-3", "shop-3", "shop-0", "shop-3", "shop-2",
	}
	if !slices.Equal(got, want) {
		t.Errorf("owners are %q, want %q", got, want)
	}
	for range 20 {
		rand.Shuffle(len(members), func(i, j int) { members[i], members[j] = members[j], members[i] })
		for i := range members {
			members[i].Boot, members[i].Load, members[i].Address = rand.Uint64(), rand.Uint64(), "10.0.0.1:80"
		}
		if again := owners(t, members, 12); !slices.Equal(again, got) {
			t.Fatalf("owners depend on more than the IDs: %q, then %q", got, again)
		}
	}
}

func TestOwnerIsBalanced(t *testing.T) {
	const entities = 60_000
	for _, n := range []int{2, 3, 10} {
		count := map[string]int{}
		for _, id := range owners(t, replicas(n), entities) {
			count[id]++
		}
		for id, c := range count {
			// 6 % is more than four standard deviations of the fairest coin of ten sides.
			if share := float64(c) * float64(n) / entities; share < 0.94 || share > 1.06 {
				t.Errorf("of %d members, %s has %.3f of its share", n, id, share)
			}
		}
		if len(count) != n {
			t.Errorf("only %d of %d members own anything", len(count), n)
		}
	}
}

func TestOwnerMovesOnlyWhatAMemberHad(t *testing.T) {
	const entities = 20_000
	members := replicas(7)
	before := owners(t, members, entities)
	gone := members[3].ID
	after := owners(t, slices.Delete(slices.Clone(members), 3, 4), entities)
	heirs := map[string]int{}
	for i := range before {
		switch {
		case before[i] == gone:
			heirs[after[i]]++
		case before[i] != after[i]:
			t.Fatalf("entity %d moved from %s to %s though %s left", i, before[i], after[i], gone)
		}
	}
	if len(heirs) != len(members)-1 {
		t.Errorf("the entities of %s went to %d of %d members", gone, len(heirs), len(members)-1)
	}
}

// Two IDs of one weight, made by running the last round of xxHash64 backwards.
func TestOwnerTieGoesToTheLowerID(t *testing.T) {
	const (
		prime1 = 11400714785074694791
		prime2 = 14029467366897019727
		prime4 = 9650029242287828579
		prime5 = 2870177450012600261
	)
	inverse := func(x uint64) uint64 { // modulo 2^64, by Newton's iteration
		y := x
		for range 6 {
			y *= 2 - x*y
		}
		return y
	}
	round := func(k uint64) uint64 { return bits.RotateLeft64(k*prime2, 31) * prime1 }
	unround := func(r uint64) uint64 {
		return bits.RotateLeft64(r*inverse(prime1), -31) * inverse(prime2)
	}
	half := func(k uint64) uint64 { // the state after the first 8 of 16 bytes
		return bits.RotateLeft64((xxhash.Sum64String("product:42")+prime5+16)^round(k), 27)*prime1 + prime4
	}
	text := func(k1, k2 uint64) string {
		return string(binary.LittleEndian.AppendUint64(binary.LittleEndian.AppendUint64(nil, k1), k2))
	}
	const k1, k2, other1 = 1, 2, 3
	tied := []cluster.Member{{ID: text(k1, k2)}, {ID: text(other1, unround(half(k1)^half(other1)^round(k2)))}}
	weight := func(id string) uint64 {
		d := xxhash.NewWithSeed(xxhash.Sum64String("product:42"))
		_, _ = d.WriteString(id)
		return d.Sum64()
	}
	if weight(tied[0].ID) != weight(tied[1].ID) || tied[0].ID >= tied[1].ID {
		t.Fatal("the two IDs are no tie")
	}
	for range 2 {
		if m, _ := cluster.Owner(tied, "product:42"); m.ID != text(k1, k2) {
			t.Errorf("the tie went to %q, want the lower ID", m.ID)
		}
		tied[0], tied[1] = tied[1], tied[0]
	}
}

func TestOwnerAllocatesNothing(t *testing.T) {
	members := replicas(10)
	if n := testing.AllocsPerRun(100, func() { cluster.Owner(members, "product:42") }); n != 0 {
		t.Errorf("%v allocations, want 0", n)
	}
}

func BenchmarkOwnerOfTen(b *testing.B) {
	members := replicas(10)
	b.ReportAllocs()
	for b.Loop() {
		cluster.Owner(members, "product:42")
	}
}
