package cluster_test

import (
	"bufio"
	_ "embed"
	"fmt"
	"strings"
	"testing"

	"github.com/freshet-cache/freshet/cluster"
)

// knownSlots has a line per key, quoted as in Go, with the answer of redis-server's CLUSTER KEYSLOT.
//
//go:embed testdata/slots.txt
var knownSlots string

func TestSlotOfKnownKeys(t *testing.T) {
	lines := bufio.NewScanner(strings.NewReader(knownSlots))
	n := 0
	for ; lines.Scan(); n++ {
		var key string
		var want uint16
		if _, err := fmt.Sscanf(lines.Text(), "%q %d", &key, &want); err != nil {
			t.Fatalf("line %d: %v", n+1, err)
		}
		if got := cluster.Slot(key); got != want {
			t.Errorf("Slot(%q) = %d, want %d", key, got, want)
		}
	}
	if n < 40 {
		t.Errorf("only %d known keys", n)
	}
	// The check value of CRC-16/XMODEM, as every catalogue of CRCs has it.
	if got := cluster.Slot("123456789"); got != 0x31c3%cluster.Slots {
		t.Errorf("Slot of the check text = %#x, want 0x31c3", got)
	}
}

// slowSlot is the dumb twin of Slot: bit by bit, as the specifications say it.
func slowSlot(key []byte) uint16 {
	for i := range key {
		if key[i] != '{' {
			continue
		}
		for j := i + 1; j < len(key); j++ {
			if key[j] == '}' {
				if j > i+1 {
					key = key[i+1 : j]
				}
				break
			}
		}
		break
	}
	var crc uint16
	for _, c := range key {
		crc ^= uint16(c) << 8
		for range 8 {
			carry := crc&0x8000 != 0
			crc <<= 1
			if carry {
				crc ^= 0x1021
			}
		}
	}
	return crc % 16384
}

func FuzzSlotAgreesWithItsTwin(f *testing.F) {
	for _, key := range []string{"", "{}", "a{b}c", "{{a}}", "a{}{b}", "}{", "{a", "shop:v3:{product:42}:detail", "\x00\xff{\xfe}"} {
		f.Add([]byte(key))
	}
	f.Fuzz(func(t *testing.T, key []byte) {
		if got, want := cluster.Slot(string(key)), slowSlot(key); got != want {
			t.Errorf("Slot(%q) = %d, want %d", key, got, want)
		}
	})
}

func BenchmarkSlot(b *testing.B) {
	for b.Loop() {
		cluster.Slot("shop:v3:{product:0f8fad5b-d9cb-469f-a165-70867728950e}:detail")
	}
}
