package coherence

import (
	"encoding/binary"
	"errors"
	"fmt"
)

// MaxHintScopes bounds the scopes of one hint; a larger change is published as several.
const MaxHintScopes = 1000

// Hint is the news of one commit, published by the node that made it. It can make values invalid
// sooner than the next poll would; it never makes a value valid.
type Hint struct {
	Boot     uint64 // the publisher's process, random at its start
	Seq      uint64 // counts the publisher's hints from 1: a gap shows a loss
	Timeline uint64
	XID      uint64
	Scopes   []ScopeHash // 1 to [MaxHintScopes]
}

// The wire form: 'F', 'h', version, then the fields in order, big-endian, then the number of scopes as
// 16 bits and the scopes.
const (
	hintVersion = 1
	hintHead    = 3 + 4*8 + 2
)

// AppendBinary appends the wire form.
func (h Hint) AppendBinary(b []byte) ([]byte, error) {
	if len(h.Scopes) == 0 || len(h.Scopes) > MaxHintScopes {
		return b, fmt.Errorf("coherence: hint with %d scopes: want 1 to %d", len(h.Scopes), MaxHintScopes)
	}
	b = append(b, 'F', 'h', hintVersion)
	b = binary.BigEndian.AppendUint64(b, h.Boot)
	b = binary.BigEndian.AppendUint64(b, h.Seq)
	b = binary.BigEndian.AppendUint64(b, h.Timeline)
	b = binary.BigEndian.AppendUint64(b, h.XID)
	b = binary.BigEndian.AppendUint16(b, uint16(len(h.Scopes)))
	for _, scope := range h.Scopes {
		b = binary.BigEndian.AppendUint64(b, uint64(scope))
	}
	return b, nil
}

var errHint = errors.New("coherence: malformed hint")

// DecodeHint reads a whole wire form; anything else is an error.
func DecodeHint(b []byte) (Hint, error) {
	if len(b) < hintHead || b[0] != 'F' || b[1] != 'h' {
		return Hint{}, errHint
	}
	if b[2] != hintVersion {
		return Hint{}, fmt.Errorf("coherence: hint of version %d: want %d", b[2], hintVersion)
	}
	h := Hint{
		Boot:     binary.BigEndian.Uint64(b[3:]),
		Seq:      binary.BigEndian.Uint64(b[11:]),
		Timeline: binary.BigEndian.Uint64(b[19:]),
		XID:      binary.BigEndian.Uint64(b[27:]),
	}
	n := int(binary.BigEndian.Uint16(b[35:]))
	b = b[hintHead:]
	if n == 0 || n > MaxHintScopes || len(b) != 8*n {
		return Hint{}, errHint
	}
	h.Scopes = make([]ScopeHash, n)
	for i := range h.Scopes {
		h.Scopes[i] = ScopeHash(binary.BigEndian.Uint64(b[8*i:]))
	}
	return h, nil
}
