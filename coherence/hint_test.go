package coherence_test

import (
	"bytes"
	"encoding/hex"
	"reflect"
	"strings"
	"testing"

	"github.com/freshet-cache/freshet/coherence"
)

// The wire form of hints: nodes of different builds read each other's.
func TestHintGolden(t *testing.T) {
	h := coherence.Hint{
		Boot: 0x0102030405060708, Seq: 9, Timeline: 0x0fffffffffffffff, XID: 1000,
		Scopes: []coherence.ScopeHash{coherence.Entity("product", "42").Hash(), 1},
	}
	const want = "4668" + "01" + "0102030405060708" + "0000000000000009" + "0fffffffffffffff" + "00000000000003e8" + "0002" +
		"4688089d93df2b86" + "0000000000000001"
	b, err := h.AppendBinary(nil)
	if err != nil || hex.EncodeToString(b) != want {
		t.Errorf("hint %+v\n got %x, %v\nwant %s", h, b, err, want)
	}
	if got, err := coherence.DecodeHint(b); err != nil || !reflect.DeepEqual(got, h) {
		t.Errorf("decoded %+v, %v; want %+v", got, err, h)
	}
}

// Scope hashes are on the wire and in L2: they never change.
func TestScopeHashGolden(t *testing.T) {
	for scope, want := range map[coherence.Scope]coherence.ScopeHash{
		coherence.Entity("product", "42"):         0x4688089d93df2b86,
		coherence.View("product", "42", "detail"): 0x46886e86e8df1793,
		coherence.Tag("category:7"):               0xabb06c79c1f37918,
		coherence.Namespace("product"):            0x237e35c97e2a,
		coherence.Everything():                    0x9b554fa2cc23,
	} {
		if got := scope.Hash(); got != want {
			t.Errorf("%s: hash %#x, want %#x", scope, got, want)
		}
	}
	if coherence.Entity("a", "b").Hash() == coherence.Entity("ab", "").Hash() {
		t.Error("the ends of fields do not count")
	}
	long := strings.Repeat("x", 1000)
	if coherence.Entity(long, "1").Hash() == coherence.Entity(long, "2").Hash() {
		t.Error("the ends of long fields do not count")
	}
}

func TestHintErrors(t *testing.T) {
	good, err := coherence.Hint{Boot: 1, Seq: 1, Timeline: 1, XID: 1, Scopes: []coherence.ScopeHash{1, 2}}.AppendBinary(nil)
	if err != nil {
		t.Fatal(err)
	}
	for cut := range good {
		if _, err := coherence.DecodeHint(good[:cut]); err == nil {
			t.Errorf("%d of %d bytes decode", cut, len(good))
		}
	}
	if _, err := coherence.DecodeHint(append(bytes.Clone(good), 0)); err == nil {
		t.Error("a byte too many decodes")
	}
	version := bytes.Clone(good)
	version[2] = 2
	if _, err := coherence.DecodeHint(version); err == nil || !strings.Contains(err.Error(), "version 2") {
		t.Errorf("version 2: %v", err)
	}
	for _, n := range []int{0, coherence.MaxHintScopes + 1} {
		if _, err := (coherence.Hint{Scopes: make([]coherence.ScopeHash, n)}).AppendBinary(nil); err == nil {
			t.Errorf("%d scopes are encoded", n)
		}
	}
}

func FuzzDecodeHint(f *testing.F) {
	b, err := coherence.Hint{Boot: 1, Seq: 2, Timeline: 3, XID: 4, Scopes: []coherence.ScopeHash{5, 6}}.AppendBinary(nil)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Add(b[:37])
	f.Add([]byte("Fh\x02"))
	f.Add([]byte(""))
	f.Fuzz(func(t *testing.T, b []byte) {
		h, err := coherence.DecodeHint(b)
		if err != nil {
			return
		}
		if again, err := h.AppendBinary(nil); err != nil || !bytes.Equal(again, b) {
			t.Errorf("%x decodes to %+v, which encodes to %x, %v", b, h, again, err)
		}
	})
}
