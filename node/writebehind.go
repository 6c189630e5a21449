package node

import (
	"cmp"
	"time"
)

// WriteBehind is how puts that are written later travel: through one stream of JetStream per application, to
// whichever replica flushes them. Zero fields mean their defaults. MaxPending, MaxBytes and Replicas are the
// stream's: of replicas that say different things the last to open counts.
type WriteBehind struct {
	// MaxPending and MaxBytes bound what waits in the stream, over all namespaces; 0 = 10,000 messages and
	// 64 MiB, at most 1,000,000 and 16 GiB. Beyond them PutLater fails with [ErrOverloaded]. JetStream
	// sets MaxBytes of its store aside: where it has less left, PutLater fails, and the log says why. Each
	// replica holds the values of the caches that it has in memory.
	MaxPending int
	MaxBytes   int64
	// Replicas of the stream among the servers of a NATS cluster, 1 to 5; 0 = 1.
	Replicas int
	// Timeout bounds the wait of one PutLater for the stream; 0 = 5 s.
	Timeout time.Duration
	// Batch bounds the puts of one transaction; 0 = 100, at most 10,000.
	Batch int
	// FlushEvery is how long the first put of a batch waits for others, unless more are there already; 0 = 20 ms.
	FlushEvery time.Duration
	// Flushers are the batches of one cache that this replica writes at once; 0 = 1, at most 16, below 0 = none:
	// other replicas flush.
	Flushers int
	// AckWait is how long nothing may be heard of a batch before another replica takes it: what the puts of a
	// replica that died wait for. 0 = 5 s, at least 100 ms.
	AckWait time.Duration
	// MaxAttempts is how often a put is tried that Postgres, or the Store, refuses; 0 = 5, at most 1,000. Then it
	// becomes a [DeadLetter]. Attempts that ended with their replica count.
	MaxAttempts int
	// MinRetry and MaxRetry bound the pause between two attempts, which doubles, with a fifth as jitter either
	// way; 0 = 100 ms and 10 s. While Postgres is away there is no other bound.
	MinRetry, MaxRetry time.Duration
}

func (w WriteBehind) maxPending() int           { return cmp.Or(w.MaxPending, 10_000) }
func (w WriteBehind) maxBytes() int64           { return cmp.Or(w.MaxBytes, 64<<20) }
func (w WriteBehind) replicas() int             { return cmp.Or(w.Replicas, 1) }
func (w WriteBehind) timeout() time.Duration    { return cmp.Or(w.Timeout, 5*time.Second) }
func (w WriteBehind) batch() int                { return cmp.Or(w.Batch, 100) }
func (w WriteBehind) flushEvery() time.Duration { return cmp.Or(w.FlushEvery, 20*time.Millisecond) }
func (w WriteBehind) flushers() int             { return max(cmp.Or(w.Flushers, 1), 0) }
func (w WriteBehind) ackWait() time.Duration    { return cmp.Or(w.AckWait, 5*time.Second) }
func (w WriteBehind) maxAttempts() int          { return cmp.Or(w.MaxAttempts, 5) }
func (w WriteBehind) minRetry() time.Duration   { return cmp.Or(w.MinRetry, 100*time.Millisecond) }
func (w WriteBehind) maxRetry() time.Duration   { return cmp.Or(w.MaxRetry, 10*time.Second) }

// pause is that after the n-th attempt, n from 1 on.
func (w WriteBehind) pause(n uint64) time.Duration {
	d := w.minRetry()
	for ; n > 1 && d < w.maxRetry(); n-- {
		d *= 2
	}
	return dutyJitter(min(d, w.maxRetry()))
}
