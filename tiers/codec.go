package tiers

import (
	"encoding/json"
	"errors"
	"fmt"
	"reflect"

	"github.com/fxamacker/cbor/v2"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
)

// Codec says how a value becomes an entry's payload. It is written into the entry.
type Codec byte

// The codecs, with their numbers in entries. 0 is no codec, so that a forgotten one is noticed.
const (
	// JSON is encoding/json, for any type.
	JSON Codec = 1
	// CBOR is RFC 8949 in its deterministic form, for any type: JSON's rules for fields and their json
	// tags, and cbor tags before those; read three times as fast, and somewhat smaller. Numbers, bytes and times come
	// back as they were, a time with the offset of its zone, which is cut to the minute: zones of before 1940 had
	// seconds. What stands in an interface comes back as the plain type that holds it, integers as int64.
	CBOR Codec = 2
	// Protobuf is the wire format, for pointers to messages of generated Go code. Replicas of one build give equal
	// messages equal bytes; different builds may not.
	Protobuf Codec = 3
	// Bytes takes the value as it is, for []byte, string and types made of them. nil comes back as empty.
	Bytes Codec = 4
)

// String is the codec's name in errors.
func (c Codec) String() string {
	switch c {
	case JSON:
		return "JSON"
	case CBOR:
		return "CBOR"
	case Protobuf:
		return "Protobuf"
	case Bytes:
		return "Bytes"
	}
	return fmt.Sprintf("Codec(%d)", byte(c))
}

// known reports whether this build can read the codec.
func (c Codec) known() bool { return c >= JSON && c <= Bytes }

// Coder encodes and decodes values of one type by one codec. It is safe for concurrent use.
type Coder[V any] struct {
	codec       Codec
	fingerprint uint64
	encode      func(v V) ([]byte, error)
	decode      func(b []byte) (V, error)
}

// NewCoder makes a coder; codec 0 means [JSON]. The error says why V does not suit the codec.
func NewCoder[V any](codec Codec) (*Coder[V], error) {
	c := &Coder[V]{codec: codec}
	var err error
	switch codec {
	case 0, JSON:
		c.codec, c.encode, c.decode = JSON, encodeJSON[V], decodeJSON[V]
	case CBOR:
		err = c.useCBOR()
	case Protobuf:
		err = c.useProtobuf()
	case Bytes:
		err = c.useBytes()
	default:
		err = errors.New("want JSON, CBOR, Protobuf or Bytes")
	}
	if err != nil {
		return nil, fmt.Errorf("tiers: Codec is %v for %v: %w", codec, reflect.TypeFor[V](), err)
	}
	c.fingerprint = Fingerprint[V](c.codec)
	return c, nil
}

// Encode is the payload of v, which may share its memory: neither may be changed while the other is in use.
func (c *Coder[V]) Encode(v V) ([]byte, error) {
	b, err := c.encode(v)
	if err != nil {
		return nil, fmt.Errorf("tiers: encode %T: %w", v, err)
	}
	return b, nil
}

// Decode is the value whose payload b is, as the codec wrote it. It does not keep b. Bytes of another
// codec are an error, as are those that cannot be read into a V.
func (c *Coder[V]) Decode(codec Codec, b []byte) (V, error) {
	var none V
	if codec != c.codec {
		return none, fmt.Errorf("tiers: decode %T: written as %v, want %v", none, codec, c.codec)
	}
	v, err := c.decode(b)
	if err != nil {
		return none, fmt.Errorf("tiers: decode %T: %w", none, err)
	}
	return v, nil
}

// A pointer, so that what is in v can encode itself by a method of its pointer.
func encodeJSON[V any](v V) ([]byte, error) { return json.Marshal(&v) }

func decodeJSON[V any](b []byte) (v V, err error) {
	err = json.Unmarshal(b, &v)
	return v, err
}

// Bounds on what CBOR may make of a payload. A value beyond them is encoded, and read by nobody.
const (
	maxNesting  = 1000
	maxElements = 1 << 24 // of one array or map
)

