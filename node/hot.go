package node

import (
	"cmp"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/freshet-cache/freshet/cluster"
	"github.com/freshet-cache/freshet/tiers"
)

// hotIDs asks other replicas which ids of a cache they read most, and answers them, over NATS requests on
// freshet.<app>.hot.<boot>.
type hotIDs struct {
	node *Node
	sub  cluster.Subscription
}

const (
	// maxHotQueue bounds the requests that wait; each is answered after the one before. Those beyond get no answer.
	maxHotQueue = 64
	// maxHotAnswer bounds the bytes of an answer, as the largest message of NATS does by default.
	maxHotAnswer = maxPeerEntry
	// enoughPeers is how many replicas that know something are enough, and as many are asked at once.
	enoughPeers = 3
	// maxHotAsked bounds those that are asked if some know nothing.
	maxHotAsked = 3 * enoughPeers
	// hotPatience bounds the wait for one answer.
	hotPatience = time.Second
	// viewPatience is how long others are waited for, each of whom sends a heartbeat a second, and viewPause
	// the time between two looks.
	viewPatience = 1200 * time.Millisecond
	viewPause    = 10 * time.Millisecond
)

func openHot(n *Node) (*hotIDs, error) {
	h := &hotIDs{node: n}
	var err error
	if h.sub, err = n.conn.Subscribe(h.subject(n.boot), cluster.Queue{Messages: maxHotQueue}, h.receive); err != nil {
		return nil, fmt.Errorf("subscribe to questions for hot ids: %w", err)
	}
	return h, nil
}

// hotPeers is the source of what the peers read most.
func (n *Node) hotPeers(name cacheName) warmSource {
	return warmSource{"peers", func(ctx context.Context, limit int) ([]string, error) {
		if n.hot == nil {
			return nil, nil // without a bus there is nobody
		}
		return n.hot.ask(ctx, name, limit)
	}}
}

func (h *hotIDs) subject(boot uint64) string {
	return fmt.Sprintf("freshet.%s.hot.%016x", h.node.config.App, boot)
}

// receive answers a request.
func (h *hotIDs) receive(m cluster.Message) {
	if m.Respond != nil {
		_ = m.Respond(h.answer(m.Data))
	}
}

// answer is that to a request; of what is malformed, or a cache that is not here, it knows nothing.
func (h *hotIDs) answer(request []byte) []byte {
	name, limit, err := parseHotRequest(request)
	if err != nil {
		return encodeHot(nil)
	}
	h.node.mu.RLock()
	c, ok := h.node.caches[name]
	h.node.mu.RUnlock()
	if !ok {
		return encodeHot(nil)
	}
	return encodeHot(c.Hottest(limit))
}

// close stops answering and waits for the answer under way.
func (h *hotIDs) close() {
	_ = h.sub.Close() // fails only on a closed connection
}

// ask returns up to limit ids that other replicas read most in the cache of that name, hottest first: by
// enoughPeers that know any. It waits up to viewPatience for as many to be seen. Without others, or when they
// know nothing, there are none; an error says that those that are there did not answer.
func (h *hotIDs) ask(ctx context.Context, name cacheName, limit int) ([]string, error) {
	h.awaitPeers(ctx)
	asked := map[uint64]bool{h.node.boot: true} // boots
	var failed error
	for {
		peers := oldest(h.node.members.View().Members, asked)
		if len(peers) == 0 {
			return nil, failed
		}
		var answers [][]tiers.Hot
		if answers, failed = h.askAll(ctx, peers, name, limit); len(answers) > 0 {
			return mergeHot(answers, limit), nil
		}
	}
}

// awaitPeers waits until enough others are in the view.
func (h *hotIDs) awaitPeers(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, viewPatience)
	defer cancel()
	for len(h.node.members.View().Members) <= enoughPeers && idle(ctx, viewPause) {
	}
}

// oldest are up to enoughPeers of the members that have not been asked, which it notes that they are: those first
// that have run longest and so know most. There are none when enough were asked.
func oldest(members []cluster.Member, asked map[uint64]bool) []cluster.Member {
	var peers []cluster.Member
	for _, m := range members {
		if !asked[m.Boot] {
			peers = append(peers, m)
		}
	}
	slices.SortFunc(peers, func(a, b cluster.Member) int { return cmp.Compare(a.Boot, b.Boot) })
	peers = peers[:min(len(peers), enoughPeers, maxHotAsked+1-len(asked))] // asked has this node, too
	for _, m := range peers {
		asked[m.Boot] = true
	}
	return peers
}

