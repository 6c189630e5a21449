package tiers

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/cespare/xxhash/v2"
	"github.com/klauspost/compress/s2"

	"github.com/freshet-cache/freshet/coherence"
)

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

// newPacking is a Packing of the compression.
func newPacking(tb testing.TB, c Compression) *Packing {
	tb.Helper()
	p, err := NewPacking(c)
	if err != nil {
		tb.Fatal(err)
	}
	return p
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
		name    string
		header  Header
		payload []byte
		how     Compression
		packed  byte
	}{
		{"bare", Header{Codec: JSON, LoadedAt: time.UnixMilli(0)}, []byte(`1`), Compression{}, 0},
		{"empty payload", fullHeader(), nil, Compression{}, 0},
		{"absent", absent, nil, Compression{}, 0},
		{"full", fullHeader(), []byte(`{"a":1}`), Compression{}, 0},
		{"at the threshold", fullHeader(), catalogue(t, 2000)[:CompressAbove], Compression{}, 0},
		{"above it", fullHeader(), catalogue(t, 2000)[:CompressAbove+1], Compression{}, flagS2},
		{"zstd at the threshold", fullHeader(), catalogue(t, 2000)[:CompressAbove], Compression{Algorithm: Zstd}, 0},
		{"zstd above it", fullHeader(), catalogue(t, 2000)[:CompressAbove+1], Compression{Algorithm: Zstd}, flagZstd},
		{"never", fullHeader(), catalogue(t, 20_000), Compression{Algorithm: NoCompression}, 0},
		{"own threshold", fullHeader(), catalogue(t, 500)[:500], Compression{Above: 100}, flagS2},
		{"zstd, own threshold", fullHeader(), catalogue(t, 500)[:500], Compression{Algorithm: Zstd, Above: 100}, flagZstd},
		{"s2 fastest", fullHeader(), catalogue(t, 5000), Compression{Level: 1}, flagS2},
		{"s2 smallest", fullHeader(), catalogue(t, 5000), Compression{Level: 3}, flagS2},
		{"zstd fastest", fullHeader(), catalogue(t, 5000), Compression{Algorithm: Zstd, Level: 1}, flagZstd},
		{"zstd smallest", fullHeader(), catalogue(t, 5000), Compression{Algorithm: Zstd, Level: 3}, flagZstd},
		{"incompressible", fullHeader(), noise, Compression{}, 0},
		{"incompressible by zstd", fullHeader(), noise, Compression{Algorithm: Zstd}, 0},
		{"8 MiB", fullHeader(), bytes.Repeat([]byte("abcdefgh"), 1<<20), Compression{}, flagS2},
		{"8 MiB by zstd", fullHeader(), bytes.Repeat([]byte("abcdefgh"), 1<<20), Compression{Algorithm: Zstd}, flagZstd},
	} {
		t.Run(c.name, func(t *testing.T) {
			prefix := []byte("before")
			b, err := newPacking(t, c.how).EncodeEntry(prefix, c.header, c.payload)
			if err != nil {
				t.Fatal(err)
			}
			b = bytes.TrimPrefix(b, prefix)
			if got := b[5] & flagPacked; got != c.packed {
				t.Errorf("compressed by %d, want %d (%d bytes for %d)", got, c.packed, len(b), len(c.payload))
			}
			if packed := len(b) - entryFixed; c.packed != 0 && packed > len(c.payload) {
				t.Errorf("%d bytes became %d", len(c.payload), packed)
			}
			h, payload, err := newPacking(t, Compression{}).DecodeEntry(b)
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
	standard := newPacking(t, Compression{})
	h := fullHeader()
	h.LoadedAt = h.LoadedAt.Add(999 * time.Microsecond)
	h.Soft, h.Cost = time.Second+time.Microsecond, 3*time.Hour
	b, err := standard.EncodeEntry(nil, h, nil)
	if err != nil {
		t.Fatal(err)
	}
	got, _, err := standard.DecodeEntry(b)
	if err != nil {
		t.Fatal(err)
	}
	if !got.LoadedAt.Equal(fullHeader().LoadedAt) || got.Soft != time.Second || got.Cost != maxCost {
		t.Errorf("loaded at %v, soft %v, cost %v", got.LoadedAt, got.Soft, got.Cost)
	}
}

func TestEncodeEntryRefuses(t *testing.T) {
	standard := newPacking(t, Compression{})
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
		if _, err := standard.EncodeEntry(nil, h, c.payload); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: error %v, want one that says %q", c.name, err, c.want)
		} else if errors.Is(err, ErrTooLarge) != (c.name == "payload") {
			t.Errorf("%s: ErrTooLarge in %v", c.name, err)
		}
	}
}