func (c *Coder[V]) useCBOR() error {
	if t := onlyJSON(reflect.TypeFor[V]()); t != nil {
		return fmt.Errorf("%v hides fields and encodes itself as JSON only, so that CBOR would lose them: want MarshalBinary and UnmarshalBinary of it, or the codec JSON", t)
	}
	write, err := cbor.EncOptions{
		Sort:            cbor.SortBytewiseLexical, // of maps: the same value has the same bytes on every replica
		Time:            cbor.TimeRFC3339Nano,
		NaNConvert:      cbor.NaNConvertPreserveSignal,
		InfConvert:      cbor.InfConvertFloat16,
		ShortestFloat:   cbor.ShortestFloat16,
		BinaryMarshaler: cbor.BinaryMarshalerByteString,
		TextMarshaler:   cbor.TextMarshalerTextString,
	}.EncMode()
	if err != nil {
		return err
	}
	read, err := cbor.DecOptions{
		IntDec:            cbor.IntDecConvertSignedOrBigInt,
		DefaultMapType:    reflect.TypeFor[map[string]any](),
		FieldNameMatching: cbor.FieldNameMatchingCaseSensitive,
		UTF8:              cbor.UTF8DecodeInvalid, // a Go string may hold any bytes
		BinaryUnmarshaler: cbor.BinaryUnmarshalerByteString,
		TextUnmarshaler:   cbor.TextUnmarshalerTextString,
		MaxNestedLevels:   maxNesting,
		MaxArrayElements:  maxElements,
		MaxMapPairs:       maxElements,
	}.DecMode()
	if err != nil {
		return err
	}
	c.encode = func(v V) ([]byte, error) { return write.Marshal(&v) }
	c.decode = func(b []byte) (v V, err error) {
		err = read.Unmarshal(b, &v)
		return v, err
	}
	return nil
}

func (c *Coder[V]) useProtobuf() error {
	message, err := messageOf[V]()
	if err != nil {
		return err
	}
	write := proto.MarshalOptions{Deterministic: true}
	c.encode = func(v V) ([]byte, error) {
		m, _ := any(v).(proto.Message)
		if !m.ProtoReflect().IsValid() {
			return nil, errors.New("it is nil, which is no message")
		}
		return write.Marshal(m)
	}
	c.decode = func(b []byte) (v V, err error) {
		m := message.New().Interface()
		err = proto.Unmarshal(b, m) // it copies: no field shares b's memory
		v, _ = m.(V)
		return v, err
	}
	return nil
}

// messageOf is the type of message that a V points to.
func messageOf[V any]() (protoreflect.MessageType, error) {
	t := reflect.TypeFor[V]()
	if t.Kind() != reflect.Pointer {
		return nil, errors.New("want a pointer to a generated message")
	}
	m, ok := reflect.TypeAssert[proto.Message](reflect.New(t.Elem()))
	if !ok || m.ProtoReflect().Descriptor() == nil { // a dynamic message knows its type only by its value
		return nil, errors.New("want a pointer to a generated message")
	}
	return m.ProtoReflect().Type(), nil
}

func (c *Coder[V]) useBytes() error {
	t := reflect.TypeFor[V]()
	switch {
	case t.Kind() == reflect.String:
		c.encode = func(v V) ([]byte, error) { return []byte(reflect.ValueOf(v).String()), nil }
		c.decode = func(b []byte) (v V, _ error) {
			reflect.ValueOf(&v).Elem().SetString(string(b))
			return v, nil
		}
	case t.Kind() == reflect.Slice && t.Elem().Kind() == reflect.Uint8:
		c.encode = func(v V) ([]byte, error) { return reflect.ValueOf(v).Bytes(), nil }
		c.decode = func(b []byte) (v V, _ error) {
			reflect.ValueOf(&v).Elem().SetBytes(append([]byte{}, b...)) // b is part of the whole entry
			return v, nil
		}
	default:
		return errors.New("want []byte, string, or a type made of one of them")
	}
	return nil
}
