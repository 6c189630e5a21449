package coherence

import (
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// MaxInProgress bounds the transactions in progress that a [Snapshot] may list. Postgres itself
// cannot have more than max_connections + max_prepared_transactions of them; a snapshot that claims
// more is refused as corrupt.
const MaxInProgress = 1 << 16

// Snapshot says which transactions of one Postgres primary a read could see. It is Postgres' own
// pg_snapshot (see "pg_current_snapshot" in the Postgres manual, section 9.27.11) together with the
// timeline in which its transaction ids mean something.
//
// Snapshots of one timeline are totally ordered by [Snapshot.Includes]: transactions finish one
// after the other, and each snapshot is a prefix of that order. The zero Snapshot belongs to no
// timeline and sees nothing.
type Snapshot struct {
	// Timeline names one unbroken history of transaction ids; 0 = none: a value read under such a
	// snapshot proves nothing. See the schema's freshet.timeline for how it is drawn.
	Timeline uint64
	// Xmin: every transaction below has finished. Xmax: none at or above had finished.
	Xmin, Xmax uint64
	// Xip are the transactions in [Xmin, Xmax) that were in progress, ascending.
	Xip []uint64
}

// Sees reports whether the transaction had finished when the snapshot was taken, so that its
// changes, if it committed, are visible. xid must be of the snapshot's own timeline.
func (s Snapshot) Sees(xid uint64) bool {
	if xid >= s.Xmax || s.Timeline == 0 {
		return false
	}
	if xid < s.Xmin {
		return true
	}
	_, inProgress := slices.BinarySearch(s.Xip, xid)
	return !inProgress
}

// Includes reports whether s sees every transaction that o sees: s is the same as o or newer.
// Snapshots of different timelines do not include each other.
func (s Snapshot) Includes(o Snapshot) bool {
	if s.Timeline != o.Timeline || s.Timeline == 0 {
		return false
	}
	if o.Xmax <= s.Xmin {
		return true
	}
	if s.Xmax < o.Xmax {
		// o sees some transaction in [s.Xmax, o.Xmax) unless all of them are in its Xip: Xmax is
		// one past the last finished transaction, so there is always one.
		return false
	}
	for _, xid := range s.Xip {
		if xid >= o.Xmax {
			break
		}
		if o.Sees(xid) {
			return false
		}
	}
	return true
}

// Equal reports whether both see exactly the same transactions of the same timeline.
func (s Snapshot) Equal(o Snapshot) bool {
	return s.Timeline == o.Timeline && s.Xmin == o.Xmin && s.Xmax == o.Xmax && slices.Equal(s.Xip, o.Xip)
}

// String is "timeline/xmin:xmax:xip,xip", Postgres' own text behind the timeline.
func (s Snapshot) String() string {
	b := make([]byte, 0, 64+20*len(s.Xip))
	b = strconv.AppendUint(b, s.Timeline, 16)
	b = append(b, '/')
	return string(s.appendText(b))
}

func (s Snapshot) appendText(b []byte) []byte {
	b = strconv.AppendUint(b, s.Xmin, 10)
	b = append(b, ':')
	b = strconv.AppendUint(b, s.Xmax, 10)
	b = append(b, ':')
	for i, xid := range s.Xip {
		if i > 0 {
			b = append(b, ',')
		}
		b = strconv.AppendUint(b, xid, 10)
	}
	return b
}

// ParseSnapshot reads the text of a pg_snapshot, "xmin:xmax:xip,xip", as of the given timeline.
func ParseSnapshot(timeline uint64, text string) (Snapshot, error) {
	s := Snapshot{Timeline: timeline}
	low, rest, ok1 := strings.Cut(text, ":")
	high, list, ok2 := strings.Cut(rest, ":")
	var err1, err2 error
	s.Xmin, err1 = strconv.ParseUint(low, 10, 64)
	s.Xmax, err2 = strconv.ParseUint(high, 10, 64)
	if !ok1 || !ok2 || err1 != nil || err2 != nil {
		return Snapshot{}, fmt.Errorf("coherence: snapshot %.100q: want xmin:xmax:xip,xip", text)
	}
	if list != "" {
		n := strings.Count(list, ",") + 1
		if n > MaxInProgress {
			return Snapshot{}, fmt.Errorf("coherence: snapshot lists %d transactions in progress, more than %d", n, MaxInProgress)
		}
		s.Xip = make([]uint64, 0, n)
		for field := range strings.SplitSeq(list, ",") {
			xid, err := strconv.ParseUint(field, 10, 64)
			if err != nil {
				return Snapshot{}, fmt.Errorf("coherence: snapshot %.100q: transaction id %.40q is not a number", text, field)
			}
			s.Xip = append(s.Xip, xid)
		}
	}
	return s, s.validate()
}

func (s Snapshot) validate() error {
	if s.Xmin > s.Xmax {
		return fmt.Errorf("coherence: snapshot with xmin %d above xmax %d", s.Xmin, s.Xmax)
	}
	last := s.Xmin
	for i, xid := range s.Xip {
		if xid < last || (i > 0 && xid == last) || xid >= s.Xmax {
			return fmt.Errorf("coherence: snapshot %d:%d lists transaction %d out of order or range", s.Xmin, s.Xmax, xid)
		}
		last = xid
	}
	return nil
}

// AppendBinary appends the compact form: uvarints of timeline, xmin, xmax-xmin, the number of
// transactions in progress, and the distance of each from the one before.
func (s Snapshot) AppendBinary(b []byte) ([]byte, error) {
	b = binary.AppendUvarint(b, s.Timeline)
	b = binary.AppendUvarint(b, s.Xmin)
	b = binary.AppendUvarint(b, s.Xmax-s.Xmin)
	b = binary.AppendUvarint(b, uint64(len(s.Xip)))
	last := s.Xmin
	for _, xid := range s.Xip {
		b = binary.AppendUvarint(b, xid-last)
		last = xid
	}
	return b, nil
}

var errSnapshot = errors.New("coherence: malformed binary snapshot")

// DecodeSnapshot reads what [Snapshot.AppendBinary] wrote and returns the bytes behind it.
func DecodeSnapshot(b []byte) (Snapshot, []byte, error) {
	var field [4]uint64
	for i := range field {
		v, n := binary.Uvarint(b)
		if n <= 0 {
			return Snapshot{}, nil, errSnapshot
		}
		field[i], b = v, b[n:]
	}
	s := Snapshot{Timeline: field[0], Xmin: field[1], Xmax: field[1] + field[2]}
	// Each listed transaction takes at least one byte: check before allocating.
	if s.Xmax < s.Xmin || field[3] > MaxInProgress || field[3] > uint64(len(b)) {
		return Snapshot{}, nil, errSnapshot
	}
	if field[3] > 0 {
		s.Xip = make([]uint64, field[3])
	}
	last := s.Xmin
	for i := range s.Xip {
		v, n := binary.Uvarint(b)
		if n <= 0 {
			return Snapshot{}, nil, errSnapshot
		}
		last, b = last+v, b[n:]
		s.Xip[i] = last
	}
	if s.validate() != nil {
		return Snapshot{}, nil, errSnapshot
	}
	return s, b, nil
}