func TestDecodeEntryRefusesDamage(t *testing.T) {
	standard := newPacking(t, Compression{})
	zstandard := newPacking(t, Compression{Algorithm: Zstd})
	for _, c := range []struct {
		how  *Packing
		size int
	}{{standard, 20}, {standard, 3000}, {zstandard, 3000}} {
		good, err := c.how.EncodeEntry(nil, fullHeader(), catalogue(t, 3000)[:c.size])
		if err != nil {
			t.Fatal(err)
		}
		for n := range good {
			if _, _, err := standard.DecodeEntry(good[:n]); !errors.Is(err, ErrCorrupt) && !errors.Is(err, ErrForeign) {
				t.Fatalf("cut to %d of %d bytes: %v", n, len(good), err)
			}
			bad := bytes.Clone(good)
			bad[n] ^= 1 << (n % 8)
			if _, _, err := standard.DecodeEntry(bad); !errors.Is(err, ErrCorrupt) && !errors.Is(err, ErrForeign) {
				t.Fatalf("bit %d of byte %d turned: %v", n%8, n, err)
			}
		}
		if _, _, err := standard.DecodeEntry(append(bytes.Clone(good), 0)); !errors.Is(err, ErrCorrupt) {
			t.Fatalf("one byte more: %v", err)
		}
	}
}

// The checksum keeps accidents out; these bytes carry a right one.
func TestDecodeEntryRefusesForgery(t *testing.T) {
	standard := newPacking(t, Compression{})
	zeros := make([]byte, MaxPayload+1)
	frame := newPacking(t, Compression{Algorithm: Zstd}).writer.EncodeAll(zeros, nil)
	for _, c := range []struct {
		name  string
		forge func(body []byte) []byte
		want  error
	}{
		{"magic", func(b []byte) []byte { b[0] = 'X'; return b }, ErrForeign},
		{"version 2", func(b []byte) []byte { b[4] = 2; return b }, ErrForeign},
		{"unknown flag", func(b []byte) []byte { b[5] |= 8; return b }, ErrForeign},
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
		{"not a block", func(b []byte) []byte { b[5] |= flagS2; return b }, ErrCorrupt},
		{"bomb", func(b []byte) []byte {
			b[5] |= flagS2
			b[7] = 0
			binary.BigEndian.PutUint32(b[60:], MaxPayload+1)
			return append(append(b[:entryFixed], 0, 0, 0, 0), s2.Encode(nil, zeros)...)
		}, ErrCorrupt},
		{"not a frame", func(b []byte) []byte { b[5] |= flagZstd; return b }, ErrCorrupt},
		{"both ways", func(b []byte) []byte { b[5] |= flagPacked; return b }, ErrCorrupt},
		{"zstd bomb", func(b []byte) []byte {
			b[5] |= flagZstd
			b[7] = 0
			binary.BigEndian.PutUint32(b[60:], MaxPayload+1)
			return append(append(b[:entryFixed], 0, 0, 0, 0), frame...)
		}, ErrCorrupt},
		{"frame of another size", func(b []byte) []byte {
			b[5] |= flagZstd
			b[7] = 0
			binary.BigEndian.PutUint32(b[60:], 10)
			return append(append(b[:entryFixed], 0, 0, 0, 0), frame...)
		}, ErrCorrupt},
		{"frames of more than they say", func(b []byte) []byte {
			b[5] |= flagZstd
			b[7] = 0
			binary.BigEndian.PutUint32(b[60:], 2)
			small := newPacking(t, Compression{Algorithm: Zstd}).writer.EncodeAll([]byte("ab"), nil)
			return append(append(append(b[:entryFixed], 0, 0, 0, 0), small...), frame...)
		}, ErrCorrupt},
		{"block of another size", func(b []byte) []byte {
			b[5] |= flagS2
			b[7] = 0
			binary.BigEndian.PutUint32(b[60:], 10)
			return append(append(b[:entryFixed], 0, 0, 0, 0), s2.Encode(nil, zeros)...)
		}, ErrCorrupt},
	} {
		good, err := standard.EncodeEntry(nil, fullHeader(), []byte(`{"a":1}`))
		if err != nil {
			t.Fatal(err)
		}
		bad := seal(c.forge(good[:len(good)-entryTrailer]))
		if allocated := testing.AllocsPerRun(1, func() { _, _, err = standard.DecodeEntry(bad) }); allocated > 20 {
			t.Errorf("%s: %v allocations", c.name, allocated)
		}
		if !errors.Is(err, c.want) {
			t.Errorf("%s: error %v, want %v", c.name, err, c.want)
		}
	}
}

