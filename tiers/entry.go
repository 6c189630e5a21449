package tiers

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"math"
	"slices"
	"time"

	"github.com/cespare/xxhash/v2"

	"github.com/freshet-cache/freshet/coherence"
)

const (
	// MaxPayload bounds the uncompressed payload of an entry, in bytes. A larger one is refused on
	// both sides, so that hostile bytes cannot make a reader allocate without limit.
	MaxPayload = 64 << 20
	// MaxTags bounds the tags of one entry.
	MaxTags = 64
	// CompressAbove is the payload size in bytes above which a [Packing] compresses by default.
	CompressAbove = 1 << 10
)

// Both mean that the bytes are not an entry that this build can use: a miss and a counter, never an
// error to the caller of a read.
var (
	// ErrCorrupt: the bytes began as an entry of this format and were damaged or cut.
	ErrCorrupt = errors.New("tiers: corrupt entry")
	// ErrForeign: the bytes are something else, or an entry of another format version.
	ErrForeign = errors.New("tiers: foreign entry")
)

// Header is what an entry carries besides its payload.
type Header struct {
	// Absent: the source says that there is no such thing (a negative entry). It has no payload.
	Absent bool
	// Codec says how the payload is encoded.
	Codec Codec
	// Key is the [KeySum] of the key that the entry is for: what is found under another key is not
	// that key's, however it came there.
	Key uint64
	// Fingerprint is that of the Go type in the payload, see [Fingerprint].
	Fingerprint uint64
	// Generation of the namespace when the entry was loaded.
	Generation uint64
	// Snapshot under which the entry was loaded: what decides whether it is still valid.
	Snapshot coherence.Snapshot
	// LoadedAt is the loader's wall clock, kept to the millisecond. It serves expiry only.
	LoadedAt time.Time
	// Soft and Hard are times to live counted from LoadedAt, kept to the millisecond: behind Soft the
	// entry should be refreshed, behind Hard it must not be served.
	Soft, Hard time.Duration
	// Cost is how long the load took, kept to the microsecond, at most 71 minutes.
	Cost time.Duration
	// Tags are the scopes that invalidate the entry besides its own, ascending without duplicates, at
	// most MaxTags.
	Tags []coherence.ScopeHash
	// Sum is the xxHash64 of the uncompressed payload: the entry's version, the same on every
	// replica that loaded the same value. EncodeEntry computes it, whatever the field says.
	Sum uint64
}

// Format version 1, big-endian:
//
//	offset size
//	     0    4 magic "FRSH"
//	     4    1 format version
//	     5    1 flags: 1 = absent, 2 = the payload is an S2 block, 4 = it is a Zstd frame
//	     6    1 codec
//	     7    1 number of tags
//	     8    8 fingerprint
//	    16    8 generation
//	    24    8 sum
//	    32    8 loaded at, milliseconds since 1970
//	    40    8 soft TTL, milliseconds
//	    48    8 hard TTL, milliseconds
//	    56    4 cost, microseconds
//	    60    4 length of the uncompressed payload
//	    64    8 sum of the key
//	    72      tags, 8 bytes each; snapshot (coherence's binary form); payload
//	 end-4    4 CRC-32C (Castagnoli) of everything before
const (
	entryMagic   = "FRSH"
	entryVersion = 1
	entryFixed   = 72
	entryTrailer = 4

	flagAbsent = 1 << 0
	flagS2     = 1 << 1
	flagZstd   = 1 << 2
	flagPacked = flagS2 | flagZstd

	maxCost    = math.MaxUint32 * time.Microsecond
	longestTTL = math.MaxInt64 / time.Millisecond // of a time to live
)

// KeySum is the xxHash64 of a key, by which an entry names the key that it is for.
func KeySum(key string) uint64 { return xxhash.Sum64String(key) }

func checksum(b []byte) uint32 { return crc32.Checksum(b, crc32.MakeTable(crc32.Castagnoli)) }

