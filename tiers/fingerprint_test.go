package tiers

import (
	"encoding/json"
	"math/big"
	"testing"
	"time"
)

type tree struct {
	Name     string
	Children []*tree
	Index    map[string]tree
}

type (
	left  struct{ Right *right }
	right struct{ Left *left }
)

type point struct{ X, Y int }

type secret struct{ A int }

func (secret) MarshalJSON() ([]byte, error) { return []byte("1"), nil }

type secret2 struct{ A int }

func (*secret2) UnmarshalJSON([]byte) error { return nil }

// Every one of these forms differs from all the others.
func TestFingerprintTellsFormsApart(t *testing.T) {
	forms := map[string]uint64{
		"int":              Fingerprint[int](),
		"int64":            Fingerprint[int64](),
		"string":           Fingerprint[string](),
		"any":              Fingerprint[any](),
		"bytes":            Fingerprint[[]byte](),
		"raw":              Fingerprint[json.RawMessage](),
		"number":           Fingerprint[json.Number](),
		"time":             Fingerprint[time.Time](),
		"duration pointer": Fingerprint[*time.Duration](),
		"big":              Fingerprint[big.Int](),
		"slice":            Fingerprint[[]int](),
		"array 3":          Fingerprint[[3]int](),
		"array 4":          Fingerprint[[4]int](),
		"pointer":          Fingerprint[*int](),
		"pointer pointer":  Fingerprint[**int](),
		"map":              Fingerprint[map[string]int](),
		"map of int keys":  Fingerprint[map[int]int](),
		"map of slices":    Fingerprint[map[string][]int](),
		"field":            Fingerprint[struct{ A int }](),
		"retyped":          Fingerprint[struct{ A int32 }](),
		"renamed":          Fingerprint[struct{ B int }](),
		"pointer field":    Fingerprint[struct{ A *int }](),
		"added":            Fingerprint[struct{ A, B int }](),
		"moved":            Fingerprint[struct{ B, A int }](),
		"tagged": Fingerprint[struct {
			A int `json:"a"`
		}](),
		"tagged and moved": Fingerprint[struct {
			B int `json:"a"`
		}](),
		"omitempty": Fingerprint[struct {
			A int `json:"a,omitempty"`
		}](),
		"as string": Fingerprint[struct {
			A int `json:"a,string"`
		}](),
		"tags one way": Fingerprint[struct {
			A int `json:"x"`
			B int `json:"y"`
		}](),
		"tags other way": Fingerprint[struct {
			A int `json:"y"`
			B int `json:"x"`
		}](),
		"nested":            Fingerprint[struct{ P struct{ A int } }](),
		"nested retyped":    Fingerprint[struct{ P struct{ A string } }](),
		"embedded":          Fingerprint[struct{ point }](),
		"not embedded":      Fingerprint[struct{ Point point }](),
		"self encoding":     Fingerprint[secret](),
		"self decoding":     Fingerprint[secret2](),
		"self encoding []":  Fingerprint[[]secret](),
		"promoted encoding": Fingerprint[struct{ secret }](),
		"recursive":         Fingerprint[tree](),
		"mutually":          Fingerprint[left](),
		"other end of it":   Fingerprint[right](),
		"same twice":        Fingerprint[struct{ A, B point }](),
		"same and other": Fingerprint[struct {
			A point
			B []point
		}](),
	}
	seen := make(map[uint64]string)
	for name, sum := range forms {
		if other, ok := seen[sum]; ok {
			t.Errorf("%s and %s share the fingerprint %#x", name, other, sum)
		}
		seen[sum] = name
	}
}

func TestFingerprintIgnoresWhatJSONIgnores(t *testing.T) {
	type before struct {
		A int `json:"a" db:"a"`
	}
	type after struct {
		A       int `json:"a" db:"column_a"`
		hidden  string
		Skipped chan int `json:"-"`
	}
	_ = after{}.hidden
	if Fingerprint[before]() != Fingerprint[after]() {
		t.Error("another type name, an unexported field or one tagged - changed the fingerprint")
	}
}

// Two builds must agree: these numbers may change only together with the text that is hashed, which
// turns every stored entry into a miss.
func TestFingerprintIsGolden(t *testing.T) {
	for _, c := range []struct {
		name      string
		got, want uint64
	}{
		{"string", Fingerprint[string](), 0x4f2b7bbf224e65c6},
		{"tree", Fingerprint[tree](), 0x70ffba8301065296},
		{"time", Fingerprint[struct {
			At time.Time `json:"at"`
		}](), 0xc2046abf3f841dd2},
	} {
		if c.got != c.want {
			t.Errorf("%s: %#x, want %#x", c.name, c.got, c.want)
		}
	}
}
