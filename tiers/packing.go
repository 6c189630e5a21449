package tiers

import (
	"cmp"
	"errors"
	"fmt"

	"github.com/klauspost/compress/s2"
	"github.com/klauspost/compress/zstd"
)

// Algorithm is a way to compress.
type Algorithm byte

// The algorithms. BenchmarkCompression on catalogue JSON of 2, 6 and 20 KiB, one core of 2.8 GHz: S2 reads back in 2.5, 6
// and 21 µs and leaves 49, 39 and 35 % of the payload; Zstd takes 8, 15 and 59 µs and leaves 39, 31 and 27 %. An entry is read far more
// often than it is written: S2 is nearly lost in a hit in L2, Zstd adds a third to it, and pays where Redis' memory or the network
// is what is short, or values are large texts.
const (
	// S2 is Snappy's successor.
	S2 Algorithm = 1
	// Zstd is RFC 8878.
	Zstd Algorithm = 2
	// NoCompression stores payloads as they are.
	NoCompression Algorithm = 3
)

// String is the algorithm's name; "none" for what is not compressed.
func (a Algorithm) String() string {
	switch a {
	case NoCompression:
	case S2:
		return "s2"
	case Zstd:
		return "zstd"
	}
	return "none"
}

// Compression says how a cache compresses what it stores. The zero value is S2 above 1 KiB. It concerns writing only:
// every replica reads what any of them wrote.
type Compression struct {
	Algorithm Algorithm // 0 = S2
	// Above is the size of an encoded value, in bytes, above which it is compressed, if that saves at least a
	// tenth; 0 = 1 KiB, at most 64 MiB.
	Above int
	// Level trades time for size, from 1, the fastest, to 3; 0 = 2. S2 takes about half as long at 1, and twice as
	// long at 3; Zstd 0.8 and 1.2 times as long. Reading takes the same.
	Level int
}

// Validate reports all problems at once, each naming its field.
func (c Compression) Validate() error {
	var problems []error
	if c.Algorithm > NoCompression {
		problems = append(problems, fmt.Errorf("tiers: Compression.Algorithm is %d; want S2, Zstd or NoCompression, or 0 for S2", c.Algorithm))
	}
	if c.Above < 0 || c.Above > MaxPayload {
		problems = append(problems, fmt.Errorf("tiers: Compression.Above is %d bytes; want 1 to %d, or 0 for %d", c.Above, MaxPayload, CompressAbove))
	}
	if c.Level < 0 || c.Level > 3 {
		problems = append(problems, fmt.Errorf("tiers: Compression.Level is %d; want 1 to 3, or 0 for 2", c.Level))
	}
	return errors.Join(problems...)
}

// zstdWindow bounds how far back Zstd looks for what it has seen, and so the memory of an encoder: some 4 MiB, 13 at level 3.
const zstdWindow = 1 << 20

// Packing writes entries with one [Compression] and reads entries of any. It is safe for concurrent use, has no
// goroutines and needs no end. It compresses one payload at a time, which takes far less than loading them, and reads as
// many Zstd entries at once as there are processors.
type Packing struct {
	how    Compression   // complete
	writer *zstd.Encoder // nil unless how says Zstd
	reader *zstd.Decoder
}

// NewPacking makes a Packing, whose tables are allocated when they are first used.
func NewPacking(c Compression) (*Packing, error) {
	if err := c.Validate(); err != nil {
		return nil, err
	}
	p := &Packing{how: Compression{cmp.Or(c.Algorithm, S2), cmp.Or(c.Above, CompressAbove), cmp.Or(c.Level, 2)}}
	var err error
	if p.how.Algorithm == Zstd {
		level := [...]zstd.EncoderLevel{1: zstd.SpeedFastest, 2: zstd.SpeedDefault, 3: zstd.SpeedBetterCompression}[p.how.Level]
		if p.writer, err = zstd.NewWriter(nil, zstd.WithEncoderLevel(level), zstd.WithEncoderConcurrency(1), zstd.WithWindowSize(zstdWindow),
			zstd.WithLowerEncoderMem(true), zstd.WithEncoderCRC(false)); err != nil { // an entry has a checksum of its own
			return nil, fmt.Errorf("tiers: zstd: %w", err)
		}
	}
	if p.reader, err = zstd.NewReader(nil, zstd.WithDecoderConcurrency(0), zstd.WithDecoderMaxMemory(MaxPayload), zstd.WithDecoderLowmem(true)); err != nil {
		return nil, fmt.Errorf("tiers: zstd: %w", err)
	}
	return p, nil
}

// room is for how many bytes dst should have place behind it before a payload of that size is packed.
func (p *Packing) room(size int) int {
	if size > p.how.Above && p.how.Algorithm == S2 {
		return s2.MaxEncodedLen(size)
	}
	return size
}

// pack appends the payload to dst, compressed if that helps, and returns the flag that says how.
func (p *Packing) pack(dst, payload []byte) (packed []byte, flag byte) {
	body := len(dst)
	if len(payload) > p.how.Above {
		switch p.how.Algorithm {
		case S2:
			// It has no encoder to keep: it pools its tables itself. The block goes straight into dst, which has room.
			encode := [...]func(dst, src []byte) []byte{1: s2.Encode, 2: s2.EncodeBetter, 3: s2.EncodeBest}[p.how.Level]
			packed, flag = dst[:body+len(encode(dst[body:cap(dst)], payload))], flagS2
		case Zstd:
			packed, flag = p.writer.EncodeAll(payload, dst), flagZstd
		default:
		}
	}
	if flag != 0 && len(packed)-body <= len(payload)-len(payload)/10 {
		return packed, flag
	}
	return append(dst, payload...), 0
}

// unpack is the payload of the size whose packed form b is; nothing of it is allocated before b says that size, too.
func (p *Packing) unpack(b []byte, flag byte, size int64) ([]byte, error) {
	switch flag {
	case 0:
		return b, nil
	case flagS2:
		if n, err := s2.DecodedLen(b); err != nil || int64(n) != size {
			return nil, errOtherSize
		}
		return s2.Decode(nil, b)
	case flagZstd:
		var frame zstd.Header
		if err := frame.Decode(b); err != nil || !frame.HasFCS || frame.FrameContentSize != uint64(size) {
			return nil, errOtherSize
		}
		return p.reader.DecodeAll(b, nil)
	}
	return nil, errTwoWays
}

var (
	errOtherSize = errors.New("compressed payload of another size than it says")
	errTwoWays   = errors.New("compressed in two ways")
)
