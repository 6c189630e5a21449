package node

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"strconv"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// A message is a put: what is done, the id's length as a uvarint, the id, and the value as JSON.
const (
	putMagic    = "Fw\x01"
	putValue    = 'v'
	putDeletion = 'd'
)

func appendPut(b []byte, id string, value []byte) []byte {
	b = append(b, putMagic...)
	if value == nil {
		b = append(b, putDeletion)
	} else {
		b = append(b, putValue)
	}
	b = binary.AppendUvarint(b, uint64(len(id)))
	b = append(b, id...)
	return append(b, value...)
}

var errPut = errors.New("node: malformed message in the stream of puts")

func parsePut(b []byte) (put, error) {
	rest, ok := strings.CutPrefix(string(b), putMagic)
	if !ok || len(rest) < 2 {
		return put{}, errPut
	}
	kind, rest := rest[0], rest[1:]
	size, n := binary.Uvarint([]byte(rest))
	if n <= 0 || size > uint64(len(rest)-n) {
		return put{}, errPut
	}
	p := put{id: rest[n : n+int(size)]}
	value := rest[n+int(size):]
	switch {
	case kind == putValue && value != "":
		p.value = []byte(value)
	case kind != putDeletion || value != "":
		return put{}, errPut
	}
	return p, nil
}

// publish puts a message into the stream and returns its place. It tries again until the time is over: the
// stream knows the message by its id.
func (q *queue) publish(ctx context.Context, c follower, id string, value []byte) (s *session, seq uint64, err error) {
	ctx, cancel := context.WithTimeout(ctx, q.config.timeout())
	defer cancel()
	m := &nats.Msg{Subject: q.subject(c.cache().namespace), Data: appendPut(nil, id, value), Header: nats.Header{}}
	name := strconv.FormatUint(q.node.boot, 36) + "-" + strconv.FormatUint(rand.Uint64(), 36)
	for {
		if s, err = q.session(ctx); err != nil {
			return nil, 0, err
		}
		if limit := q.nats.MaxPayload(); int64(len(m.Data)) > limit-putHeaders {
			return nil, 0, fmt.Errorf("%w: %d bytes, NATS takes %d", ErrTooLarge, len(m.Data), limit-putHeaders)
		}
		ack, err := q.publishOnce(ctx, m, name)
		switch {
		case err == nil:
			return s, ack.Sequence, nil
		case isFull(err):
			return nil, 0, fmt.Errorf("%w: the stream of puts is full: %w", ErrOverloaded, err)
		case errors.Is(err, nats.ErrMaxPayload):
			return nil, 0, fmt.Errorf("%w: %w", ErrTooLarge, err)
		}
		again := time.NewTimer(dutyJitter(publishPause))
		select {
		case <-again.C:
		case <-ctx.Done():
			again.Stop()
			return nil, 0, fmt.Errorf("no answer from the stream of puts: it may have the put or not: %w", err)
		}
	}
}

const (
	putHeaders   = 1 << 10 // bytes that NATS counts beside a message's data, at most
	publishPause = 50 * time.Millisecond
	publishWait  = time.Second // for one answer
)

func (q *queue) publishOnce(ctx context.Context, m *nats.Msg, name string) (*jetstream.PubAck, error) {
	ctx, cancel := context.WithTimeout(ctx, publishWait)
	defer cancel()
	return q.js.PublishMsg(ctx, m, jetstream.WithMsgID(name), jetstream.WithExpectStream(q.name()), jetstream.WithRetryAttempts(0))
}

// isFull reports whether the stream refused a message for its bounds. NATS has no code for it.
func isFull(err error) bool {
	var answer *jetstream.APIError
	return errors.As(err, &answer) && strings.HasPrefix(answer.Description, "maximum ") && strings.HasSuffix(answer.Description, " exceeded")
}
