package coherence

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"time"
)

// Bounds of relayed polls. An answer with all of them is below the 1 MiB that NATS takes.
const (
	// maxRelayChanges bounds the changes of one answer; who is behind by more polls for itself.
	maxRelayChanges = 1 << 14
	// maxRelayOpen bounds the transactions in progress that a snapshot of a message lists.
	maxRelayOpen = 1 << 12
	// maxRelayPatience bounds what a request may be kept waiting for.
	maxRelayPatience = time.Minute
)

// The wire forms: 'F', 'p' (request) or 'r' (answer), version, the fields in order, numbers as uvarints
// but for IDs, scopes and the check, which are big-endian; texts with their length before them; at the end
// the CRC-32C of all before it. The generations are a byte that says none, the same, or told, and if told
// their version and text.
const (
	relayVersion = 2
	relayHead    = 3 + 8
	relayCheck   = 4
)

// relayRequest asks a relay for what changed since a snapshot.
type relayRequest struct {
	id       uint64        // comes back in the answer
	patience time.Duration // how long the poll may be put off, to be shared; in whole microseconds
	since    Snapshot      // of a timeline
	version  string        // of the generations that the asker knows; empty = none
}

// relayAnswer is a poll that was sent after the request had come.
type relayAnswer struct {
	id    uint64
	known bool       // false: the relay cannot tell, and the rest is not there
	poll  PollResult // never overrun
	// same: the generations are those whose version the request named, and poll does not tell them.
	same bool
}

var errRelay = errors.New("coherence: malformed message about a relayed poll")

func appendRelayRequest(b []byte, q relayRequest) ([]byte, error) {
	if len(q.since.Xip) > maxRelayOpen {
		return b, fmt.Errorf("coherence: a poll since %d open transactions is not relayed", len(q.since.Xip))
	}
	begin := len(b)
	b = append(b, 'F', 'p', relayVersion)
	b = binary.BigEndian.AppendUint64(b, q.id)
	b = binary.AppendUvarint(b, uint64(q.patience.Microseconds()))
	b, err := q.since.AppendBinary(b)
	b = appendText(b, q.version)
	return appendCheck(b, begin), err
}

func decodeRelayRequest(b []byte) (relayRequest, error) {
	id, b, err := openRelay(b, 'p')
	if err != nil {
		return relayRequest{}, err
	}
	patience, n := binary.Uvarint(b)
	if n <= 0 || patience > uint64(maxRelayPatience.Microseconds()) {
		return relayRequest{}, errRelay
	}
	since, b, err := DecodeSnapshot(b[n:])
	if err != nil || since.Timeline == 0 || len(since.Xip) > maxRelayOpen {
		return relayRequest{}, errRelay
	}
	version, b, ok := cutText(b, maxGenerationsVersion)
	if !ok || len(b) > 0 {
		return relayRequest{}, errRelay
	}
	return relayRequest{id: id, patience: time.Duration(patience) * time.Microsecond, since: since, version: version}, nil
}

// encodeRelayAnswer is the wire form of the answer, or that the relay cannot tell when the answer is too large.
func encodeRelayAnswer(a relayAnswer) []byte {
	b := []byte{'F', 'r', relayVersion}
	b = binary.BigEndian.AppendUint64(b, a.id)
	p := a.poll
	if !a.known || p.Overrun || len(p.Changes) > maxRelayChanges || len(p.Snapshot.Xip) > maxRelayOpen || len(p.Horizon.Xip) > maxRelayOpen {
		return appendCheck(append(b, 0), 0)
	}
	b = append(b, 1)
	for _, s := range []Snapshot{p.Snapshot, p.Horizon} {
		b, _ = s.AppendBinary(b) // does not fail
	}
	switch g := p.Generations; {
	case a.same:
		b = append(b, generationsSame)
	case g == nil:
		b = append(b, generationsNone)
	default:
		b = appendText(appendText(append(b, generationsTold), g.version), g.text)
	}
	b = binary.AppendUvarint(b, uint64(len(p.Changes)))
	for _, c := range p.Changes {
		b = binary.AppendUvarint(b, c.XID)
		b = binary.BigEndian.AppendUint64(b, uint64(c.Scope))
		b = binary.AppendUvarint(b, uint64(c.Grace.Milliseconds()))
	}
	return appendCheck(b, 0)
}

