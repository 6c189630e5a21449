package tiers

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/cespare/xxhash/v2"
	"github.com/klauspost/compress/s2"
	"github.com/klauspost/compress/zstd"

	"github.com/freshet-cache/freshet/coherence"
)

var update = flag.Bool("update", false, "rewrite the golden files")

// catalogue is about size bytes of JSON as a product catalogue has it: repeated names, prose, numbers.
func catalogue(tb testing.TB, size int) []byte {
	tb.Helper()
	rnd := rand.New(rand.NewPCG(7, uint64(size)))
	words := strings.Fields("cotton linen summer light waterproof organic steel brushed handmade classic slim " +
		"relaxed fit pocket zip lining recycled breathable and with for the every day season machine wash warm " +
		"delivery returns size guide colour navy olive sand black white limited edition series")
	type variant struct {
		SKU   string  `json:"sku"`
		Price float64 `json:"price"`
		Stock int     `json:"stock"`
	}
	type product struct {
		ID          int       `json:"id"`
		Name        string    `json:"name"`
		Description string    `json:"description"`
		Variants    []variant `json:"variants"`
		UpdatedAt   time.Time `json:"updated_at"`
	}
	var products []product
	for {
		p := product{ID: rnd.IntN(1e6), UpdatedAt: time.Unix(1.7e9+rnd.Int64N(1e7), rnd.Int64N(1e9)).UTC()}
		var text []string
		for range 30 + rnd.IntN(60) {
			text = append(text, words[rnd.IntN(len(words))])
		}
		p.Name, p.Description = strings.Join(text[:4], " "), strings.Join(text, " ")
		for range 1 + rnd.IntN(4) {
			p.Variants = append(p.Variants, variant{fmt.Sprintf("SKU-%08X", rnd.Uint32()), float64(rnd.IntN(1e5)) / 100, rnd.IntN(500)})
		}
		products = append(products, p)
		b, err := json.Marshal(products)
		if err != nil {
			tb.Fatal(err)
		}
		if len(b) >= size {
			return b
		}
	}
}

func fullHeader() Header {
	return Header{
		Codec: JSON, Key: KeySum("shop:v42:{product:1}:detail"), Fingerprint: 0x0123456789abcdef, Generation: 42,
		Snapshot: coherence.Snapshot{Timeline: 9, Xmin: 1000, Xmax: 1010, Xip: []uint64{1000, 1003, 1009}},
		LoadedAt: time.UnixMilli(1_750_000_000_123), Soft: 40 * time.Minute, Hard: time.Hour, Cost: 1234 * time.Microsecond,
		Tags: []coherence.ScopeHash{coherence.Tag("a").Hash() & 0xffff, 1 << 40, 1<<64 - 1},
	}
}

// seal writes the checksum that the bytes before it ask for, as a careful forger would.
func seal(b []byte) []byte {
	return binary.BigEndian.AppendUint32(b, checksum(b))
}

func TestEntryRoundTrip(t *testing.T) {
	noise := make([]byte, 5000)
	for i := range noise {
		noise[i] = byte(rand.Uint32())
	}
	absent := fullHeader()
	absent.Absent = true
	for _, c := range []struct {
		name       string
		header     Header
		payload    []byte
		above      int
		compressed bool
	}{
		{"bare", Header{Codec: JSON, LoadedAt: time.UnixMilli(0)}, []byte(`1`), 0, false},
		{"empty payload", fullHeader(), nil, 0, false},
		{"absent", absent, nil, 0, false},
		{"full", fullHeader(), []byte(`{"a":1}`), 0, false},
		{"at the threshold", fullHeader(), catalogue(t, 2000)[:CompressAbove], 0, false},
		{"above it", fullHeader(), catalogue(t, 2000)[:CompressAbove+1], 0, true},
		{"never", fullHeader(), catalogue(t, 20_000), -1, false},
		{"own threshold", fullHeader(), catalogue(t, 500)[:500], 100, true},
		{"incompressible", fullHeader(), noise, 0, false},
		{"8 MiB", fullHeader(), bytes.Repeat([]byte("abcdefgh"), 1<<20), 0, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			prefix := []byte("before")
			b, err := EncodeEntry(prefix, c.header, c.payload, c.above)
			if err != nil {
				t.Fatal(err)
			}
			b = bytes.TrimPrefix(b, prefix)
			if got := b[5]&flagCompressed != 0; got != c.compressed {
				t.Errorf("compressed = %v, want %v (%d bytes for %d)", got, c.compressed, len(b), len(c.payload))
			}
			h, payload, err := DecodeEntry(b)
			if err != nil {
				t.Fatal(err)
			}
			want := c.header
			want.Sum = xxhash.Sum64(c.payload)
			if !reflect.DeepEqual(h, want) {
				t.Errorf("header\n got %+v\nwant %+v", h, want)
			}
			if !bytes.Equal(payload, c.payload) {
				t.Errorf("payload of %d bytes differs from the %d that went in", len(payload), len(c.payload))
			}
			if h.Absent && payload != nil {
				t.Error("an absent entry has a payload")
			}
		})
	}
}

