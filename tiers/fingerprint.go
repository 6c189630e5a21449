package tiers

import (
	"encoding"
	"encoding/json"
	"fmt"
	"reflect"
	"strconv"

	"github.com/cespare/xxhash/v2"
)

// Fingerprint names the form that V has in JSON: kinds, field names, json tags and everything nested.
// An entry written by a build where V looked different has another fingerprint and is a miss, so that
// an old replica and a new one never misread each other's entries during a deployment.
//
// Renaming, adding, removing, moving or retyping a field changes it; renaming or moving V itself does
// not. It is the same in every build and on every platform. A type that encodes itself (MarshalJSON,
// MarshalText or their counterparts) is known by package path and name only: if such a type changes
// its encoding, the namespace needs a new generation. The same holds for a field that keeps its name
// and changes its meaning.
//
// It walks the type by reflection, which takes microseconds: compute it once per cache.
func Fingerprint[V any]() uint64 {
	d := description{text: []byte("json 1 "), seen: make(map[reflect.Type]int)}
	d.add(reflect.TypeFor[V]())
	return xxhash.Sum64(d.text)
}

// description is the canonical text of a type. Each composite type is described where it is first
// met and mentioned by number afterwards, which ends recursion.
type description struct {
	text []byte
	seen map[reflect.Type]int // composite type -> its number, in order of first meeting
}

func (d *description) add(t reflect.Type) {
	if encodesItself(t) {
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
		tag := f.Tag.Get("json")
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

// embedsStruct reports whether encoding/json descends into the field although its name is not
// exported: an embedded struct, or a pointer to one.
func embedsStruct(f reflect.StructField) bool {
	t := f.Type
	if t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	return f.Anonymous && t.Kind() == reflect.Struct
}

func encodesItself(t reflect.Type) bool {
	if t.Kind() == reflect.Pointer {
		return false // decided at what it points to
	}
	if t == reflect.TypeFor[json.Number]() {
		return true // encoding/json knows it by name
	}
	for _, form := range [...]reflect.Type{
		reflect.TypeFor[json.Marshaler](), reflect.TypeFor[json.Unmarshaler](),
		reflect.TypeFor[encoding.TextMarshaler](), reflect.TypeFor[encoding.TextUnmarshaler](),
	} {
		if t.Implements(form) || reflect.PointerTo(t).Implements(form) {
			return true
		}
	}
	return false
}
