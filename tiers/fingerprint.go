package tiers

import (
	"cmp"
	"encoding"
	"encoding/json"
	"fmt"
	"math/big"
	"reflect"
	"slices"
	"strconv"
	"time"

	"github.com/cespare/xxhash/v2"
	"github.com/fxamacker/cbor/v2"
	"google.golang.org/protobuf/reflect/protoreflect"
)

// Fingerprint names the codec and the form that V has in it: kinds, field names, the tags that the codec
// reads, and everything nested; of a protobuf message its fields with their names, numbers and kinds. An entry
// written by a build where V looked different has another fingerprint and is a miss, so that an old replica and a
// new one never misread each other's entries during a deployment.
//
// Renaming, adding, removing, moving or retyping a field changes it; renaming or moving V itself does
// not, nor does a method that the codec does not call. It is the same in every build and on every platform. A type
// that encodes itself (MarshalJSON, MarshalText or their counterparts) is known by package path and name only: if
// such a type changes its encoding, the namespace needs a new generation. The same holds for a field that keeps its
// name and changes its meaning, and for values of [Bytes], whose form only the application knows.
//
// It walks the type by reflection, which takes microseconds: compute it once per cache.
func Fingerprint[V any](codec Codec) uint64 {
	d := description{form: formOf(codec), seen: map[reflect.Type]int{}}
	switch codec {
	case Protobuf:
		d.text = []byte("protobuf 1 ")
		if message, err := messageOf[V](); err == nil {
			d.addMessage(message.Descriptor(), map[protoreflect.FullName]int{})
		}
	case Bytes:
		d.text = []byte("bytes 1 ")
	case CBOR:
		d.text = []byte("cbor 1 ")
		d.add(reflect.TypeFor[V]())
	default:
		d.text = []byte("json 1 ")
		d.add(reflect.TypeFor[V]())
	}
	return xxhash.Sum64(d.text)
}

// form is what a codec looks at in a Go type.
type form struct {
	tags   []string       // keys of field tags; the first that a field has counts
	exact  []reflect.Type // types that it knows by name
	ifaces []reflect.Type // by whose methods a type encodes or decodes itself
	// options: the tag of a field named _ says how its struct is encoded.
	options bool
}

func formOf(codec Codec) form {
	text := []reflect.Type{reflect.TypeFor[encoding.TextMarshaler](), reflect.TypeFor[encoding.TextUnmarshaler]()}
	if codec != CBOR {
		return form{
			tags: []string{"json"}, exact: []reflect.Type{reflect.TypeFor[json.Number]()},
			ifaces: append(text, reflect.TypeFor[json.Marshaler](), reflect.TypeFor[json.Unmarshaler]()),
		}
	}
	return form{
		tags: []string{"cbor", "json"}, exact: []reflect.Type{reflect.TypeFor[time.Time](), reflect.TypeFor[big.Int]()},
		ifaces: append(
			text, reflect.TypeFor[encoding.BinaryMarshaler](), reflect.TypeFor[encoding.BinaryUnmarshaler](),
			reflect.TypeFor[cbor.Marshaler](), reflect.TypeFor[cbor.Unmarshaler](),
		),
		options: true,
	}
}

// description is the canonical text of a type. Each composite type is described where it is first
// met and mentioned by number afterwards, which ends recursion.
type description struct {
	form
	text []byte
	seen map[reflect.Type]int // composite type -> its number, in order of first meeting
}

func (d *description) add(t reflect.Type) {
	if d.encodesItself(t) {
		name := t.Name()
		if name == "" {
			name = t.String() // an unnamed struct with a promoted method
		}
		d.text = fmt.Appendf(d.text, "self %q.%q", t.PkgPath(), name)
		return
	}
	switch t.Kind() {
	case reflect.Struct, reflect.Pointer, reflect.Slice, reflect.Array, reflect.Map:
		if number, ok := d.seen[t]; ok {
			d.text = fmt.Appendf(d.text, "#%d", number)
			return
		}
		d.seen[t] = len(d.seen)
	default:
	}
	switch t.Kind() {
	case reflect.Struct:
		d.addStruct(t)
	case reflect.Pointer:
		d.text = append(d.text, '*')
		d.add(t.Elem())
	case reflect.Slice:
		d.text = append(d.text, "[]"...)
		d.add(t.Elem())
	case reflect.Array:
		d.text = append(d.text, '[')
		d.text = strconv.AppendInt(d.text, int64(t.Len()), 10)
		d.text = append(d.text, ']')
		d.add(t.Elem())
	case reflect.Map:
		d.text = append(d.text, "map["...)
		d.add(t.Key())
		d.text = append(d.text, ']')
		d.add(t.Elem())
	default:
		d.text = append(d.text, t.Kind().String()...)
	}
}

