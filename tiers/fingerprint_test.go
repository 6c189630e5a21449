package tiers

import (
	"encoding/json"
	"math/big"
	"testing"
	"time"

	"google.golang.org/protobuf/reflect/protodesc"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/descriptorpb"
	"google.golang.org/protobuf/types/known/structpb"
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
		"int":              Fingerprint[int](JSON),
		"int64":            Fingerprint[int64](JSON),
		"string":           Fingerprint[string](JSON),
		"any":              Fingerprint[any](JSON),
		"bytes":            Fingerprint[[]byte](JSON),
		"raw":              Fingerprint[json.RawMessage](JSON),
		"number":           Fingerprint[json.Number](JSON),
		"time":             Fingerprint[time.Time](JSON),
		"duration pointer": Fingerprint[*time.Duration](JSON),
		"big":              Fingerprint[big.Int](JSON),
		"slice":            Fingerprint[[]int](JSON),
		"array 3":          Fingerprint[[3]int](JSON),
		"array 4":          Fingerprint[[4]int](JSON),
		"pointer":          Fingerprint[*int](JSON),
		"pointer pointer":  Fingerprint[**int](JSON),
		"map":              Fingerprint[map[string]int](JSON),
		"map of int keys":  Fingerprint[map[int]int](JSON),
		"map of slices":    Fingerprint[map[string][]int](JSON),
		"field":            Fingerprint[struct{ A int }](JSON),
		"retyped":          Fingerprint[struct{ A int32 }](JSON),
		"renamed":          Fingerprint[struct{ B int }](JSON),
		"pointer field":    Fingerprint[struct{ A *int }](JSON),
		"added":            Fingerprint[struct{ A, B int }](JSON),
		"moved":            Fingerprint[struct{ B, A int }](JSON),
		"tagged": Fingerprint[struct {
			A int `json:"a"`
		}](JSON),
		"tagged and moved": Fingerprint[struct {
			B int `json:"a"`
		}](JSON),
		"omitempty": Fingerprint[struct {
			A int `json:"a,omitempty"`
		}](JSON),
		"as string": Fingerprint[struct {
			A int `json:"a,string"`
		}](JSON),
		"tags one way": Fingerprint[struct {
			A int `json:"x"`
			B int `json:"y"`
		}](JSON),
		"tags other way": Fingerprint[struct {
			A int `json:"y"`
			B int `json:"x"`
		}](JSON),
		"nested":            Fingerprint[struct{ P struct{ A int } }](JSON),
		"nested retyped":    Fingerprint[struct{ P struct{ A string } }](JSON),
		"embedded":          Fingerprint[struct{ point }](JSON),
		"not embedded":      Fingerprint[struct{ Point point }](JSON),
		"self encoding":     Fingerprint[secret](JSON),
		"self decoding":     Fingerprint[secret2](JSON),
		"self encoding []":  Fingerprint[[]secret](JSON),
		"promoted encoding": Fingerprint[struct{ secret }](JSON),
		"recursive":         Fingerprint[tree](JSON),
		"mutually":          Fingerprint[left](JSON),
		"other end of it":   Fingerprint[right](JSON),
		"same twice":        Fingerprint[struct{ A, B point }](JSON),
		"same and other": Fingerprint[struct {
			A point
			B []point
		}](JSON),
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
	if Fingerprint[before](JSON) != Fingerprint[after](JSON) {
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
		{"string", Fingerprint[string](JSON), 0x4f2b7bbf224e65c6},
		{"tree", Fingerprint[tree](JSON), 0x70ffba8301065296},
		{"time", Fingerprint[struct {
			At time.Time `json:"at"`
		}](JSON), 0xc2046abf3f841dd2},
	} {
		if c.got != c.want {
			t.Errorf("%s: %#x, want %#x", c.name, c.got, c.want)
		}
	}
}

// What CBOR looks at changes the fingerprint; what only JSON looks at does not.
func TestFingerprintOfCBOR(t *testing.T) {
	type before struct {
		A int `json:"a"`
		B int `cbor:"b" json:"b"`
	}
	type same struct {
		A    int `json:"a" db:"column_a"`
		B    int `cbor:"b" json:"other"`
		Skip int `cbor:"-" json:"c"`
	}
	if Fingerprint[before](CBOR) != Fingerprint[same](CBOR) {
		t.Error("a json tag behind a cbor tag, or a field without an encoding, changed the fingerprint")
	}
	if Fingerprint[withMethod](CBOR) != Fingerprint[struct{ A int }](CBOR) {
		t.Error("a method that no codec calls changed the fingerprint")
	}
	forms := map[string]uint64{
		"before":        Fingerprint[before](CBOR),
		"before, JSON":  Fingerprint[before](JSON),
		"before, bytes": Fingerprint[string](Bytes),
		"tag renamed": Fingerprint[struct {
			A int `json:"a"`
			B int `cbor:"c" json:"b"`
		}](CBOR),
		"json tag renamed": Fingerprint[struct {
			A int `json:"c"`
			B int `cbor:"b" json:"b"`
		}](CBOR),
		"field renamed": Fingerprint[struct {
			C int `json:"a"`
			B int `cbor:"b" json:"b"`
		}](CBOR),
		"retyped": Fingerprint[struct {
			A int64 `json:"a"`
			B int   `cbor:"b" json:"b"`
		}](CBOR),
		"as array": Fingerprint[struct {
			_ struct{} `cbor:",toarray"`
			A int      `json:"a"`
			B int      `cbor:"b" json:"b"`
		}](CBOR),
		"by number": Fingerprint[struct {
			A int `json:"a"`
			B int `cbor:"1,keyasint" json:"b"`
		}](CBOR),
		"encodes itself":    Fingerprint[textual](CBOR),
		"a field does":      Fingerprint[struct{ A textual }](CBOR),
		"as what it is":     Fingerprint[struct{ A struct{ S string } }](CBOR),
		"encodes as JSON":   Fingerprint[secret](CBOR), // which CBOR does not ask for
		"time":              Fingerprint[time.Time](CBOR),
		"a number, as text": Fingerprint[json.Number](CBOR),
	}
	seen := make(map[uint64]string)
	for name, sum := range forms {
		if other, ok := seen[sum]; ok {
			t.Errorf("%s and %s share the fingerprint %#x", name, other, sum)
		}
		seen[sum] = name
	}
}

