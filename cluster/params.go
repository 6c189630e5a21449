package cluster

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"slices"
)

// Bounds of the parameters of one query; [Keys.Query] refuses more.
const (
	MaxParams      = 64       // parameters
	MaxParamsBytes = 16 << 10 // bytes of all names and values together
)

// Params are the parameters of a list or a count, name -> value. They are canonical in that order
// does not matter: the same names with the same values are the same query. A parameter with an empty
// value is not the same as none. Nil and empty are the query without parameters.
type Params map[string]string

const paramsHashLen = 32 // hex digits of 128 bits

// Hash returns 128 bits over the parameters as 32 lower-case hexadecimal digits. It is the start of
// the SHA-256 of an encoding that differs for any two different Params, so it does not collide by
// accident, nor by a client that chooses parameters to make it.
func (p Params) Hash() string {
	h := p.hash()
	return string(h[:])
}

func (p Params) hash() (text [paramsHashLen]byte) {
	var space [512]byte // most queries fit, and then nothing is allocated
	sum := sha256.Sum256(p.appendCanonical(space[:0]))
	hex.Encode(text[:], sum[:paramsHashLen/2])
	return text
}

// appendCanonical appends name and value of each parameter in the order of the names, each as its
// length (a uvarint) and its bytes. The encoding can be read back, so it is injective.
func (p Params) appendCanonical(b []byte) []byte {
	var space [16]string
	names := space[:0]
	for name := range p {
		names = append(names, name)
	}
	slices.Sort(names)
	for _, name := range names {
		value := p[name]
		b = binary.AppendUvarint(b, uint64(len(name)))
		b = append(b, name...)
		b = binary.AppendUvarint(b, uint64(len(value)))
		b = append(b, value...)
	}
	return b
}

func (p Params) check() error {
	if len(p) > MaxParams {
		return fmt.Errorf("cluster: params has %d parameters: want at most %d", len(p), MaxParams)
	}
	size := 0
	for name, value := range p {
		size += len(name) + len(value)
	}
	if size > MaxParamsBytes {
		return fmt.Errorf("cluster: params has %d bytes of names and values: want at most %d", size, MaxParamsBytes)
	}
	return nil
}

func isParamsHash(s string) bool {
	if len(s) != paramsHashLen {
		return false
	}
	for i := range len(s) {
		if c := s[i]; (c < '0' || c > '9') && (c < 'a' || c > 'f') {
			return false
		}
	}
	return true
}