func (d *description) addStruct(t reflect.Type) {
	d.text = append(d.text, '{')
	for f := range t.Fields() {
		tag := d.tag(f)
		if d.options && f.Name == "_" && tag != "" {
			d.text = fmt.Appendf(d.text, "%q ", tag)
		}
		if tag == "-" {
			continue
		}
		if !f.IsExported() && !embedsStruct(f) {
			continue
		}
		// The Go name counts even behind a tag: exchanging the tags of two fields is a change.
		d.text = fmt.Appendf(d.text, "%q %q ", f.Name, tag)
		if f.Anonymous {
			d.text = append(d.text, "embedded "...)
		}
		d.add(f.Type)
		d.text = append(d.text, ';')
	}
	d.text = append(d.text, '}')
}

// tag is the field's tag that the codec reads.
func (d *description) tag(f reflect.StructField) string {
	for _, key := range d.tags {
		if tag, ok := f.Tag.Lookup(key); ok && (tag != "" || len(d.tags) == 1) {
			return tag
		}
	}
	return ""
}

// embedsStruct reports whether a codec descends into the field although its name is not exported: an
// embedded struct, or a pointer to one.
func embedsStruct(f reflect.StructField) bool {
	t := f.Type
	if t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	return f.Anonymous && t.Kind() == reflect.Struct
}

func (d *description) encodesItself(t reflect.Type) bool {
	if t.Kind() == reflect.Pointer {
		return false // decided at what it points to
	}
	return slices.Contains(d.exact, t) || implementsAny(t, d.ifaces)
}

// implementsAny reports whether the type, or a pointer to it, has the methods of one of the interfaces.
func implementsAny(t reflect.Type, ifaces []reflect.Type) bool {
	return slices.ContainsFunc(ifaces, func(i reflect.Type) bool { return t.Implements(i) || reflect.PointerTo(t).Implements(i) })
}

// addMessage describes a protobuf message: its fields in the order of their numbers.
func (d *description) addMessage(m protoreflect.MessageDescriptor, seen map[protoreflect.FullName]int) {
	if number, ok := seen[m.FullName()]; ok {
		d.text = fmt.Appendf(d.text, "#%d", number)
		return
	}
	seen[m.FullName()] = len(seen)
	fields := make([]protoreflect.FieldDescriptor, m.Fields().Len())
	for i := range fields {
		fields[i] = m.Fields().Get(i)
	}
	slices.SortFunc(fields, func(a, b protoreflect.FieldDescriptor) int { return cmp.Compare(a.Number(), b.Number()) })
	d.text = append(d.text, '{')
	for _, f := range fields {
		d.text = fmt.Appendf(d.text, "%d %q %v %v presence=%v ", f.Number(), f.Name(), f.Cardinality(), f.Kind(), f.HasPresence())
		if oneof := f.ContainingOneof(); oneof != nil {
			d.text = fmt.Appendf(d.text, "oneof %q ", oneof.Name())
		}
		if f.Message() != nil {
			d.addMessage(f.Message(), seen)
		}
		if f.Enum() != nil {
			values := f.Enum().Values()
			for i := range values.Len() {
				d.text = fmt.Appendf(d.text, "%d=%q ", values.Get(i).Number(), values.Get(i).Name())
			}
		}
		d.text = append(d.text, ';')
	}
	d.text = append(d.text, '}')
}

// onlyJSON is a struct in the type, itself among them, that keeps its state to itself and tells it to
// encoding/json alone; nil if there is none.
func onlyJSON(t reflect.Type) reflect.Type {
	ways := formOf(CBOR)
	asJSON := []reflect.Type{reflect.TypeFor[json.Marshaler](), reflect.TypeFor[json.Unmarshaler]()}
	seen := map[reflect.Type]bool{}
	var find func(t reflect.Type) reflect.Type
	find = func(t reflect.Type) reflect.Type {
		if seen[t] || slices.Contains(ways.exact, t) {
			return nil
		}
		seen[t] = true
		switch t.Kind() {
		case reflect.Pointer, reflect.Slice, reflect.Array:
			return find(t.Elem())
		case reflect.Map:
			if found := find(t.Key()); found != nil {
				return found
			}
			return find(t.Elem())
		case reflect.Struct:
		default:
			return nil
		}
		if implementsAny(t, ways.ifaces) {
			return nil
		}
		hides := false
		for f := range t.Fields() {
			hides = hides || !f.IsExported()
			if f.IsExported() || embedsStruct(f) {
				if found := find(f.Type); found != nil {
					return found
				}
			}
		}
		if hides && implementsAny(t, asJSON) {
			return t
		}
		return nil
	}
	return find(t)
}
