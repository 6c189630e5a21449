package node

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/nats-io/nats.go/jetstream"
)

// QueueStats describes the application's stream of later puts, as NATS knows it by now. It is made for JSON.
type QueueStats struct {
	Stream string `json:"stream"` // its name
	// Messages and Bytes are in it: puts that wait, and those settled ones whose room is not free yet. MaxMessages
	// and MaxBytes are its bounds, beyond which later puts are refused.
	Messages    uint64 `json:"messages"`
	Bytes       uint64 `json:"bytes"`
	MaxMessages int64  `json:"max_messages"`
	MaxBytes    int64  `json:"max_bytes"`
	// Oldest in seconds is how long its first message has been there; 0 = it is empty.
	Oldest     float64           `json:"oldest_seconds"`
	Namespaces []QueuedNamespace `json:"namespaces"` // those of this node that write behind
}

// QueuedNamespace is a namespace's part of the stream.
type QueuedNamespace struct {
	Namespace string `json:"namespace"`
	Messages  uint64 `json:"messages"`
	// InHand were given to a flusher, of whichever replica, and are not settled; Again are those of them that were
	// given out before.
	InHand int `json:"in_hand"`
	Again  int `json:"again"`
	// IdleFlushers wait for puts, on all replicas. 0 with messages in the stream and none in hand: nobody flushes.
	IdleFlushers int `json:"idle_flushers"`
}

// Queue asks NATS for the state of the stream of later puts. nil = no cache of this node writes behind.
func (n *Node) Queue(ctx context.Context) (*QueueStats, error) {
	q := n.puts.Load()
	if q == nil {
		return nil, nil
	}
	stats, err := q.stats(ctx)
	if err != nil {
		return nil, &Error{Op: "look at the queue", Err: err}
	}
	return stats, nil
}

func (q *queue) stats(ctx context.Context) (*QueueStats, error) {
	s := q.opened.Load()
	if !q.valid(s) {
		return nil, errNotOpen
	}
	info, err := s.stream.Info(ctx, jetstream.WithSubjectFilter(q.prefix()+"*"))
	if err != nil {
		return nil, fmt.Errorf("the stream %s: %w", q.name(), err)
	}
	stats := &QueueStats{
		Stream: q.name(), Messages: info.State.Msgs, Bytes: info.State.Bytes, MaxMessages: info.Config.MaxMsgs, MaxBytes: info.Config.MaxBytes,
		Namespaces: []QueuedNamespace{},
	}
	if info.State.Msgs > 0 {
		stats.Oldest = max(time.Since(info.State.FirstTime).Seconds(), 0)
	}
	for _, c := range q.followers() {
		namespace := c.cache().namespace
		queued := QueuedNamespace{Namespace: namespace, Messages: info.State.Subjects[q.subject(namespace)]}
		consumer, err := s.stream.Consumer(ctx, s.consumer(namespace))
		switch {
		case errors.Is(err, jetstream.ErrConsumerNotFound): // nobody has flushed yet
		case err != nil:
			return nil, fmt.Errorf("the consumer of %s: %w", namespace, err)
		default:
			known := consumer.CachedInfo()
			queued.InHand, queued.Again, queued.IdleFlushers = known.NumAckPending, known.NumRedelivered, known.NumWaiting
		}
		stats.Namespaces = append(stats.Namespaces, queued)
	}
	return stats, nil
}
