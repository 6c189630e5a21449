package cluster

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"maps"
	"testing"
)

func TestParamsHash(t *testing.T) {
	empty := sha256.Sum256(nil)
	if got, want := Params(nil).Hash(), hex.EncodeToString(empty[:16]); got != want || (Params{}).Hash() != want {
		t.Errorf("hash without parameters is %q, want %q", got, want)
	}
	sum := sha256.Sum256([]byte("\x01a\x02bc\x01d\x00"))
	if got, want := (Params{"d": "", "a": "bc"}).Hash(), hex.EncodeToString(sum[:16]); got != want {
		t.Errorf("hash is %q, want %q", got, want)
	}
	for _, different := range [][2]Params{
		{{"a": ""}, {}},
		{{"a": "b"}, {"ab": ""}},
		{{"a": "b"}, {"b": "a"}},
		{{"a": "bc", "d": "e"}, {"a": "b", "cd": "e"}},
		{{"": ""}, {}},
		{{"page": "1"}, {"page": "01"}},
	} {
		if different[0].Hash() == different[1].Hash() {
			t.Errorf("%v and %v have one hash", different[0], different[1])
		}
	}
}

// The canonical encoding can be read back, so no two Params share one; and the order in which a map
// was filled does not show.
func FuzzParamsAreCanonicalAndInjective(f *testing.F) {
	f.Add([]byte("page\x002\x00category\x007"), byte(0))
	f.Add([]byte("\x00\x00a\x00\xff"), byte(1))
	f.Fuzz(func(t *testing.T, text []byte, separator byte) {
		// Every two pieces of the text are a name and its value.
		pieces := [][]byte{nil}
		for _, c := range text {
			if c == separator {
				pieces = append(pieces, nil)
			} else {
				pieces[len(pieces)-1] = append(pieces[len(pieces)-1], c)
			}
		}
		p, reversed := Params{}, Params{}
		for i := 0; i+1 < len(pieces); i += 2 {
			if _, taken := p[string(pieces[i])]; !taken {
				p[string(pieces[i])] = string(pieces[i+1])
			}
		}
		for i := len(pieces)/2*2 - 2; i >= 0; i -= 2 {
			reversed[string(pieces[i])] = p[string(pieces[i])]
		}
		encoded := p.appendCanonical(nil)
		if string(reversed.appendCanonical(nil)) != string(encoded) || p.Hash() != reversed.Hash() {
			t.Fatalf("%v depends on order", p)
		}
		if got := decodeCanonical(t, encoded); !maps.Equal(got, p) {
			t.Fatalf("%v reads back as %v", p, got)
		}
		if !isParamsHash(p.Hash()) {
			t.Fatalf("hash %q", p.Hash())
		}
	})
}

func decodeCanonical(t *testing.T, b []byte) Params {
	t.Helper()
	p := Params{}
	piece := func() string {
		n, used := binary.Uvarint(b)
		if used <= 0 || n > uint64(len(b)-used) {
			t.Fatalf("bad length at %q", b)
		}
		s := string(b[used : used+int(n)])
		b = b[used+int(n):]
		return s
	}
	for len(b) > 0 {
		name := piece()
		p[name] = piece()
	}
	return p
}
