package coherence

import (
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/freshet-cache/freshet/cluster"
)

// Bus carries hints between the nodes of an application over NATS, on freshet.<app>.hint. It never
// buffers: what cannot be sent now is lost, and polls find it.
type Bus struct {
	conn    cluster.Conn
	subject string
	boot    uint64
	sub     cluster.Subscription

	mu   sync.Mutex // orders the messages by their number
	seq  uint64
	wire []byte

	echoMu sync.Mutex
	sent   [maxEchoes]echo // by number, modulo its length
	echoes Histogram

	published atomic.Uint64 // copy of seq that heartbeats read
	malformed atomic.Uint64
}

// maxPendingHints bounds the hints that wait in the client for this node; beyond it they are dropped
// and the connection's owner hears of a slow consumer.
const maxPendingHints = 1 << 14

// OpenBus subscribes to the hints of the application's nodes and hands each to deliver, one at a time.
// The connection may be down; it stays the caller's.
func OpenBus(conn cluster.Conn, app string, boot uint64, deliver func(Hint)) (*Bus, error) {
	b := &Bus{conn: conn, subject: "freshet." + app + ".hint", boot: boot}
	pending := cluster.Queue{Messages: maxPendingHints, Bytes: maxPendingHints * hintHead * 4}
	sub, err := conn.Subscribe(b.subject, pending, func(m cluster.Message) {
		h, err := DecodeHint(m.Data)
		if err != nil {
			b.malformed.Add(1)
			return
		}
		if h.Boot == boot {
			b.echoed(h.Seq)
		}
		deliver(h)
	})
	if err != nil {
		return nil, fmt.Errorf("coherence: subscribe to hints: %w", err)
	}
	b.sub = sub
	return b, nil
}

// Publish sends the news of one commit, as several hints when it has many scopes. An error means that
// other nodes may learn of it by polling only.
func (b *Bus) Publish(timeline, xid uint64, scopes []ScopeHash) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	for len(scopes) > 0 {
		n := min(len(scopes), MaxHintScopes)
		// The number is spent also when sending fails, so that the others see the gap and poll.
		b.seq++
		b.published.Store(b.seq)
		h := Hint{Boot: b.boot, Seq: b.seq, Timeline: timeline, XID: xid, Scopes: scopes[:n]}
		var err error
		if b.wire, err = h.AppendBinary(b.wire[:0]); err != nil {
			return err
		}
		b.sending(b.seq)
		if err := b.conn.Publish(b.subject, b.wire); err != nil {
			return fmt.Errorf("coherence: publish hint: %w", err)
		}
		scopes = scopes[n:]
	}
	return nil
}

// echo is a hint that this node has sent and not heard yet.
type echo struct {
	seq uint64 // 0 = none
	at  time.Time
}

// maxEchoes bounds the hints whose return is timed at once; of more, the later ones are.
const maxEchoes = 256

// sending notes when a hint was sent.
func (b *Bus) sending(seq uint64) {
	b.echoMu.Lock()
	defer b.echoMu.Unlock()
	b.sent[seq%maxEchoes] = echo{seq, time.Now()}
}

// echoed counts how long a hint took to come back.
func (b *Bus) echoed(seq uint64) {
	b.echoMu.Lock()
	defer b.echoMu.Unlock()
	if e := &b.sent[seq%maxEchoes]; e.seq == seq {
		b.echoes.Observe(time.Since(e.at))
		e.seq = 0
	}
}

// Echoes are how long this node's own hints took to come back to it by NATS: as long as they take to others, for
// which no two clocks need be compared.
func (b *Bus) Echoes() Durations { return b.echoes.Durations() }

// Published is how many hints this node has numbered; heartbeats carry it.
func (b *Bus) Published() uint64 { return b.published.Load() }

// Malformed is how many messages on the subject were not hints.
func (b *Bus) Malformed() uint64 { return b.malformed.Load() }

// Close ends the subscription, and returns when no hint is being delivered any more or the connection
// is closed. Later calls do nothing.
func (b *Bus) Close() error {
	if err := b.sub.Close(); err != nil {
		return fmt.Errorf("coherence: end of hints: %w", err)
	}
	return nil
}
