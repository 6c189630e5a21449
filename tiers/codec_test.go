package tiers

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"math/big"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"testing"
	"testing/quick"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/descriptorpb"
	"google.golang.org/protobuf/types/dynamicpb"
	"google.golang.org/protobuf/types/known/structpb"
)

func newCoder[V any](tb testing.TB, codec Codec) *Coder[V] {
	tb.Helper()
	c, err := NewCoder[V](codec)
	if err != nil {
		tb.Fatal(err)
	}
	return c
}

// Part, Inner and wide are what a value may be made of.
type Part struct {
	N     int               `json:"n,omitempty"`
	Text  string            `json:"text,omitempty"`
	Words []string          `json:"words"`
	Table map[string][]byte `json:"table"`
	Next  *Part             `json:"next,omitempty"`
}

type wide struct {
	Part
	*Inner
	Flags   [3]bool
	Small   int8 `json:"s"`
	Large   uint64
	Single  float32
	Double  float64
	Raw     []byte
	Parts   []Part
	ByName  map[string]Part
	ByCount map[int64]map[string]string
	Nested  [][]Part
	Wait    time.Duration
	Maybe   *int
	Skipped string `cbor:"-" json:"-"`
}

type Inner struct{ Within int }

// roundTrip encodes the value and decodes it again, and checks what holds for every codec: the same value has the
// same bytes, and what was decoded does not change with the payload.
func roundTrip[V any](t *testing.T, codec Codec, v V, same func(a, b V) bool) {
	t.Helper()
	c := newCoder[V](t, codec)
	b, err := c.Encode(v)
	if err != nil {
		t.Fatal(err)
	}
	b = bytes.Clone(b)
	for range 10 {
		if again, err := c.Encode(v); err != nil || !bytes.Equal(again, b) {
			t.Fatalf("%v of %T: the same value is %x and %x, %v", codec, v, b, again, err)
		}
	}
	payload := append(bytes.Clone(b), "what follows it"...)[:len(b)]
	got, err := c.Decode(codec, payload)
	for i := range payload {
		payload[i] = 0xff
	}
	if err != nil || !same(got, v) {
		t.Fatalf("%v: %+v\nbecame %+v, %v", codec, v, got, err)
	}
	if again, err := c.Encode(got); err != nil || !bytes.Equal(again, b) {
		t.Fatalf("%v: %+v has another version when it was decoded: %x and %x, %v", codec, v, b, again, err)
	}
}

func deepEqual[V any](a, b V) bool { return reflect.DeepEqual(a, b) }

func TestCodecsRoundTrip(t *testing.T) {
	five := 5
	at := time.Date(2026, 3, 4, 5, 6, 7, 89, time.FixedZone("", 5*3600+45*60))
	for _, codec := range []Codec{JSON, CBOR} {
		v := tree{Name: "a<b", Children: []*tree{{Name: "b"}, nil}, Index: map[string]tree{"x": {Name: "c"}, "y": {Name: "d"}}}
		roundTrip(t, codec, v, deepEqual)
		roundTrip(t, codec, wide{
			Part: Part{N: 1}, Inner: &Inner{2}, Maybe: &five, Raw: []byte{}, Parts: []Part{{Text: "first"}, {N: 2}},
			ByName: map[string]Part{"a": {Text: "a", Words: []string{"x", "y"}}, "b": {N: 2}, "c": {Words: []string{"z"}}},
		}, func(a, b wide) bool {
			return a.Inner.Within == 2 && reflect.DeepEqual(a.ByName, b.ByName) && *a.Maybe == 5
		})
		roundTrip(t, codec, math.MaxInt64, deepEqual)
		roundTrip(t, codec, []uint64{0, 1, 1 << 53, math.MaxUint64}, deepEqual)
		roundTrip(t, codec, []float64{0.1, 1e300, math.SmallestNonzeroFloat64, 1.5}, deepEqual)
		roundTrip(t, codec, struct{ A, B []int }{nil, []int{}}, deepEqual)
		roundTrip(t, codec, netip.MustParseAddr("2001:db8::1"), deepEqual)
		roundTrip(t, codec, json.Number("1.50"), deepEqual)
		roundTrip(t, codec, *new(big.Int).Lsh(big.NewInt(-3), 100), func(a, b big.Int) bool { return a.Cmp(&b) == 0 })
		// A time is shown the same in every tier: its zone belongs to it.
		roundTrip(t, codec, []time.Time{at, at.UTC(), {}}, func(a, b []time.Time) bool { return fmt.Sprint(a) == fmt.Sprint(b) })
		roundTrip(t, codec, (*Part)(nil), deepEqual)
	}
	roundTrip(t, CBOR, []float64{math.Inf(1), math.Inf(-1), math.Copysign(0, -1)}, deepEqual)
	roundTrip(t, CBOR, "any \xff bytes\x00", deepEqual)
	roundTrip(t, CBOR, map[point]*Part{{1, 2}: {N: 1}, {2, 1}: nil, {-1, 300}: {Text: "x"}}, deepEqual)
	for _, v := range []string{"", "text", "any \xff bytes\x00", strings.Repeat("long", 1000)} {
		roundTrip(t, Bytes, v, deepEqual)
		roundTrip(t, Bytes, []byte(v), deepEqual)
		roundTrip(t, Bytes, json.RawMessage(v), deepEqual)
		type page string
		roundTrip(t, Bytes, page(v), deepEqual)
	}
	roundTrip(t, Protobuf, message(t), func(a, b *structpb.Struct) bool { return proto.Equal(a, b) })
	roundTrip(t, Protobuf, &structpb.Struct{}, func(a, b *structpb.Struct) bool { return proto.Equal(a, b) })
	file := &descriptorpb.FileDescriptorProto{Name: new("f"), MessageType: []*descriptorpb.DescriptorProto{{Name: new("M")}}}
	roundTrip(t, Protobuf, file, func(a, b *descriptorpb.FileDescriptorProto) bool { return proto.Equal(a, b) })
}

