package node

import (
	"context"
	"encoding/binary"
	"errors"
	"strings"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/freshet-cache/freshet/cluster"
	"github.com/freshet-cache/freshet/coherence"
)

// floor is up to where all messages of the cache's namespace are settled.
func (q *queue) floor(ctx context.Context, s *session, c follower) (uint64, error) {
	consumer, err := s.stream.Consumer(ctx, s.consumer(c.cache().namespace))
	if err != nil {
		return 0, err
	}
	return consumer.CachedInfo().AckFloor.Stream, nil
}

// look asks settle to look.
func (q *queue) look() {
	select {
	case q.wake <- struct{}{}:
	default: // one is asked for already
	}
}

const (
	// settlePause is between two looks: many notices share a poll.
	settlePause = 20 * time.Millisecond
	// floorPause is how long puts may be pending before NATS is asked what has become of them: notices may be
	// lost.
	floorPause = time.Second
)

// settle is the goroutine that drops what is settled, each put after a poll that was sent since: from then on
// nothing older than it is answered.
func (q *queue) settle(ctx context.Context) {
	floors := time.NewTicker(floorPause)
	defer floors.Stop()
	pause := time.NewTimer(0)
	defer pause.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-q.wake:
		case <-floors.C:
			_ = q.askFloors(ctx, floorPause) // asked again at the next tick
		}
		if err := q.settleOnce(ctx); err != nil {
			q.look() // again, after the pause
		}
		pause.Reset(settlePause)
		select {
		case <-ctx.Done():
			return
		case <-pause.C:
		}
	}
}

func (q *queue) settleOnce(ctx context.Context) error {
	seen := q.seen.Load()
	gone := q.proven.Load() < seen // messages that were not followed: what was pending before them is settled, too
	if gone {
		if err := q.askFloors(ctx, 0); err != nil {
			return err
		}
	}
	caches := q.followers()
	places := make([][]place, len(caches))
	var some bool
	for i, c := range caches {
		places[i] = c.settled()
		some = some || len(places[i]) > 0
	}
	if !some && !gone {
		return nil
	}
	if _, err := q.node.tracker.Barrier(ctx); err != nil {
		return err
	}
	for i, c := range caches {
		// A STALE answer must not lack what was shown here either.
		scopes := make([]coherence.ScopeHash, len(places[i]))
		for n, at := range places[i] {
			scopes[n] = coherence.Entity(c.cache().namespace, at.id).Hash()
		}
		q.node.own.Wrote(q.node.tracker.Now(), scopes, false)
		c.drop(places[i])
	}
	if gone {
		q.proven.Store(min(seen, q.seen.Load()))
	}
	return nil
}

// askFloors settles what NATS says is acknowledged, of the caches that have a put pending for so long, and frees its
// room in the stream.
func (q *queue) askFloors(ctx context.Context, old time.Duration) error {
	s := q.opened.Load()
	if !q.valid(s) {
		return errNotOpen
	}
	ctx, cancel := context.WithTimeout(ctx, floorPause)
	defer cancel()
	for _, c := range q.followers() {
		if _, since := c.oldest(); since.IsZero() || time.Since(since) < old {
			continue
		}
		floor, err := q.floor(ctx, s, c)
		if errors.Is(err, jetstream.ErrConsumerNotFound) {
			continue // nobody has flushed yet
		}
		if err != nil {
			return err
		}
		if floor > 0 {
			c.settleIf(func(seq uint64) bool { return seq <= floor })
			_ = s.stream.Purge(ctx, jetstream.WithPurgeSubject(q.subject(c.cache().namespace)), jetstream.WithPurgeSequence(floor+1)) // or next time
		}
	}
	return nil
}

// A notice says which messages are settled: the stream's id, then their places, ascending, each as what it is
// above the one before, all as uvarints.
const noticeMagic = "Fa\x01"

func appendNotice(b []byte, stream uint64, places []uint64) []byte {
	b = append(b, noticeMagic...)
	b = binary.AppendUvarint(b, stream)
	var last uint64
	for _, seq := range places {
		b = binary.AppendUvarint(b, seq-last)
		last = seq
	}
	return b
}

func parseNotice(b []byte) (stream uint64, places []uint64, ok bool) {
	rest, ok := strings.CutPrefix(string(b), noticeMagic)
	if !ok {
		return 0, nil, false
	}
	b = []byte(rest)
	var n int
	if stream, n = binary.Uvarint(b); n <= 0 {
		return 0, nil, false
	}
	b = b[n:]
	var last uint64
	for len(b) > 0 {
		d, n := binary.Uvarint(b)
		if n <= 0 {
			return 0, nil, false
		}
		last, b = last+d, b[n:]
		places = append(places, last)
	}
	return stream, places, true
}

// hear takes a notice. One of another stream, or one that is lost, is made up for by askFloors.
func (q *queue) hear(m cluster.Message) {
	stream, places, ok := parseNotice(m.Data)
	if s := q.opened.Load(); ok && s != nil && s.id == stream {
		q.settled(places)
	}
}

func (q *queue) settled(places []uint64) {
	for _, c := range q.followers() {
		c.settle(places)
	}
	q.look()
}