func TestEntryTimesAreCut(t *testing.T) {
	h := fullHeader()
	h.LoadedAt = h.LoadedAt.Add(999 * time.Microsecond)
	h.Soft, h.Cost = time.Second+time.Microsecond, 3*time.Hour
	b, err := EncodeEntry(nil, h, nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	got, _, err := DecodeEntry(b)
	if err != nil {
		t.Fatal(err)
	}
	if !got.LoadedAt.Equal(fullHeader().LoadedAt) || got.Soft != time.Second || got.Cost != maxCost {
		t.Errorf("loaded at %v, soft %v, cost %v", got.LoadedAt, got.Soft, got.Cost)
	}
}

func TestEncodeEntryRefuses(t *testing.T) {
	many := make([]coherence.ScopeHash, MaxTags+1)
	for i := range many {
		many[i] = coherence.ScopeHash(i)
	}
	for _, c := range []struct {
		name    string
		change  func(*Header)
		payload []byte
		want    string
	}{
		{"payload", func(*Header) {}, make([]byte, MaxPayload+1), "67108865 bytes"},
		{"absent", func(h *Header) { h.Absent = true }, []byte("x"), "Absent"},
		{"codec", func(h *Header) { h.Codec = 0 }, nil, "Codec 0"},
		{"soft", func(h *Header) { h.Soft = -1 }, nil, "Soft"},
		{"hard", func(h *Header) { h.Hard = -1 }, nil, "Hard"},
		{"cost", func(h *Header) { h.Cost = -1 }, nil, "Cost"},
		{"tags", func(h *Header) { h.Tags = many }, nil, "65 Tags"},
		{"order", func(h *Header) { h.Tags = []coherence.ScopeHash{2, 1} }, nil, "ascending"},
		{"twice", func(h *Header) { h.Tags = []coherence.ScopeHash{2, 2} }, nil, "duplicates"},
	} {
		h := fullHeader()
		c.change(&h)
		if _, err := EncodeEntry(nil, h, c.payload, 0); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: error %v, want one that says %q", c.name, err, c.want)
		} else if errors.Is(err, ErrTooLarge) != (c.name == "payload") {
			t.Errorf("%s: ErrTooLarge in %v", c.name, err)
		}
	}
}

func TestDecodeEntryRefusesDamage(t *testing.T) {
	for _, size := range []int{20, 3000} {
		good, err := EncodeEntry(nil, fullHeader(), catalogue(t, 3000)[:size], 0)
		if err != nil {
			t.Fatal(err)
		}
		for n := range good {
			if _, _, err := DecodeEntry(good[:n]); !errors.Is(err, ErrCorrupt) && !errors.Is(err, ErrForeign) {
				t.Fatalf("cut to %d of %d bytes: %v", n, len(good), err)
			}
			bad := bytes.Clone(good)
			bad[n] ^= 1 << (n % 8)
			if _, _, err := DecodeEntry(bad); !errors.Is(err, ErrCorrupt) && !errors.Is(err, ErrForeign) {
				t.Fatalf("bit %d of byte %d turned: %v", n%8, n, err)
			}
		}
		if _, _, err := DecodeEntry(append(bytes.Clone(good), 0)); !errors.Is(err, ErrCorrupt) {
			t.Fatalf("one byte more: %v", err)
		}
	}
}

