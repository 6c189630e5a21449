package node

import (
	"cmp"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/freshet-cache/freshet/cluster"
	"github.com/freshet-cache/freshet/tiers"
)

// peers asks other replicas for the entries they own, and answers them, over NATS requests on
// freshet.<app>.entry.<boot>. It is how misses are answered while Redis is out: the owner's L1 is then
// the shared tier, and each key is read from Postgres once.
type peers struct {
	node *Node
	sub  cluster.Subscription

	// places bounds the answers under way: one token each.
	places chan struct{}
	work   sync.WaitGroup
	ctx    context.Context //nolint:containedctx // the node's lifetime
	stop   context.CancelFunc
}

const (
	// maxAnswers bounds the answers to peers under way; beyond it they are told to help themselves.
	maxAnswers = 256
	// maxPeerEntry is the largest entry sent to a peer: NATS takes messages of 1 MiB by default.
	maxPeerEntry = 1<<20 - 4<<10
)

// The answer to a peer starts with one of these.
const (
	answerEntry  = 'e' // the entry follows
	answerNone   = 'n' // the owner cannot answer: ask the source
	requestMagic = "Fq\x01"
)

func openPeers(n *Node) (*peers, error) {
	p := &peers{node: n, places: make(chan struct{}, maxAnswers)}
	p.ctx, p.stop = context.WithCancel(context.Background())
	sub, err := n.conn.Subscribe(p.subject(n.boot), cluster.Queue{}, p.receive)
	if err != nil {
		return nil, fmt.Errorf("subscribe to peers: %w", err)
	}
	p.sub = sub
	return p, nil
}

func (p *peers) subject(boot uint64) string {
	return fmt.Sprintf("freshet.%s.entry.%016x", p.node.config.App, boot)
}

// owner is the replica that owns the entity, if that is another one.
func (p *peers) owner(namespace, id string) (cluster.Member, bool) {
	owner, ok := cluster.Owner(p.node.members.View().Members, namespace+":"+id)
	return owner, ok && owner.Boot != p.node.boot
}

// patience bounds the wait for an owner, the owner's read from Postgres included: a source that takes
// longer is told so by LeaseWait, with Redis and without.
func (p *peers) patience() time.Duration {
	return cmp.Or(p.node.config.Redis.LeaseWait, 500*time.Millisecond)
}

// Fetch implements [tiers.Peers].
func (p *peers) Fetch(ctx context.Context, namespace, view, id string) ([]byte, error) {
	owner, ok := p.owner(namespace, id)
	if !ok {
		return nil, tiers.ErrNoOwner
	}
	ctx, cancel := context.WithTimeout(ctx, p.patience())
	defer cancel()
	ctx, span := p.node.spans.Owner(ctx, namespace, view)
	answer, err := p.node.conn.Request(ctx, p.subject(owner.Boot), appendRequest(nil, namespace, view, id))
	endSpan(span, err)
	if err != nil {
		return nil, fmt.Errorf("node: ask the owner: %w", err)
	}
	if len(answer) == 0 || answer[0] != answerEntry {
		return nil, errors.New("node: the owner has no answer")
	}
	return answer[1:], nil
}

// receive takes a peer's request; the answer may take a load, so it is given by another goroutine.
func (p *peers) receive(m cluster.Message) {
	select {
	case p.places <- struct{}{}:
		p.work.Go(func() {
			defer func() { <-p.places }()
			p.answer(m)
		})
	default:
		_ = m.Respond([]byte{answerNone})
	}
}

func (p *peers) answer(m cluster.Message) {
	b, err := p.entry(m.Data)
	if err != nil || len(b) > maxPeerEntry {
		_ = m.Respond([]byte{answerNone})
		return
	}
	_ = m.Respond(append([]byte{answerEntry}, b...))
}

func (p *peers) entry(request []byte) ([]byte, error) {
	namespace, view, id, err := parseRequest(request)
	if err != nil {
		return nil, err
	}
	// Whose own view says that another owns it must not pass the question on: two views could make a
	// circle of it.
	if _, other := p.owner(namespace, id); other {
		return nil, errors.New("another replica is the owner")
	}
	p.node.mu.RLock()
	c, ok := p.node.caches[cacheName{namespace, view}]
	p.node.mu.RUnlock()
	if !ok {
		return nil, errors.New("no such cache")
	}
	ctx, cancel := context.WithTimeout(p.ctx, p.patience())
	defer cancel()
	return c.Entry(ctx, id, tiers.Want{Budget: p.node.config.budget()})
}

// close stops answering and waits for the answers under way.
func (p *peers) close() {
	_ = p.sub.Close() // fails only on a closed connection
	p.stop()
	// A request that was being delivered may still take a place: places bounds what can come.
	for range maxAnswers {
		p.places <- struct{}{}
	}
	p.work.Wait()
}

// appendRequest writes a request: magic, then each text with its length as a uvarint before it.
func appendRequest(b []byte, texts ...string) []byte {
	b = append(b, requestMagic...)
	for _, text := range texts {
		b = binary.AppendUvarint(b, uint64(len(text)))
		b = append(b, text...)
	}
	return b
}

var errRequest = errors.New("node: malformed request of a peer")

func parseRequest(b []byte) (namespace, view, id string, err error) {
	rest, ok := strings.CutPrefix(string(b), requestMagic)
	if !ok {
		return "", "", "", errRequest
	}
	for _, text := range []*string{&namespace, &view, &id} {
		size, n := binary.Uvarint([]byte(rest))
		if n <= 0 || size > uint64(len(rest)-n) {
			return "", "", "", errRequest
		}
		*text, rest = rest[n:n+int(size)], rest[n+int(size):]
	}
	if rest != "" {
		return "", "", "", errRequest
	}
	return namespace, view, id, nil
}

func joinURLs(urls []string) string { return strings.Join(urls, ",") }