func decodeRelayAnswer(b []byte) (relayAnswer, error) {
	id, b, err := openRelay(b, 'r')
	if err != nil || len(b) == 0 {
		return relayAnswer{}, errRelay
	}
	a := relayAnswer{id: id, known: b[0] == 1}
	if b[0] > 1 || (b[0] == 0 && len(b) > 1) {
		return relayAnswer{}, errRelay
	}
	if !a.known {
		return a, nil
	}
	b = b[1:]
	for _, s := range []*Snapshot{&a.poll.Snapshot, &a.poll.Horizon} {
		if *s, b, err = DecodeSnapshot(b); err != nil || len(s.Xip) > maxRelayOpen {
			return relayAnswer{}, errRelay
		}
	}
	if b, err = a.decodeGenerations(b); err != nil {
		return relayAnswer{}, err
	}
	count, n := binary.Uvarint(b)
	// Each change takes ten bytes at least: check before allocating.
	if n <= 0 || count > maxRelayChanges || count > uint64(len(b)/10) {
		return relayAnswer{}, errRelay
	}
	b = b[n:]
	if count > 0 {
		a.poll.Changes = make([]Change, count)
	}
	for i := range a.poll.Changes {
		xid, n := binary.Uvarint(b)
		if n <= 0 || len(b) < n+8 {
			return relayAnswer{}, errRelay
		}
		c := Change{XID: xid, Scope: ScopeHash(binary.BigEndian.Uint64(b[n:]))}
		b = b[n+8:]
		grace, n := binary.Uvarint(b)
		if n <= 0 || grace > uint64(MaxGrace.Milliseconds()) {
			return relayAnswer{}, errRelay
		}
		c.Grace = time.Duration(grace) * time.Millisecond
		a.poll.Changes[i], b = c, b[n:]
	}
	if len(b) > 0 {
		return relayAnswer{}, errRelay
	}
	return a, nil
}

// decodeGenerations reads the generations and returns what is behind them.
func (a *relayAnswer) decodeGenerations(b []byte) ([]byte, error) {
	if len(b) == 0 || b[0] > generationsTold {
		return nil, errRelay
	}
	told := b[0]
	b = b[1:]
	if a.same = told == generationsSame; told != generationsTold {
		return b, nil
	}
	version, b, ok1 := cutText(b, maxGenerationsVersion)
	text, b, ok2 := cutText(b, maxGenerationsText)
	if !ok1 || !ok2 {
		return nil, errRelay
	}
	var err error
	if a.poll.Generations, err = parseGenerations(version, text); err != nil {
		return nil, errRelay
	}
	return b, nil
}

// What an answer says of the generations.
const (
	generationsNone = iota
	generationsSame
	generationsTold
)

func appendText(b []byte, text string) []byte {
	return append(binary.AppendUvarint(b, uint64(len(text))), text...)
}

// cutText reads a text of at most so many bytes and returns what is behind it.
func cutText(b []byte, most int) (text string, rest []byte, ok bool) {
	size, n := binary.Uvarint(b)
	if n <= 0 || size > uint64(most) || size > uint64(len(b)-n) {
		return "", nil, false
	}
	return string(b[n : n+int(size)]), b[n+int(size):], true
}

// openRelay checks the ends of a message and returns its ID and what is between.
func openRelay(b []byte, kind byte) (id uint64, rest []byte, err error) {
	if len(b) < relayHead+relayCheck || b[0] != 'F' || b[1] != kind {
		return 0, nil, errRelay
	}
	if b[2] != relayVersion {
		return 0, nil, fmt.Errorf("coherence: relayed poll of version %d: want %d", b[2], relayVersion)
	}
	end := len(b) - relayCheck
	if relayCRC(b[:end]) != binary.BigEndian.Uint32(b[end:]) {
		return 0, nil, errRelay
	}
	return binary.BigEndian.Uint64(b[3:]), b[relayHead:end], nil
}

func appendCheck(b []byte, begin int) []byte {
	return binary.BigEndian.AppendUint32(b, relayCRC(b[begin:]))
}

func relayCRC(b []byte) uint32 { return crc32.Checksum(b, crc32.MakeTable(crc32.Castagnoli)) }
