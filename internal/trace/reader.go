package trace

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/cespare/xxhash/v2"
	"github.com/ulikunitz/xz"
)

// MaxLine bounds one line of a [Lines] trace, in bytes without its end. A longer one is an error:
// such a file is hardly a list of keys.
const MaxLine = 4096

// buffered is the size of each read buffer, in bytes.
const buffered = 64 << 10

// Reader reads the keys of one trace file in order. It holds the open file, two buffers of 64 KiB
// and, for an xz file, its dictionary (at most 64 MiB).
type Reader struct {
	path   string
	format Format
	file   *os.File
	from   *bufio.Reader // decoded bytes
	packed bool
	offset int64 // of the next decoded byte
	closed bool
}

// Open opens the trace file at path. format says how it spells keys; [Detect] chooses by name
// (.trace and .cache2k, .txt, .lines, .keys and .log, each also with .xz behind it), then by
// content, and fails when neither tells. The caller closes the reader.
//
// Errors name the file, and the offset when it has one; for a packed file that is the offset in its
// decoded bytes.
func Open(path string, format Format) (*Reader, error) {
	if _, err := ParseFormat(string(format)); err != nil {
		return nil, err
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("open trace: %w", err)
	}
	r := &Reader{path: path, format: format, file: f}
	if err := r.start(); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return r, nil
}

// start puts the reader before the first key and settles the format.
func (r *Reader) start() error {
	raw := bufio.NewReaderSize(r.file, buffered)
	r.from, r.packed, r.offset = raw, false, 0
	head, err := raw.Peek(xzHeadLen)
	if err != nil && !errors.Is(err, io.EOF) {
		return r.wrap(err)
	}
	if bytes.HasPrefix(head, xzMagic) {
		r.packed = true
		if err := errors.Join(checkDictionary(head), checkFooter(r.file)); err != nil {
			return r.wrap(err)
		}
		unpacked, err := xz.NewReader(raw)
		if err != nil {
			return r.wrap(err)
		}
		r.from = bufio.NewReaderSize(unpacked, buffered)
	}
	if r.format != Detect {
		return nil
	}
	start, err := r.from.Peek(sniffed)
	if err != nil && !errors.Is(err, io.EOF) {
		return r.wrap(err)
	}
	r.format, err = detect(r.path, start)
	return err
}

// Next returns the next key: the number itself for Cache2k, the 64-bit xxHash of the line for
// Lines. After the last key it returns io.EOF, unwrapped.
func (r *Reader) Next() (uint64, error) {
	if r.closed {
		return 0, r.wrap(os.ErrClosed)
	}
	if r.format == Lines {
		return r.nextLine()
	}
	return r.nextInt32()
}

func (r *Reader) nextInt32() (uint64, error) {
	var b [4]byte
	n, err := io.ReadFull(r.from, b[:])
	switch {
	case errors.Is(err, io.ErrUnexpectedEOF) && 0 < n && n < len(b):
		return 0, r.wrap(fmt.Errorf("the last key has %d of 4 bytes: %w; cut the file to a multiple of 4 bytes, or name another format", n, err))
	case err == io.EOF:
		return 0, io.EOF
	case err != nil:
		return 0, r.wrap(err)
	}
	r.offset += int64(len(b))
	return uint64(binary.BigEndian.Uint32(b[:])), nil
}

func (r *Reader) nextLine() (uint64, error) {
	for {
		// The buffer is larger than MaxLine, so ErrBufferFull is a line that is too long as well.
		line, err := r.from.ReadSlice('\n')
		if err != nil && !errors.Is(err, io.EOF) && !errors.Is(err, bufio.ErrBufferFull) {
			return 0, r.wrap(err)
		}
		key := bytes.TrimSuffix(bytes.TrimSuffix(line, []byte("\n")), []byte("\r"))
		if len(key) > MaxLine {
			return 0, r.wrap(fmt.Errorf("the line is longer than %d bytes: a %q trace has one key per line", MaxLine, Lines))
		}
		r.offset += int64(len(line))
		if len(key) > 0 {
			return xxhash.Sum64(key), nil
		}
		if err != nil {
			return 0, io.EOF
		}
	}
}

// Rewind puts the reader before its first key again.
func (r *Reader) Rewind() error {
	if r.closed {
		return r.wrap(os.ErrClosed)
	}
	if _, err := r.file.Seek(0, io.SeekStart); err != nil {
		return r.wrap(err)
	}
	return r.start()
}

// Format is the format in use, never [Detect].
func (r *Reader) Format() Format { return r.format }

// Close closes the file. A second Close does nothing.
func (r *Reader) Close() error {
	if r.closed {
		return nil
	}
	r.closed = true
	return r.file.Close()
}

// wrap names the file and the place.
func (r *Reader) wrap(err error) error {
	if r.packed {
		return fmt.Errorf("trace %s: at decoded byte %d: %w", r.path, r.offset, err)
	}
	return fmt.Errorf("trace %s: at byte %d: %w", r.path, r.offset, err)
}

// Loop reads a trace again and again.
type Loop struct {
	r     *Reader
	turns int
	some  bool // this turn gave a key
}

// NewLoop returns a source that begins r again at its end. Close r when done.
func NewLoop(r *Reader) *Loop { return &Loop{r: r} }

// Next returns the next key. It never returns io.EOF; a trace without any key is an error.
func (l *Loop) Next() (uint64, error) {
	for {
		key, err := l.r.Next()
		if !errors.Is(err, io.EOF) {
			l.some = l.some || err == nil
			return key, err
		}
		if !l.some {
			return 0, l.r.wrap(errors.New("the trace holds no key, so it cannot be repeated"))
		}
		if err := l.r.Rewind(); err != nil {
			return 0, err
		}
		l.turns++
		l.some = false
	}
}

// Turns is how often the trace has begun again.
func (l *Loop) Turns() int { return l.turns }
