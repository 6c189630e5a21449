package coherence

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"reflect"
	"time"
	"unsafe"

	"github.com/pressly/goose/v3"
)

// MigrateTo is [Migrate] up to a version, the number in the name of a migration's file.
func MigrateTo(ctx context.Context, db *sql.DB, version int64) error {
	return migrate(ctx, db, func(p *goose.Provider) error {
		_, err := p.UpTo(ctx, version)
		return err
	})
}

// PollQuery is the text that [PostgresLog.Poll] prepares.
const PollQuery = pollQuery

// RelayRequest is the wire form of a request.
func RelayRequest(id uint64, patience time.Duration, since Snapshot) []byte {
	b, err := appendRelayRequest(nil, relayRequest{id: id, patience: patience, since: since})
	if err != nil {
		panic(err)
	}
	return b
}

// RelayAnswer is the wire form of an answer to the request.
func RelayAnswer(request []byte, s Snapshot, changes ...Change) []byte {
	q, err := decodeRelayRequest(request)
	if err != nil {
		panic(err)
	}
	return encodeRelayAnswer(relayAnswer{id: q.id, known: true, poll: PollResult{Snapshot: s, Horizon: s, Changes: changes}})
}

// RelayAnswerWith is the wire form of an answer to the request that tells generations.
func RelayAnswerWith(request []byte, s Snapshot, g *Generations) []byte {
	q, err := decodeRelayRequest(request)
	if err != nil {
		panic(err)
	}
	poll := PollResult{Snapshot: s, Horizon: s, Generations: g}
	return encodeRelayAnswer(relayAnswer{id: q.id, known: true, same: g.Version() == q.version, poll: poll})
}

// SealRelay puts the check behind what should be a message.
func SealRelay(b []byte) []byte { return appendCheck(append([]byte(nil), b...), 0) }

// RelayRoundTrip decodes a message, and if it is one, encodes and decodes it again.
func RelayRoundTrip(b []byte) error {
	if q, err := decodeRelayRequest(b); err == nil {
		wire, err := appendRelayRequest(nil, q)
		again, err2 := decodeRelayRequest(wire)
		if err := errors.Join(err, err2); err != nil || !reflect.DeepEqual(q, again) {
			return fmt.Errorf("request %+v comes back as %+v, %w", q, again, err)
		}
	}
	if a, err := decodeRelayAnswer(b); err == nil {
		again, err := decodeRelayAnswer(encodeRelayAnswer(a))
		if err != nil || !reflect.DeepEqual(a, again) {
			return fmt.Errorf("answer %+v comes back as %+v, %w", a, again, err)
		}
	}
	return nil
}

// At says what time it is for a directory that no [Tracker] has.
func (d *Directory) At(now Instant) { d.now = now }

// CellBytes is what a directory takes for each scope.
const CellBytes = unsafe.Sizeof(cell{})
