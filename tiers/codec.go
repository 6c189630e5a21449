package tiers

import (
	"encoding/json"
	"fmt"
)

// Codec says how a value became an entry's payload. It is written into the entry.
type Codec byte

// JSON is encoding/json: the one codec so far. 0 is no codec, so that a forgotten one is noticed.
const JSON Codec = 1

// EncodeValue is the payload of v in [JSON].
func EncodeValue[V any](v V) ([]byte, error) {
	b, err := json.Marshal(v)
	if err != nil {
		return nil, fmt.Errorf("tiers: encode %T: %w", v, err)
	}
	return b, nil
}

// DecodeValue is the value whose payload b is. It does not keep b. An unknown codec is an error, as
// are bytes that the codec cannot read into a V.
func DecodeValue[V any](codec Codec, b []byte) (V, error) {
	var v, none V
	if codec != JSON {
		return none, fmt.Errorf("tiers: decode %T: unknown codec %d, want %d (JSON)", v, codec, JSON)
	}
	if err := json.Unmarshal(b, &v); err != nil {
		return none, fmt.Errorf("tiers: decode %T: %w", none, err)
	}
	return v, nil
}
