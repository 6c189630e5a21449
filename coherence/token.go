package coherence

import (
	"cmp"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"slices"
)

const (
	// maxTokenXIDs bounds the transactions that a token names one by one.
	maxTokenXIDs = 8
	// maxTokenText bounds the text of a token in bytes, so that it fits in a header.
	maxTokenText = 2048
)

// Token is how far a session has come: its reads must not be answered from before it. A node that
// cannot show that it knows all of it polls once: whatever a token names had finished when the token
// was made. The zero Token asks for nothing.
type Token struct {
	snapshot Snapshot // the session has seen the state of this snapshot
	xids     []uint64 // and written in these transactions, of the snapshot's timeline
	// queue names a stream of puts, up to whose message place the session has come; 0 = none.
	queue, place uint64
}

// TokenOf is the token of a session that has seen the state of a snapshot.
func TokenOf(s Snapshot) Token { return Token{snapshot: s} }

// unknownTimeline is that of a write whose timeline had not begun yet, just after a crash of Postgres: no
// snapshot is of it, so every read with its token polls.
const unknownTimeline = 1<<64 - 1

// TokenOfWrite is the token of a session that has written in one transaction. Timeline 0 is taken for
// one that is not known.
func TokenOfWrite(timeline, xid uint64) Token {
	timeline = cmp.Or(timeline, unknownTimeline)
	return Token{snapshot: Snapshot{Timeline: timeline}, xids: []uint64{xid}}
}

// TokenOfPut is the token of a session whose last put is at the place of the queue, which is not 0.
func TokenOfPut(queue, place uint64) Token { return Token{queue: queue, place: place} }

// Queue is how far the session has come in a queue of puts; queue 0 = in none.
func (t Token) Queue() (queue, place uint64) { return t.queue, t.place }

// IsZero reports whether the token asks for nothing.
func (t Token) IsZero() bool { return t.ofNoState() && t.queue == 0 }

// ofNoState reports whether the token says nothing of Postgres.
func (t Token) ofNoState() bool { return t.snapshot.Timeline == 0 }

// SeenBy reports whether a read at the snapshot is not behind the token. False also means that it
// cannot be told, as for a token of another timeline.
func (t Token) SeenBy(s Snapshot) bool {
	if t.IsZero() {
		return true
	}
	if t.snapshot.Timeline != s.Timeline || (t.snapshot.Xmax > 0 && !s.Includes(t.snapshot)) {
		return false
	}
	for _, xid := range t.xids {
		if !s.Sees(xid) {
			return false
		}
	}
	return true
}

// Merge is the token of a session that has come as far as both. Of tokens of two timelines the
// argument wins, and of places in two queues, too: it is the newer knowledge.
func (t Token) Merge(o Token) Token {
	merged := t.mergeState(o)
	merged.queue, merged.place = t.queue, t.place
	if o.queue != 0 && (o.queue != t.queue || o.place > t.place) {
		merged.queue, merged.place = o.queue, o.place
	}
	return merged
}

// mergeState merges what the tokens say of Postgres.
func (t Token) mergeState(o Token) Token {
	switch {
	case t.ofNoState():
		return o
	case o.ofNoState():
		return t
	case t.snapshot.Timeline != o.snapshot.Timeline:
		return o
	}
	merged := Token{snapshot: t.snapshot}
	if o.snapshot.Xmax > 0 && (t.snapshot.Xmax == 0 || o.snapshot.Includes(t.snapshot)) {
		merged.snapshot = o.snapshot
	}
	for _, xid := range slices.Concat(t.xids, o.xids) {
		if !slices.Contains(merged.xids, xid) && !(merged.snapshot.Xmax > 0 && merged.snapshot.Sees(xid)) {
			merged.xids = append(merged.xids, xid)
		}
	}
	if len(merged.xids) > maxTokenXIDs {
		// As one bound: everything up to the highest. It may take the reader's node a poll to meet it.
		merged.snapshot.Xmax = max(merged.snapshot.Xmax, slices.Max(merged.xids)+1)
		merged.snapshot.Xmin, merged.snapshot.Xip, merged.xids = merged.snapshot.Xmax, nil, nil
	}
	return merged
}

// String is the token's text, safe in a header or a cookie; empty for the zero Token.
func (t Token) String() string {
	if t.IsZero() {
		return ""
	}
	b := t.binary()
	if base64.RawURLEncoding.EncodedLen(len(b)) > maxTokenText {
		// Without the transactions in progress it asks for more than it must, never for less.
		t.snapshot.Xmin, t.snapshot.Xip = t.snapshot.Xmax, nil
		b = t.binary()
	}
	return base64.RawURLEncoding.EncodeToString(b)
}

func (t Token) binary() []byte {
	written := Snapshot{Timeline: t.snapshot.Timeline}
	if len(t.xids) > 0 {
		xids := slices.Sorted(slices.Values(t.xids))
		written.Xmin, written.Xmax, written.Xip = xids[0], xids[len(xids)-1]+1, xids
	}
	b := []byte{tokenOfState}
	if t.queue != 0 {
		b[0] = tokenOfQueue
	}
	b, _ = t.snapshot.AppendBinary(b) // never fails
	b, _ = written.AppendBinary(b)
	if t.queue != 0 {
		b = binary.BigEndian.AppendUint64(b, t.queue)
		b = binary.BigEndian.AppendUint64(b, t.place)
	}
	sum := crc32.ChecksumIEEE(b)
	return append(b, byte(sum>>8), byte(sum))
}

// The first byte of a token is its format. The second one ends with the place in a queue; releases that know
// no queues refuse it.
const (
	tokenOfState = 1
	tokenOfQueue = 2
	queueBytes   = 16
)

var errToken = errors.New("not a token of this application's answers")

// ParseToken reads the text of a token; empty text is the zero Token.
func ParseToken(text string) (Token, error) {
	if text == "" {
		return Token{}, nil
	}
	if len(text) > maxTokenText {
		return Token{}, fmt.Errorf("coherence: token of %d bytes: want at most %d", len(text), maxTokenText)
	}
	b, err := base64.RawURLEncoding.DecodeString(text)
	if err != nil || len(b) < 3 || (b[0] != tokenOfState && b[0] != tokenOfQueue) {
		return Token{}, fmt.Errorf("coherence: token: %w", errToken)
	}
	body, tail := b[:len(b)-2], b[len(b)-2:]
	if sum := crc32.ChecksumIEEE(body); byte(sum>>8) != tail[0] || byte(sum) != tail[1] {
		return Token{}, fmt.Errorf("coherence: token: %w", errToken)
	}
	snapshot, rest, err1 := DecodeSnapshot(body[1:])
	if err1 != nil {
		return Token{}, fmt.Errorf("coherence: token: %w", errToken)
	}
	written, rest, err2 := DecodeSnapshot(rest)
	var queue, place uint64
	if b[0] == tokenOfQueue && len(rest) == queueBytes {
		queue, place, rest = binary.BigEndian.Uint64(rest), binary.BigEndian.Uint64(rest[8:]), nil
	}
	if err2 != nil || len(rest) != 0 || (queue != 0) != (b[0] == tokenOfQueue) || len(written.Xip) > maxTokenXIDs || written.Timeline != snapshot.Timeline {
		return Token{}, fmt.Errorf("coherence: token: %w", errToken)
	}
	return Token{snapshot: snapshot, xids: written.Xip, queue: queue, place: place}, nil
}
