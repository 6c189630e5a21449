package devstack_test

import (
	"testing"

	"github.com/freshet-cache/freshet/internal/devstack"
)

func TestPortBlocksDoNotOverlap(t *testing.T) {
	const blocks = 100
	seen := make(map[int]bool)
	for range blocks {
		first, guard, err := devstack.Reserve()
		if err != nil {
			t.Fatal(err)
		}
		defer guard.Close()
		if seen[first] {
			t.Fatalf("block %d was given out twice", first)
		}
		seen[first] = true
	}
}