// The checksum keeps accidents out; these bytes carry a right one.
func TestDecodeEntryRefusesForgery(t *testing.T) {
	zeros := make([]byte, MaxPayload+1)
	for _, c := range []struct {
		name  string
		forge func(body []byte) []byte
		want  error
	}{
		{"magic", func(b []byte) []byte { b[0] = 'X'; return b }, ErrForeign},
		{"version 2", func(b []byte) []byte { b[4] = 2; return b }, ErrForeign},
		{"unknown flag", func(b []byte) []byte { b[5] |= 4; return b }, ErrForeign},
		{"unknown codec", func(b []byte) []byte { b[6] = 9; return b }, ErrForeign},
		{"absent with payload", func(b []byte) []byte { b[5] |= flagAbsent; return b }, ErrCorrupt},
		{"65 tags", func(b []byte) []byte { b[7] = MaxTags + 1; return append(b, make([]byte, 1000)...) }, ErrCorrupt},
		{"tags behind the end", func(b []byte) []byte { b[7] = MaxTags; return b[:entryFixed+8] }, ErrCorrupt},
		{"tags out of order", func(b []byte) []byte { copy(b[entryFixed:], b[entryFixed+8:entryFixed+16]); return b }, ErrCorrupt},
		{"soft out of range", func(b []byte) []byte { b[40] = 0x80; return b }, ErrCorrupt},
		{"hard out of range", func(b []byte) []byte { b[48] = 0x80; return b }, ErrCorrupt},
		{"longer than it is", func(b []byte) []byte { b[63]++; return b }, ErrCorrupt},
		{"sum", func(b []byte) []byte { b[24] ^= 1; return b }, ErrCorrupt},
		{"snapshot", func(b []byte) []byte { b[7] = 0; return append(b[:entryFixed], 1, 2) }, ErrCorrupt},
		{"not a block", func(b []byte) []byte { b[5] |= flagCompressed; return b }, ErrCorrupt},
		{"bomb", func(b []byte) []byte {
			b[5] |= flagCompressed
			b[7] = 0
			binary.BigEndian.PutUint32(b[60:], MaxPayload+1)
			return append(append(b[:entryFixed], 0, 0, 0, 0), s2.Encode(nil, zeros)...)
		}, ErrCorrupt},
		{"block of another size", func(b []byte) []byte {
			b[5] |= flagCompressed
			b[7] = 0
			binary.BigEndian.PutUint32(b[60:], 10)
			return append(append(b[:entryFixed], 0, 0, 0, 0), s2.Encode(nil, zeros)...)
		}, ErrCorrupt},
	} {
		good, err := EncodeEntry(nil, fullHeader(), []byte(`{"a":1}`), 0)
		if err != nil {
			t.Fatal(err)
		}
		bad := seal(c.forge(good[:len(good)-entryTrailer]))
		if allocated := testing.AllocsPerRun(1, func() { _, _, err = DecodeEntry(bad) }); allocated > 20 {
			t.Errorf("%s: %v allocations", c.name, allocated)
		}
		if !errors.Is(err, c.want) {
			t.Errorf("%s: error %v, want %v", c.name, err, c.want)
		}
	}
}

// Version 1 is what other replicas wrote: it must stay readable, and be written the same.
func TestEntryVersion1IsGolden(t *testing.T) {
	absent := fullHeader()
	absent.Absent = true
	for name, c := range map[string]struct {
		header  Header
		payload []byte
	}{
		"plain":      {fullHeader(), []byte(`{"name":"lamp","price":12.5}`)},
		"absent":     {absent, nil},
		"compressed": {fullHeader(), bytes.Repeat([]byte(`{"name":"lamp"},`), 100)},
	} {
		path := filepath.Join("testdata", "entry", "v1-"+name+".hex")
		got, err := EncodeEntry(nil, c.header, c.payload, 0)
		if err != nil {
			t.Fatal(err)
		}
		if *update {
			if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(path, []byte(hex.Dump(got)), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		text, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		want := undump(t, string(text))
		// How S2 packs may change with its version; what it unpacks may not.
		if name != "compressed" && !bytes.Equal(got, want) {
			t.Errorf("%s is written as\n%s\nwant\n%s", name, hex.Dump(got), text)
		}
		h, payload, err := DecodeEntry(want)
		c.header.Sum = xxhash.Sum64(c.payload)
		if err != nil || !reflect.DeepEqual(h, c.header) || !bytes.Equal(payload, c.payload) {
			t.Errorf("%s is read as %+v, %q, %v", name, h, payload, err)
		}
	}
}

// undump is the bytes that hex.Dump showed.
func undump(t *testing.T, text string) []byte {
	t.Helper()
	var b []byte
	for line := range strings.Lines(text) {
		_, row, _ := strings.Cut(line, " ")
		row, _, _ = strings.Cut(row, "|")
		part, err := hex.DecodeString(strings.Join(strings.Fields(row), ""))
		if err != nil {
			t.Fatal(err)
		}
		b = append(b, part...)
	}
	return b
}

func TestEntryAllocations(t *testing.T) {
	payload := catalogue(t, 6000)
	h := fullHeader()
	buffer := make([]byte, 0, 32<<10)
	if n := testing.AllocsPerRun(100, func() {
		if _, err := EncodeEntry(buffer, h, payload, 0); err != nil {
			t.Fatal(err)
		}
	}); n > 0 {
		t.Errorf("EncodeEntry into a large enough buffer: %v allocations, want none", n)
	}
	plain, err := EncodeEntry(nil, h, payload, -1)
	if err != nil {
		t.Fatal(err)
	}
	packed, err := EncodeEntry(nil, h, payload, 0)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name string
		b    []byte
		want float64 // tags, snapshot, and the payload if it is not part of b
	}{{"plain", plain, 2}, {"compressed", packed, 3}} {
		if n := testing.AllocsPerRun(100, func() {
			if _, _, err := DecodeEntry(c.b); err != nil {
				t.Fatal(err)
			}
		}); n > c.want {
			t.Errorf("DecodeEntry of a %s entry: %v allocations, want %v", c.name, n, c.want)
		}
	}
}

// FuzzDecodeEntry: no bytes make it panic, and what it accepts is what EncodeEntry would say again.
func FuzzDecodeEntry(f *testing.F) {
	absent := fullHeader()
	absent.Absent = true
	for _, c := range []struct {
		header  Header
		payload []byte
	}{{fullHeader(), []byte(`{}`)}, {absent, nil}, {Header{Codec: JSON}, catalogue(f, 2000)}} {
		b, err := EncodeEntry(nil, c.header, c.payload, 0)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b[:len(b)-entryTrailer])
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		// As they are, then with a right checksum: else nothing would get past it.
		if _, _, err := DecodeEntry(body); err != nil && !errors.Is(err, ErrCorrupt) && !errors.Is(err, ErrForeign) {
			t.Fatalf("error %v is neither corrupt nor foreign", err)
		}
		h, payload, err := DecodeEntry(seal(bytes.Clone(body)))
		if err != nil {
			if !errors.Is(err, ErrCorrupt) && !errors.Is(err, ErrForeign) {
				t.Fatalf("error %v is neither corrupt nor foreign", err)
			}
			return
		}
		again, err := EncodeEntry(nil, h, payload, -1)
		if err != nil {
			t.Fatalf("accepted a header that cannot be written: %v", err)
		}
		h2, payload2, err := DecodeEntry(again)
		if err != nil || !reflect.DeepEqual(h, h2) || !bytes.Equal(payload, payload2) {
			t.Fatalf("%+v\nbecame\n%+v, %v", h, h2, err)
		}
	})
}