type withMethod struct{ A int }

func (withMethod) Unrelated() {}

type textual struct{ S string }

func (t textual) MarshalText() ([]byte, error) { return []byte(t.S), nil }

func (t *textual) UnmarshalText(b []byte) error {
	t.S = string(b)
	return nil
}

// A message's fields count, whatever file or Go package they are in.
func TestFingerprintOfMessages(t *testing.T) {
	describe := func(change func(m *descriptorpb.DescriptorProto, e *descriptorpb.EnumDescriptorProto, f *descriptorpb.FileDescriptorProto)) string {
		t.Helper()
		field := func(name string, number int32, kind descriptorpb.FieldDescriptorProto_Type, of string) *descriptorpb.FieldDescriptorProto {
			f := &descriptorpb.FieldDescriptorProto{Name: &name, Number: &number, Type: &kind}
			f.Label = descriptorpb.FieldDescriptorProto_LABEL_OPTIONAL.Enum()
			if of != "" {
				f.TypeName = &of
			}
			return f
		}
		m := &descriptorpb.DescriptorProto{Name: new("Product"), Field: []*descriptorpb.FieldDescriptorProto{
			field("id", 1, descriptorpb.FieldDescriptorProto_TYPE_INT64, ""),
			field("state", 2, descriptorpb.FieldDescriptorProto_TYPE_ENUM, ".shop.State"),
			field("parent", 3, descriptorpb.FieldDescriptorProto_TYPE_MESSAGE, ".shop.Product"),
		}}
		e := &descriptorpb.EnumDescriptorProto{Name: new("State"), Value: []*descriptorpb.EnumValueDescriptorProto{
			{Name: new("NONE"), Number: new(int32(0))}, {Name: new("SOLD"), Number: new(int32(1))},
		}}
		f := &descriptorpb.FileDescriptorProto{Name: new("shop.proto"), Package: new("shop"), Syntax: new("proto3")}
		change(m, e, f)
		f.MessageType, f.EnumType = append(f.MessageType, m), append(f.EnumType, e)
		file, err := protodesc.NewFile(f, nil)
		if err != nil {
			t.Fatal(err)
		}
		var d description
		d.addMessage(file.Messages().ByName("Product"), map[protoreflect.FullName]int{})
		return string(d.text)
	}
	type (
		message = *descriptorpb.DescriptorProto
		enum    = *descriptorpb.EnumDescriptorProto
		inFile  = *descriptorpb.FileDescriptorProto
	)
	before := describe(func(message, enum, inFile) {})
	if got := describe(func(m message, _ enum, f inFile) {
		f.Name = new("elsewhere.proto")
		f.MessageType = append(f.MessageType, &descriptorpb.DescriptorProto{Name: new("Unrelated")})
		m.Field[0], m.Field[2] = m.Field[2], m.Field[0] // as they stand in the file; numbers are what counts
	}); got != before {
		t.Errorf("what the message is not made of changed its description:\n%s\n%s", before, got)
	}
	for name, change := range map[string]func(message, enum, inFile){
		"renamed":    func(m message, _ enum, _ inFile) { m.Field[0].Name = new("key") },
		"renumbered": func(m message, _ enum, _ inFile) { m.Field[0].Number = new(int32(9)) },
		"retyped": func(m message, _ enum, _ inFile) {
			m.Field[0].Type = descriptorpb.FieldDescriptorProto_TYPE_SINT64.Enum()
		},
		"removed": func(m message, _ enum, _ inFile) { m.Field = m.Field[:2] },
		"repeated": func(m message, _ enum, _ inFile) {
			m.Field[0].Label = descriptorpb.FieldDescriptorProto_LABEL_REPEATED.Enum()
		},
		"value renamed": func(_ message, e enum, _ inFile) { e.Value[1].Name = new("GONE") },
		"value added": func(_ message, e enum, _ inFile) {
			e.Value = append(e.Value, &descriptorpb.EnumValueDescriptorProto{Name: new("NEW"), Number: new(int32(2))})
		},
	} {
		if describe(change) == before {
			t.Errorf("%s: the description stays the same", name)
		}
	}
	if Fingerprint[*structpb.Struct](Protobuf) == Fingerprint[*structpb.Value](Protobuf) {
		t.Error("two messages share a fingerprint")
	}
}