// EncodeEntry appends the entry to dst and returns the longer slice, its payload compressed as the Packing says. It
// fails, naming the field, if the header breaks its own rules or the payload is larger than [MaxPayload]
// ([ErrTooLarge]); dst is then unusable.
func (p *Packing) EncodeEntry(dst []byte, h Header, payload []byte) ([]byte, error) {
	if err := h.validate(len(payload)); err != nil {
		return nil, err
	}

	start := len(dst)
	room := p.room(len(payload))
	dst = slices.Grow(dst, entryFixed+8*len(h.Tags)+40+10*len(h.Snapshot.Xip)+room+entryTrailer)

	var flags byte
	if h.Absent {
		flags |= flagAbsent
	}
	dst = append(dst, entryMagic...)
	dst = append(dst, entryVersion, flags, byte(h.Codec), byte(len(h.Tags)))
	dst = binary.BigEndian.AppendUint64(dst, h.Fingerprint)
	dst = binary.BigEndian.AppendUint64(dst, h.Generation)
	dst = binary.BigEndian.AppendUint64(dst, xxhash.Sum64(payload))
	dst = binary.BigEndian.AppendUint64(dst, uint64(h.LoadedAt.UnixMilli()))
	dst = binary.BigEndian.AppendUint64(dst, uint64(h.Soft.Milliseconds()))
	dst = binary.BigEndian.AppendUint64(dst, uint64(h.Hard.Milliseconds()))
	dst = binary.BigEndian.AppendUint32(dst, uint32(min(h.Cost, maxCost).Microseconds()))
	dst = binary.BigEndian.AppendUint32(dst, uint32(len(payload)))
	dst = binary.BigEndian.AppendUint64(dst, h.Key)
	for _, tag := range h.Tags {
		dst = binary.BigEndian.AppendUint64(dst, uint64(tag))
	}
	dst, err := h.Snapshot.AppendBinary(dst)
	if err != nil {
		return nil, fmt.Errorf("tiers: entry snapshot: %w", err)
	}

	dst, packed := p.pack(slices.Grow(dst, room+entryTrailer), payload)
	dst[start+5] |= packed
	return binary.BigEndian.AppendUint32(dst, checksum(dst[start:])), nil
}

func (h *Header) validate(payload int) error {
	switch {
	case payload > MaxPayload:
		return fmt.Errorf("tiers: entry payload of %d bytes, the most is %d: %w", payload, MaxPayload, ErrTooLarge)
	case h.Absent && payload > 0:
		return fmt.Errorf("tiers: entry is Absent and has a payload of %d bytes, want none", payload)
	case !h.Codec.known():
		return fmt.Errorf("tiers: entry Codec %d is unknown, want %d to %d", h.Codec, JSON, Bytes)
	case h.Soft < 0 || h.Hard < 0:
		return fmt.Errorf("tiers: entry Soft %v, Hard %v: want neither below 0", h.Soft, h.Hard)
	case h.Cost < 0:
		return fmt.Errorf("tiers: entry Cost %v, want 0 or more", h.Cost)
	case len(h.Tags) > MaxTags:
		return fmt.Errorf("tiers: entry has %d Tags, the most is %d", len(h.Tags), MaxTags)
	case !ascending(h.Tags):
		return errors.New("tiers: entry Tags must be ascending without duplicates")
	}
	return nil
}

func ascending(tags []coherence.ScopeHash) bool {
	for i := 1; i < len(tags); i++ {
		if tags[i-1] >= tags[i] {
			return false
		}
	}
	return true
}