func BenchmarkEntry(b *testing.B) {
	for _, size := range []int{500, 2 << 10, 6 << 10, 20 << 10} {
		payload := catalogue(b, size)
		packed, err := EncodeEntry(nil, fullHeader(), payload, 0)
		if err != nil {
			b.Fatal(err)
		}
		b.Run(fmt.Sprintf("encode/%d", size), func(b *testing.B) {
			buffer := make([]byte, 0, 64<<10)
			b.ReportAllocs()
			b.SetBytes(int64(len(payload)))
			for b.Loop() {
				if _, err := EncodeEntry(buffer, fullHeader(), payload, 0); err != nil {
					b.Fatal(err)
				}
			}
		})
		b.Run(fmt.Sprintf("decode/%d", size), func(b *testing.B) {
			b.ReportAllocs()
			b.SetBytes(int64(len(payload)))
			for b.Loop() {
				if _, _, err := DecodeEntry(packed); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// BenchmarkCompression is why the format uses S2: "%" is the size of the block against the payload.
func BenchmarkCompression(b *testing.B) {
	fast, err := zstd.NewWriter(nil, zstd.WithEncoderLevel(zstd.SpeedFastest), zstd.WithEncoderConcurrency(1), zstd.WithEncoderCRC(false))
	if err != nil {
		b.Fatal(err)
	}
	reader, err := zstd.NewReader(nil, zstd.WithDecoderConcurrency(1))
	if err != nil {
		b.Fatal(err)
	}
	defer reader.Close()
	for _, c := range []struct {
		name           string
		encode, decode func(src []byte) ([]byte, error)
	}{
		{
			"s2", func(src []byte) ([]byte, error) { return s2.Encode(nil, src), nil },
			func(src []byte) ([]byte, error) { return s2.Decode(nil, src) },
		},
		{
			"s2better", func(src []byte) ([]byte, error) { return s2.EncodeBetter(nil, src), nil },
			func(src []byte) ([]byte, error) { return s2.Decode(nil, src) },
		},
		{
			"zstd", func(src []byte) ([]byte, error) { return fast.EncodeAll(src, nil), nil },
			func(src []byte) ([]byte, error) { return reader.DecodeAll(src, nil) },
		},
	} {
		for _, size := range []int{2 << 10, 6 << 10, 20 << 10} {
			payload := catalogue(b, size)
			block, err := c.encode(payload)
			if err != nil {
				b.Fatal(err)
			}
			for verb, run := range map[string]func() error{
				"encode": func() error { _, err := c.encode(payload); return err },
				"decode": func() error { _, err := c.decode(block); return err },
			} {
				b.Run(fmt.Sprintf("%s/%s/%d", c.name, verb, size), func(b *testing.B) {
					b.SetBytes(int64(len(payload)))
					for b.Loop() {
						if err := run(); err != nil {
							b.Fatal(err)
						}
					}
					b.ReportMetric(100*float64(len(block))/float64(len(payload)), "%")
				})
			}
		}
	}
}