// message is one of many fields, in a map.
func message(tb testing.TB) *structpb.Struct {
	tb.Helper()
	fields := map[string]any{}
	for n := range 20 {
		fields[fmt.Sprint("field ", n)] = []any{fmt.Sprint("text ", n), float64(n), map[string]any{"a": true, "b": nil}}
	}
	m, err := structpb.NewStruct(fields)
	if err != nil {
		tb.Fatal(err)
	}
	return m
}

// Whatever a value holds, it comes back as it was, and its version is that of an equal one.
func TestCodecsKeepAnyValue(t *testing.T) {
	for _, codec := range []Codec{JSON, CBOR} {
		if err := quick.Check(func(v wide) bool {
			v.Skipped = ""
			roundTrip(t, codec, v, deepEqual)
			return !t.Failed()
		}, &quick.Config{MaxCount: 100}); err != nil {
			t.Error(err)
		}
	}
}

func TestCoderErrors(t *testing.T) {
	type hidden struct{ secret4 }
	for name, c := range map[string]struct {
		err  error
		want []string
	}{
		"unknown":          {unsuited[int](9), []string{"Codec(9)", "JSON, CBOR, Protobuf or Bytes"}},
		"bytes":            {unsuited[point](Bytes), []string{"Bytes", "tiers.point", "[]byte, string"}},
		"bytes of ints":    {unsuited[[]int](Bytes), []string{"[]int"}},
		"protobuf":         {unsuited[*point](Protobuf), []string{"Protobuf", "*tiers.point", "generated message"}},
		"protobuf value":   {unsuited[structpb.Struct](Protobuf), []string{"pointer"}},
		"protobuf any":     {unsuited[proto.Message](Protobuf), []string{"pointer"}},
		"protobuf dynamic": {unsuited[*dynamicpb.Message](Protobuf), []string{"generated"}},
		"cbor":             {unsuited[secret4](CBOR), []string{"tiers.secret4", "MarshalBinary"}},
		"cbor deep":        {unsuited[map[string][]*hidden](CBOR), []string{"tiers.secret4", "MarshalBinary"}},
	} {
		if c.err == nil {
			t.Errorf("%s: no error", name)
			continue
		}
		for _, want := range c.want {
			if !strings.Contains(c.err.Error(), want) {
				t.Errorf("%s: %v; want %q in it", name, c.err, want)
			}
		}
	}

	if _, err := newCoder[float64](t, JSON).Encode(math.Inf(1)); err == nil || !strings.Contains(err.Error(), "float64") {
		t.Errorf("infinity: %v", err)
	}
	if _, err := newCoder[func()](t, CBOR).Encode(nil); err == nil {
		t.Error("a function became CBOR")
	}
	if _, err := newCoder[*structpb.Struct](t, Protobuf).Encode(nil); err == nil || !strings.Contains(err.Error(), "nil") {
		t.Errorf("no message: %v", err)
	}
	points := newCoder[point](t, 0)
	for _, codec := range []Codec{0, CBOR, Bytes, 200} {
		if _, err := points.Decode(codec, []byte("{}")); err == nil || !strings.Contains(err.Error(), codec.String()) {
			t.Errorf("codec %d: %v", codec, err)
		}
	}
	v, err := points.Decode(JSON, []byte(`{"X":1,"Y":"two"}`))
	if typed, ok := errors.AsType[*json.UnmarshalTypeError](err); !ok || typed.Field != "Y" {
		t.Errorf("wrong type: %v", err)
	}
	if v != (point{}) {
		t.Errorf("half a value %+v came with the error", v)
	}
	for codec, decode := range map[Codec]func([]byte) error{
		CBOR: func(b []byte) error { _, err := newCoder[tree](t, CBOR).Decode(CBOR, b); return err },
		Protobuf: func(b []byte) error {
			_, err := newCoder[*structpb.Struct](t, Protobuf).Decode(Protobuf, b)
			return err
		},
	} {
		for _, b := range [][]byte{{0xff}, bytes.Repeat([]byte{0x81}, 1<<20), {0x9b, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff}} {
			if decode(b) == nil {
				t.Errorf("%v: %.10x became a value", codec, b)
			}
		}
	}
}