// askAll asks the peers at once, and returns the answers that have ids, or an error of one if none has.
func (h *hotIDs) askAll(ctx context.Context, peers []cluster.Member, name cacheName, limit int) ([][]tiers.Hot, error) {
	ctx, cancel := context.WithTimeout(ctx, hotPatience)
	defer cancel()
	answers, problems := make([][]tiers.Hot, len(peers)), make([]error, len(peers))
	var questions sync.WaitGroup
	for i, peer := range peers {
		questions.Go(func() {
			b, err := h.node.conn.Request(ctx, h.subject(peer.Boot), appendHotRequest(nil, name, limit))
			if err == nil {
				answers[i], err = parseHot(b, limit)
			}
			if err != nil {
				problems[i] = fmt.Errorf("ask %s for its hot ids: %w", peer.ID, err)
			}
		})
	}
	questions.Wait()
	answers = slices.DeleteFunc(answers, func(a []tiers.Hot) bool { return len(a) == 0 })
	return answers, cmp.Or(problems...)
}

// mergeHot are up to limit ids of the answers, those first that were read most on all of them together, and
// of those that were read alike the ones that stand farther in front.
func mergeHot(answers [][]tiers.Hot, limit int) []string {
	type merged struct {
		reads uint64
		place int // the best
	}
	all := map[string]merged{}
	for _, answer := range answers {
		for place, hot := range answer {
			m, there := all[hot.ID]
			if m.reads += uint64(hot.Reads); !there || place < m.place {
				m.place = place
			}
			all[hot.ID] = m
		}
	}
	ids := make([]string, 0, len(all))
	for id := range all {
		ids = append(ids, id)
	}
	slices.SortFunc(ids, func(a, b string) int {
		x, y := all[a], all[b]
		return cmp.Or(cmp.Compare(y.reads, x.reads), cmp.Compare(x.place, y.place), cmp.Compare(a, b))
	})
	return ids[:min(limit, len(ids))]
}

// A message starts with its magic, whose last byte is the version.
const (
	hotRequestMagic = "Fh\x01"
	hotMagic        = "FH\x01"
)

var errHot = errors.New("node: malformed message about hot ids")

// appendHotRequest writes a request: magic, the most ids as a uvarint, and the names of namespace and view, each
// with its length before it.
func appendHotRequest(b []byte, name cacheName, limit int) []byte {
	b = append(b, hotRequestMagic...)
	b = binary.AppendUvarint(b, uint64(limit))
	return appendText(appendText(b, name.namespace), name.view)
}

func parseHotRequest(b []byte) (name cacheName, limit int, err error) {
	rest, ok := strings.CutPrefix(string(b), hotRequestMagic)
	if !ok {
		return cacheName{}, 0, errHot
	}
	n, rest, ok := cutUvarint(rest)
	if !ok || n > maxWarmUp {
		return cacheName{}, 0, errHot
	}
	name.namespace, rest, ok = cutText(rest)
	if !ok {
		return cacheName{}, 0, errHot
	}
	if name.view, rest, ok = cutText(rest); !ok || rest != "" {
		return cacheName{}, 0, errHot
	}
	return name, int(n), nil
}

// encodeHot is the wire form of an answer: magic, then for each id its reads as a uvarint, and the id with its length
// before it; as many as have room.
func encodeHot(hot []tiers.Hot) []byte {
	b := []byte(hotMagic)
	for _, h := range hot {
		if len(b)+2*binary.MaxVarintLen64+len(h.ID) > maxHotAnswer {
			break
		}
		b = appendText(binary.AppendUvarint(b, uint64(h.Reads)), h.ID)
	}
	return b
}

// parseHot reads an answer of at most limit ids. Whether they are ids of the cache shows when they are read.
func parseHot(b []byte, limit int) ([]tiers.Hot, error) {
	rest, ok := strings.CutPrefix(string(b), hotMagic)
	if !ok || len(b) > maxHotAnswer {
		return nil, errHot
	}
	var hot []tiers.Hot
	for rest != "" {
		var h tiers.Hot
		var reads uint64
		if reads, rest, ok = cutUvarint(rest); !ok || reads > 1<<32-1 {
			return nil, errHot
		}
		h.Reads = uint32(reads)
		if h.ID, rest, ok = cutText(rest); !ok || len(hot) >= limit {
			return nil, errHot
		}
		hot = append(hot, h)
	}
	return hot, nil
}

func appendText(b []byte, text string) []byte {
	return append(binary.AppendUvarint(b, uint64(len(text))), text...)
}

// cutText splits off a text with its length before it.
func cutText(s string) (text, rest string, ok bool) {
	size, rest, ok := cutUvarint(s)
	if !ok || size > uint64(len(rest)) {
		return "", "", false
	}
	return rest[:size], rest[size:], true
}

func cutUvarint(s string) (v uint64, rest string, ok bool) {
	v, n := binary.Uvarint([]byte(s[:min(len(s), binary.MaxVarintLen64)]))
	if n <= 0 {
		return 0, "", false
	}
	return v, s[n:], true
}
