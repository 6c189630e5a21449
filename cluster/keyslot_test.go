package cluster_test

import (
	"bufio"
	"context"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"github.com/redis/rueidis"

	"github.com/freshet-cache/freshet/cluster"
	"github.com/freshet-cache/freshet/internal/devstack"
)

// The stack is started here and not in TestMain, which each worker of go test -fuzz runs as well.
func TestSlotAgreesWithRedis(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	stack, err := devstack.Start(ctx, devstack.Options{Redis: true})
	if err != nil {
		t.Fatal("this test needs a real Redis Cluster: ", err)
	}
	defer func() {
		if err := stack.Close(); err != nil {
			t.Error(err)
		}
	}()
	client, err := rueidis.NewClient(rueidis.ClientOption{
		InitAddress:       stack.Redis.Addrs()[:1],
		ForceSingleClient: true, // any node knows the slot of any key
		DisableCache:      true,
	})
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()

	keys := []string{}
	for lines := bufio.NewScanner(strings.NewReader(knownSlots)); lines.Scan(); {
		var key string
		if _, err := fmt.Sscanf(lines.Text(), "%q", &key); err != nil {
			t.Fatal(err)
		}
		keys = append(keys, key)
	}
	random := rand.New(rand.NewPCG(1, 2))
	for range 10_000 {
		keys = append(keys, nastyKey(random))
	}
	shop := shopKeys(t)
	for range 5_000 {
		key, err := shop.Entity(cluster.Generation{Global: random.Uint32(), Namespace: random.Uint32()}, "product", "x"+nastyKey(random), "detail")
		if err != nil {
			t.Fatal(err)
		}
		keys = append(keys, key, cluster.Lease(key))
	}

	commands := make(rueidis.Commands, len(keys))
	for i, key := range keys {
		commands[i] = client.B().Arbitrary("CLUSTER", "KEYSLOT").Args(key).Build()
	}
	for i, answer := range client.DoMulti(ctx, commands...) {
		want, err := answer.AsInt64()
		if err != nil {
			t.Fatalf("CLUSTER KEYSLOT %q: %v", keys[i], err)
		}
		if got := cluster.Slot(keys[i]); int64(got) != want {
			t.Errorf("Slot(%q) = %d, want %d", keys[i], got, want)
		}
	}
}

// nastyKey returns up to 100 bytes of which many are braces, and the others anything.
func nastyKey(random *rand.Rand) string {
	const marks = "{}{}{}:%?\x00\r\n \xff"
	b := make([]byte, random.IntN(101))
	for i := range b {
		if b[i] = byte(random.Uint32()); random.IntN(3) == 0 {
			b[i] = marks[random.IntN(len(marks))]
		}
	}
	return string(b)
}