type secret4 struct{ hidden int }

func (secret4) MarshalJSON() ([]byte, error)     { return []byte("1"), nil }
func (s *secret4) UnmarshalJSON(b []byte) error  { s.hidden = len(b); return nil }
func unsuited[V any](codec Codec) (unsuit error) { _, unsuit = NewCoder[V](codec); return unsuit }

// A value that is read shares nothing with the value that was written.
func TestBytesAreCopied(t *testing.T) {
	b := newPacking(t, Compression{})
	c := newCoder[[]byte](t, Bytes)
	v := []byte("as it was")
	payload, err := c.Encode(v)
	if err != nil {
		t.Fatal(err)
	}
	entry, err := b.EncodeEntry(nil, Header{Codec: Bytes}, payload)
	if err != nil {
		t.Fatal(err)
	}
	copy(v, "XXXX")
	_, payload, err = b.DecodeEntry(entry)
	if err != nil {
		t.Fatal(err)
	}
	got, err := c.Decode(Bytes, payload)
	clear(entry)
	if err != nil || string(got) != "as it was" || cap(got) > 2*len(got) {
		t.Errorf("%q of %d bytes, %v", got, cap(got), err)
	}
}

// FuzzDecodeValue: no bytes make a codec panic, or a value that it would not read again.
func FuzzDecodeValue(f *testing.F) {
	trees, messages := newCoder[tree](f, CBOR), newCoder[*structpb.Struct](f, Protobuf)
	b, err := trees.Encode(tree{Name: "a", Children: []*tree{{Name: "b"}}, Index: map[string]tree{"x": {}}})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	if b, err = messages.Encode(message(f)); err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Fuzz(func(t *testing.T, b []byte) {
		if v, err := trees.Decode(CBOR, b); err == nil {
			roundTrip(t, CBOR, v, deepEqual)
		}
		if v, err := messages.Decode(Protobuf, b); err == nil {
			roundTrip(t, Protobuf, v, func(a, b *structpb.Struct) bool { return proto.Equal(a, b) })
		}
	})
}

// catalogueValue is the value of [catalogue].
type catalogueValue []struct {
	ID          int    `json:"id"`
	Name        string `json:"name"`
	Description string `json:"description"`
	Variants    []struct {
		SKU   string  `json:"sku"`
		Price float64 `json:"price"`
		Stock int     `json:"stock"`
	} `json:"variants"`
	UpdatedAt time.Time `json:"updated_at"`
}

// BenchmarkCodec compares codecs, compressed and not, on what an L2 hit and a fill do besides the network: "%" is the
// size of the entry against uncompressed JSON's.
func BenchmarkCodec(b *testing.B) {
	for _, size := range []int{2 << 10, 20 << 10} {
		text := catalogue(b, size)
		var v catalogueValue
		if err := json.Unmarshal(text, &v); err != nil {
			b.Fatal(err)
		}
		for _, algorithm := range []Algorithm{NoCompression, S2, Zstd} {
			p := newPacking(b, Compression{Algorithm: algorithm})
			name := fmt.Sprintf("%s/%d", [...]string{S2: "s2", Zstd: "zstd", NoCompression: "plain"}[algorithm], size)
			benchCodec(b, "JSON/"+name, p, newCoder[catalogueValue](b, JSON), v, len(text))
			benchCodec(b, "CBOR/"+name, p, newCoder[catalogueValue](b, CBOR), v, len(text))
			benchCodec(b, "Bytes/"+name, p, newCoder[[]byte](b, Bytes), text, len(text))
		}
	}
}

func benchCodec[V any](b *testing.B, name string, p *Packing, c *Coder[V], v V, size int) {
	b.Helper()
	h := fullHeader()
	h.Codec = c.codec
	fill := func() []byte {
		payload, err := c.Encode(v)
		if err != nil {
			b.Fatal(err)
		}
		entry, err := p.EncodeEntry(nil, h, payload)
		if err != nil {
			b.Fatal(err)
		}
		return entry
	}
	entry := slices.Clip(fill())
	b.Run(name+"/fill", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			fill()
		}
	})
	b.Run(name+"/hit", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			h, payload, err := p.DecodeEntry(entry)
			if err != nil {
				b.Fatal(err)
			}
			if _, err := c.Decode(h.Codec, payload); err != nil {
				b.Fatal(err)
			}
		}
		b.ReportMetric(100*float64(len(entry))/float64(size), "%")
	})
}
