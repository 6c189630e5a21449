package history

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"sync"
	"time"
)

// magic begins every file; its last byte is the version of the format.
const magic = "freshet-history\x01"

// The kinds of events in a file. Each event is its length as a varint, its kind, and its fields as varints.
const (
	readEvent byte = iota + 1
	listEvent
	failureEvent
	writeEvent
	jointEvent
)

// maxEvent bounds one event, in bytes; a list of 50,000 entries fits.
const maxEvent = 1 << 20

// Write is what a writer knows of its write, which may change several keys.
type Write struct {
	Op          uint64
	Keys        []uint64      // that it may change; nil = not known
	Sent, Acked time.Duration // Acked = [Never]: nobody was told
	Session     uint64        // 0 = none
	// Idle says that it may find nothing to change, so that it is not lost because Postgres does not know it.
	Idle bool
}

// Recorder writes what happens in one process to a file. It is safe for concurrent use. Its first error ends it; later
// events are dropped, and Close returns the error.
type Recorder struct {
	mu   sync.Mutex
	file *os.File
	to   *bufio.Writer
	buf  []byte
	err  error
}

// Create makes the file.
func Create(path string) (*Recorder, error) {
	f, err := os.Create(path)
	if err != nil {
		return nil, fmt.Errorf("history: %w", err)
	}
	r := &Recorder{file: f, to: bufio.NewWriterSize(f, 1<<16)}
	_, r.err = r.to.WriteString(magic)
	return r, nil
}

// Read notes an answer about a key.
func (r *Recorder) Read(a Read) {
	r.event(false, func(b []byte) []byte {
		b = appendHead(append(b, readEvent), a.Fresh, a.Tier, a.Replica, a.Session, a.Budget, a.Invoked, a.Returned)
		return appendUints(b, a.Key, a.Op)
	})
}

// List notes an answer about a group.
func (r *Recorder) List(a List) {
	r.event(false, func(b []byte) []byte {
		b = appendHead(append(b, listEvent), a.Fresh, a.Tier, a.Replica, a.Session, a.Budget, a.Invoked, a.Returned)
		b = appendUints(b, a.Group, uint64(len(a.Entries)))
		for _, e := range a.Entries {
			b = appendUints(b, e.Key, e.Op)
		}
		return b
	})
}

// Joint notes an answer about several keys as of one instant.
func (r *Recorder) Joint(a Joint) {
	r.event(false, func(b []byte) []byte {
		b = appendHead(append(b, jointEvent), a.Fresh, 0, a.Replica, 0, a.Budget, a.Invoked, a.Returned)
		b = appendUints(b, uint64(a.Sum), uint64(a.Total), uint64(len(a.Entries)))
		for _, e := range a.Entries {
			b = appendUints(b, e.Key, e.Op)
		}
		return b
	})
}

// Failure notes a read without an answer.
func (r *Recorder) Failure(a Failure) {
	r.event(false, func(b []byte) []byte {
		return appendUints(append(b, failureEvent), uint64(a.At), uint64(a.Replica))
	})
}

// Write notes a write. The operating system has it, and all before it, when Write returns: a process that is killed
// right after it has not forgotten. Of several notes of one Op the last counts.
func (r *Recorder) Write(a Write) {
	r.event(true, func(b []byte) []byte {
		b = appendUints(append(b, writeEvent), a.Op, uint64(a.Sent), uint64(a.Acked), a.Session, uint64(len(a.Keys))<<1|bit(a.Idle))
		return appendUints(b, a.Keys...)
	})
}

func (r *Recorder) event(now bool, appendTo func([]byte) []byte) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.err != nil {
		return
	}
	r.buf = appendTo(r.buf[:0])
	if len(r.buf) > maxEvent {
		r.err = fmt.Errorf("history: an event of %d bytes: want at most %d", len(r.buf), maxEvent)
		return
	}
	var head [binary.MaxVarintLen64]byte
	_, err := r.to.Write(head[:binary.PutUvarint(head[:], uint64(len(r.buf)))])
	_, err2 := r.to.Write(r.buf)
	if r.err = errors.Join(err, err2); r.err == nil && now {
		r.err = r.to.Flush()
	}
}

// Close writes what is left.
func (r *Recorder) Close() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.err == nil {
		r.err = r.to.Flush()
	}
	err := errors.Join(r.err, r.file.Close())
	r.err = errors.New("history: the recorder is closed")
	return err
}

func appendUints(b []byte, all ...uint64) []byte {
	for _, v := range all {
		b = binary.AppendUvarint(b, v)
	}
	return b
}

func bit(b bool) uint64 {
	if b {
		return 1
	}
	return 0
}

func appendHead(b []byte, fresh bool, tier uint8, replica uint32, session uint64, budget, invoked, returned time.Duration) []byte {
	return appendUints(b, uint64(tier)<<1|bit(fresh), uint64(replica), session, uint64(budget), uint64(invoked), uint64(returned-invoked))
}