// DecodeEntry reads what EncodeEntry wrote, with whichever Packing. The payload is nil if the entry is absent, is part of b
// if it was not compressed, and is newly allocated otherwise; the header never aliases b. The only
// errors are [ErrCorrupt] and [ErrForeign], wrapped with the reason; no input makes it panic or
// allocate more than the payload's true size and the header.
func (p *Packing) DecodeEntry(b []byte) (Header, []byte, error) {
	if len(b) < len(entryMagic)+1 || string(b[:len(entryMagic)]) != entryMagic {
		return Header{}, nil, fmt.Errorf("%w: no magic at its start", ErrForeign)
	}
	if version := b[4]; version != entryVersion {
		return Header{}, nil, fmt.Errorf("%w: format version %d, this build reads %d", ErrForeign, version, entryVersion)
	}
	if len(b) < entryFixed+entryTrailer {
		return Header{}, nil, fmt.Errorf("%w: only %d bytes", ErrCorrupt, len(b))
	}
	body, trailer := b[:len(b)-entryTrailer], b[len(b)-entryTrailer:]
	if checksum(body) != binary.BigEndian.Uint32(trailer) {
		return Header{}, nil, fmt.Errorf("%w: wrong checksum", ErrCorrupt)
	}

	flags, tags := body[5], int(body[7])
	size := int64(binary.BigEndian.Uint32(body[60:]))
	soft, hard := binary.BigEndian.Uint64(body[40:]), binary.BigEndian.Uint64(body[48:])
	h := Header{
		Absent:      flags&flagAbsent != 0,
		Codec:       Codec(body[6]),
		Fingerprint: binary.BigEndian.Uint64(body[8:]),
		Generation:  binary.BigEndian.Uint64(body[16:]),
		Sum:         binary.BigEndian.Uint64(body[24:]),
		LoadedAt:    time.UnixMilli(int64(binary.BigEndian.Uint64(body[32:]))),
		Soft:        time.Duration(soft) * time.Millisecond,
		Hard:        time.Duration(hard) * time.Millisecond,
		Cost:        time.Duration(binary.BigEndian.Uint32(body[56:])) * time.Microsecond,
		Key:         binary.BigEndian.Uint64(body[64:]),
	}
	switch {
	case flags&^(flagAbsent|flagPacked) != 0:
		return Header{}, nil, fmt.Errorf("%w: unknown flags %#x", ErrForeign, flags)
	case !h.Codec.known():
		return Header{}, nil, fmt.Errorf("%w: unknown codec %d", ErrForeign, h.Codec)
	case soft > uint64(longestTTL) || hard > uint64(longestTTL):
		return Header{}, nil, fmt.Errorf("%w: time to live out of range", ErrCorrupt)
	case size > MaxPayload:
		return Header{}, nil, fmt.Errorf("%w: payload of %d bytes, the most is %d", ErrCorrupt, size, MaxPayload)
	case h.Absent && (size != 0 || flags&flagPacked != 0):
		return Header{}, nil, fmt.Errorf("%w: absent with a payload", ErrCorrupt)
	case tags > MaxTags || len(body)-entryFixed < 8*tags:
		return Header{}, nil, fmt.Errorf("%w: %d tags", ErrCorrupt, tags)
	}

	rest := body[entryFixed:]
	if tags > 0 {
		h.Tags = make([]coherence.ScopeHash, tags)
		for i := range h.Tags {
			h.Tags[i], rest = coherence.ScopeHash(binary.BigEndian.Uint64(rest)), rest[8:]
		}
		if !ascending(h.Tags) {
			return Header{}, nil, fmt.Errorf("%w: tags out of order", ErrCorrupt)
		}
	}
	var err error
	if h.Snapshot, rest, err = coherence.DecodeSnapshot(rest); err != nil {
		return Header{}, nil, fmt.Errorf("%w: %w", ErrCorrupt, err)
	}

	payload, err := p.unpack(rest, flags&flagPacked, size)
	if err != nil {
		return Header{}, nil, fmt.Errorf("%w: %w", ErrCorrupt, err)
	}
	if int64(len(payload)) != size || xxhash.Sum64(payload) != h.Sum {
		return Header{}, nil, fmt.Errorf("%w: payload does not match its length and sum", ErrCorrupt)
	}
	if h.Absent {
		payload = nil
	}
	return h, payload, nil
}
