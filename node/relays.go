package node

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"

	"github.com/freshet-cache/freshet/cluster"
	"github.com/freshet-cache/freshet/coherence"
)

// relays asks another replica for this one's polls when there are many, and answers those of others, over
// NATS requests on freshet.<app>.poll.<boot>.
type relays struct {
	node   *Node
	relay  coherence.Relay
	sub    cluster.Subscription
	chosen atomic.Pointer[chosenRelay] // of the last view; nil = none yet

	places chan struct{} // bounds the answers under way: one token each
	work   sync.WaitGroup
	ctx    context.Context //nolint:containedctx // the node's lifetime
	stop   context.CancelFunc
}

// chosenRelay is who relays by a membership view.
type chosenRelay struct {
	view   uint64
	member cluster.Member
	ok     bool
}

// maxRelayed bounds the answers under way; a request beyond gets none, and its node polls for itself.
const maxRelayed = 1024

func openRelays(n *Node) (*relays, error) {
	r := &relays{node: n, relay: coherence.Relay{Log: n.polls, Tracker: n.tracker}, places: make(chan struct{}, maxRelayed)}
	r.ctx, r.stop = context.WithCancel(context.Background())
	var err error
	if r.sub, err = n.conn.Subscribe(r.subject(n.boot), cluster.Queue{Messages: maxRelayed}, r.receive); err != nil {
		return nil, fmt.Errorf("subscribe to polls: %w", err)
	}
	return r, nil
}

func (r *relays) subject(boot uint64) string {
	return fmt.Sprintf("freshet.%s.poll.%016x", r.node.config.App, boot)
}

// ask is [coherence.RelayConfig.Ask].
func (n *Node) ask(ctx context.Context, request []byte) ([]byte, error) {
	r := n.relays.Load()
	if r == nil {
		return nil, coherence.ErrNoRelay
	}
	relay, ok := r.choose()
	if !ok {
		return nil, coherence.ErrNoRelay
	}
	return n.conn.Request(ctx, r.subject(relay.Boot), request)
}

func (r *relays) choose() (cluster.Member, bool) {
	view := r.node.members.View()
	c := r.chosen.Load()
	if c == nil || c.view != view.Number {
		c = &chosenRelay{view: view.Number}
		c.member, c.ok = cluster.Relay(view.Members, r.node.id, r.node.config.relayFrom())
		r.chosen.Store(c)
	}
	return c.member, c.ok
}

// receive takes a request; the answer waits for a poll, so it is given by another goroutine.
func (r *relays) receive(m cluster.Message) {
	if m.Respond == nil {
		return
	}
	select {
	case r.places <- struct{}{}:
		r.work.Go(func() {
			defer func() { <-r.places }()
			_ = m.Respond(r.relay.Answer(r.ctx, m.Data))
		})
	default:
	}
}

// close stops answering and waits for the answers under way.
func (r *relays) close() {
	r.node.relays.Store(nil)
	_ = r.sub.Close() // fails only on a closed connection
	r.stop()
	r.work.Wait()
}