// File is what one process noted.
type File struct {
	Reads    []Read
	Lists    []List
	Joints   []Joint
	Failures []Failure
	Writes   []Write // one per Op
	// Torn: the process ended in the middle of an event, which is not here.
	Torn bool
}

// ReadFile reads what a [Recorder] wrote, also that of a process that was killed.
func ReadFile(path string) (*File, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("history: %w", err)
	}
	f, err := parse(b)
	if err != nil {
		return nil, fmt.Errorf("history: %s: %w", path, err)
	}
	return f, nil
}

var errFormat = errors.New("not a history, or of another version")

func parse(b []byte) (*File, error) {
	f := &File{}
	if len(b) < len(magic) && bytes.HasPrefix([]byte(magic), b) {
		f.Torn = true // killed before it had noted anything
		return f, nil
	}
	b, ok := bytes.CutPrefix(b, []byte(magic))
	if !ok {
		return nil, errFormat
	}
	place := map[uint64]int{} // op -> index in Writes
	for len(b) > 0 {
		size, n := binary.Uvarint(b)
		if n < 0 || size > maxEvent {
			return nil, errFormat
		}
		if n == 0 || uint64(len(b)-n) < size {
			f.Torn = true
			return f, nil
		}
		if err := f.event(b[n:n+int(size)], place); err != nil {
			return nil, err
		}
		b = b[n+int(size):]
	}
	return f, nil
}

// event adds one event to the file.
func (f *File) event(b []byte, place map[uint64]int) error {
	if len(b) == 0 {
		return errFormat
	}
	in := &fields{b: b[1:]}
	switch b[0] {
	case readEvent:
		var r Read
		in.head(&r)
		r.Key, r.Op = in.uint(), in.uint()
		f.Reads = append(f.Reads, r)
	case listEvent:
		var r Read
		in.head(&r)
		l := List{
			Group: in.uint(), Fresh: r.Fresh, Tier: r.Tier, Replica: r.Replica, Session: r.Session,
			Budget: r.Budget, Invoked: r.Invoked, Returned: r.Returned,
		}
		l.Entries = make([]Entry, in.most(in.uint(), 2))
		for i := range l.Entries {
			l.Entries[i] = Entry{Key: in.uint(), Op: in.uint()}
		}
		f.Lists = append(f.Lists, l)
	case jointEvent:
		var r Read
		in.head(&r)
		a := Joint{
			Fresh: r.Fresh, Replica: r.Replica, Budget: r.Budget, Invoked: r.Invoked, Returned: r.Returned,
			Sum: int64(in.uint()), Total: int64(in.uint()),
		}
		a.Entries = make([]Entry, in.most(in.uint(), 2))
		for i := range a.Entries {
			a.Entries[i] = Entry{Key: in.uint(), Op: in.uint()}
		}
		f.Joints = append(f.Joints, a)
	case failureEvent:
		f.Failures = append(f.Failures, Failure{At: time.Duration(in.uint()), Replica: uint32(in.uint())})
	case writeEvent:
		w := Write{Op: in.uint(), Sent: time.Duration(in.uint()), Acked: time.Duration(in.uint()), Session: in.uint()}
		n := in.uint()
		w.Idle = n&1 == 1
		if n = in.most(n>>1, 1); n > 0 {
			w.Keys = make([]uint64, n)
		}
		for i := range w.Keys {
			w.Keys[i] = in.uint()
		}
		if i, known := place[w.Op]; known {
			f.Writes[i] = w
		} else {
			place[w.Op] = len(f.Writes)
			f.Writes = append(f.Writes, w)
		}
	default:
		return errFormat
	}
	return in.end()
}

// fields reads the varints of one event.
type fields struct {
	b   []byte
	bad bool
}

func (f *fields) uint() uint64 {
	v, n := binary.Uvarint(f.b)
	if n <= 0 {
		f.bad, f.b = true, nil
		return 0
	}
	f.b = f.b[n:]
	return v
}

// most returns the number of things that take so many bytes each at least, if they can be there.
func (f *fields) most(n, least uint64) uint64 {
	if n > uint64(len(f.b))/least {
		f.bad = true
		return 0
	}
	return n
}

func (f *fields) head(r *Read) {
	label := f.uint()
	r.Fresh, r.Tier = label&1 == 1, uint8(label>>1)
	r.Replica, r.Session = uint32(f.uint()), f.uint()
	r.Budget, r.Invoked = time.Duration(f.uint()), time.Duration(f.uint())
	r.Returned = r.Invoked + time.Duration(f.uint())
}

func (f *fields) end() error {
	if f.bad || len(f.b) > 0 {
		return errFormat
	}
	return nil
}