func TestEntryAllocations(t *testing.T) {
	standard := newPacking(t, Compression{})
	asIs := newPacking(t, Compression{Algorithm: NoCompression})
	payload := catalogue(t, 6000)
	h := fullHeader()
	buffer := make([]byte, 0, 32<<10)
	if n := testing.AllocsPerRun(100, func() {
		if _, err := standard.EncodeEntry(buffer, h, payload); err != nil {
			t.Fatal(err)
		}
	}); n > 0 {
		t.Errorf("EncodeEntry into a large enough buffer: %v allocations, want none", n)
	}
	plain, err := asIs.EncodeEntry(nil, h, payload)
	if err != nil {
		t.Fatal(err)
	}
	packed, err := standard.EncodeEntry(nil, h, payload)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name string
		b    []byte
		want float64 // tags, snapshot, and the payload if it is not part of b
	}{{"plain", plain, 2}, {"compressed", packed, 3}} {
		if n := testing.AllocsPerRun(100, func() {
			if _, _, err := standard.DecodeEntry(c.b); err != nil {
				t.Fatal(err)
			}
		}); n > c.want {
			t.Errorf("DecodeEntry of a %s entry: %v allocations, want %v", c.name, n, c.want)
		}
	}
}

// FuzzDecodeEntry: no bytes make it panic, and what it accepts is what EncodeEntry would say again.
func FuzzDecodeEntry(f *testing.F) {
	standard := newPacking(f, Compression{})
	asIs := newPacking(f, Compression{Algorithm: NoCompression})
	absent := fullHeader()
	absent.Absent = true
	for _, c := range []struct {
		header  Header
		payload []byte
	}{{fullHeader(), []byte(`{}`)}, {absent, nil}, {Header{Codec: JSON}, catalogue(f, 2000)}} {
		b, err := standard.EncodeEntry(nil, c.header, c.payload)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b[:len(b)-entryTrailer])
	}
	b, err := newPacking(f, Compression{Algorithm: Zstd}).EncodeEntry(nil, Header{Codec: Bytes}, catalogue(f, 2000))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b[:len(b)-entryTrailer])
	f.Fuzz(func(t *testing.T, body []byte) {
		// As they are, then with a right checksum: else nothing would get past it.
		if _, _, err := standard.DecodeEntry(body); err != nil && !errors.Is(err, ErrCorrupt) && !errors.Is(err, ErrForeign) {
			t.Fatalf("error %v is neither corrupt nor foreign", err)
		}
		h, payload, err := standard.DecodeEntry(seal(bytes.Clone(body)))
		if err != nil {
			if !errors.Is(err, ErrCorrupt) && !errors.Is(err, ErrForeign) {
				t.Fatalf("error %v is neither corrupt nor foreign", err)
			}
			return
		}
		again, err := asIs.EncodeEntry(nil, h, payload)
		if err != nil {
			t.Fatalf("accepted a header that cannot be written: %v", err)
		}
		h2, payload2, err := standard.DecodeEntry(again)
		if err != nil || !reflect.DeepEqual(h, h2) || !bytes.Equal(payload, payload2) {
			t.Fatalf("%+v\nbecame\n%+v, %v", h, h2, err)
		}
	})
}

func BenchmarkEntry(b *testing.B) {
	standard := newPacking(b, Compression{})
	for _, size := range []int{500, 2 << 10, 6 << 10, 20 << 10} {
		payload := catalogue(b, size)
		packed, err := standard.EncodeEntry(nil, fullHeader(), payload)
		if err != nil {
			b.Fatal(err)
		}
		b.Run(fmt.Sprintf("encode/%d", size), func(b *testing.B) {
			buffer := make([]byte, 0, 64<<10)
			b.ReportAllocs()
			b.SetBytes(int64(len(payload)))
			for b.Loop() {
				if _, err := standard.EncodeEntry(buffer, fullHeader(), payload); err != nil {
					b.Fatal(err)
				}
			}
		})
		b.Run(fmt.Sprintf("decode/%d", size), func(b *testing.B) {
			b.ReportAllocs()
			b.SetBytes(int64(len(payload)))
			for b.Loop() {
				if _, _, err := standard.DecodeEntry(packed); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// BenchmarkCompression is why S2 is the default: "%" is the size of the packed payload against the payload.
func BenchmarkCompression(b *testing.B) {
	for _, how := range []Compression{{S2, 1, 1}, {S2, 1, 2}, {S2, 1, 3}, {Zstd, 1, 1}, {Zstd, 1, 2}, {Zstd, 1, 3}} {
		p := newPacking(b, how)
		for _, size := range []int{2 << 10, 6 << 10, 20 << 10} {
			payload := catalogue(b, size)
			buffer := make([]byte, 0, p.room(len(payload)))
			packed, flag := p.pack(make([]byte, 0, p.room(len(payload))), payload)
			name := fmt.Sprintf("%s/%d/%d", [...]string{S2: "s2", Zstd: "zstd"}[how.Algorithm], how.Level, size)
			b.Run("pack/"+name, func(b *testing.B) {
				b.SetBytes(int64(len(payload)))
				for b.Loop() {
					p.pack(buffer, payload)
				}
				b.ReportMetric(100*float64(len(packed))/float64(len(payload)), "%")
			})
			b.Run("unpack/"+name, func(b *testing.B) {
				b.SetBytes(int64(len(payload)))
				for b.Loop() {
					if _, err := p.unpack(packed, flag, int64(len(payload))); err != nil {
						b.Fatal(err)
					}
				}
			})
		}
	}
}
