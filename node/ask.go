package node

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/freshet-cache/freshet/cluster"
)

// asks puts an operator's questions to every replica, and answers those of others, over NATS requests on
// freshet.<app>.ask.<boot>. Questions and answers are JSON: they are rare, and a replica of another version leaves
// out what it does not know.
type asks struct {
	node *Node
	sub  cluster.Subscription

	places chan struct{} // bounds the answers under way: one token each
	work   sync.WaitGroup
	ctx    context.Context //nolint:containedctx // the node's lifetime
	stop   context.CancelFunc
}

const (
	// maxAsked bounds the answers under way, and the replicas that are asked at once; a question beyond gets no
	// answer.
	maxAsked = 32
	// askPatience bounds the wait for the answer of one replica.
	askPatience = 2 * time.Second
	// maxAskAnswer bounds the bytes of an answer, as the largest message of NATS does by default.
	maxAskAnswer = maxPeerEntry
)

// question is what an operator asks. Only the fields of its kind are set.
type question struct {
	Kind      questionKind `json:"kind"`
	Namespace string       `json:"namespace,omitempty"`
	View      string       `json:"view,omitempty"`
	ID        string       `json:"id,omitempty"`
}

type questionKind string

const (
	askStats   questionKind = "stats"   // answered by Stats
	askSummary questionKind = "summary" // answered by Summary
	askReset   questionKind = "reset"   // resets the summary and answers with what it was
	askExplain questionKind = "explain" // answered by Explain, of Namespace, View and ID
)

// told is an answer on the wire: Error, if there is none.
type told struct {
	Answer json.RawMessage `json:"answer,omitempty"`
	Error  string          `json:"error,omitempty"`
}

// Answer is what one replica said to a question that all were asked.
type Answer[T any] struct {
	Replica string `json:"replica"`           // its [Config.ID]
	Address string `json:"address,omitempty"` // its [Config.Address]
	// Answer is nil if there is none; Error says why.
	Answer *T     `json:"answer,omitempty"`
	Error  string `json:"error,omitempty"`
}

func openAsks(n *Node) (*asks, error) {
	a := &asks{node: n, places: make(chan struct{}, maxAsked)}
	a.ctx, a.stop = context.WithCancel(context.Background())
	var err error
	if a.sub, err = n.conn.Subscribe(a.subject(n.boot), cluster.Queue{Messages: maxAsked}, a.receive); err != nil {
		return nil, fmt.Errorf("subscribe to questions of operators: %w", err)
	}
	return a, nil
}

func (a *asks) subject(boot uint64) string {
	return fmt.Sprintf("freshet.%s.ask.%016x", a.node.config.App, boot)
}

// receive takes a question; the answer may wait for Redis, so it is given by another goroutine.
func (a *asks) receive(m cluster.Message) {
	if m.Respond == nil {
		return
	}
	select {
	case a.places <- struct{}{}:
		a.work.Go(func() {
			defer func() { <-a.places }()
			_ = m.Respond(a.respond(m.Data)) // who asked may be gone
		})
	default:
	}
}

func (a *asks) respond(request []byte) []byte {
	ctx, cancel := context.WithTimeout(a.ctx, askPatience)
	defer cancel()
	var t told
	var q question
	err := json.Unmarshal(request, &q)
	if err == nil {
		t.Answer, err = a.node.answer(ctx, q)
	}
	if err == nil && len(t.Answer) > maxAskAnswer {
		err = fmt.Errorf("the answer has %d bytes, want at most %d", len(t.Answer), maxAskAnswer)
	}
	if err != nil {
		t = told{Error: err.Error()}
	}
	b, err := json.Marshal(t)
	if err != nil { // cannot be: it is made of valid JSON
		return nil
	}
	return b
}

// answer is this replica's, as JSON.
func (n *Node) answer(ctx context.Context, q question) (json.RawMessage, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	switch q.Kind {
	case askStats:
		return json.Marshal(n.Stats())
	case askSummary:
		return json.Marshal(n.Summary())
	case askReset:
		return json.Marshal(n.ResetSummary())
	case askExplain:
		e, err := n.Explain(ctx, q.Namespace, q.View, q.ID)
		if err != nil {
			return nil, err
		}
		return json.Marshal(e)
	}
	return nil, fmt.Errorf("%s does not know the question %.40q", n.id, q.Kind)
}

// close stops answering and waits for the answers under way.
func (a *asks) close() {
	_ = a.sub.Close() // fails only on a closed connection
	a.stop()
	a.work.Wait()
}

// askAll asks every replica of the membership view, this one included, and returns their answers in the order of
// their ids. Each has askPatience. Without a bus there is this one alone.
func askAll[T any](ctx context.Context, n *Node, q question) []Answer[T] {
	members := []cluster.Member{{ID: n.id, Boot: n.boot, Address: n.config.Address}}
	if n.members != nil {
		for _, m := range n.members.View().Members {
			if m.Boot != n.boot {
				members = append(members, m)
			}
		}
	}
	answers := make([]Answer[T], len(members))
	places := make(chan struct{}, maxAsked)
	var questions sync.WaitGroup
	for i, m := range members {
		places <- struct{}{}
		questions.Go(func() {
			defer func() { <-places }()
			answers[i] = Answer[T]{Replica: m.ID, Address: m.Address}
			v, err := askOne[T](ctx, n, m, q)
			if err != nil {
				answers[i].Error = err.Error()
				return
			}
			answers[i].Answer = v
		})
	}
	questions.Wait()
	slices.SortStableFunc(answers, func(a, b Answer[T]) int { return strings.Compare(a.Replica, b.Replica) })
	return answers
}

// askOne asks the member, which may be this node.
func askOne[T any](ctx context.Context, n *Node, m cluster.Member, q question) (*T, error) {
	ctx, cancel := context.WithTimeout(ctx, askPatience)
	defer cancel()
	var answer json.RawMessage
	if m.Boot == n.boot {
		var err error
		if answer, err = n.answer(ctx, q); err != nil {
			return nil, err
		}
	} else {
		request, err := json.Marshal(q)
		if err != nil {
			return nil, err
		}
		b, err := n.conn.Request(ctx, n.asks.subject(m.Boot), request)
		if err != nil {
			return nil, fmt.Errorf("no answer: %w", err)
		}
		var t told
		if err := json.Unmarshal(b, &t); err != nil {
			return nil, fmt.Errorf("malformed answer: %w", err)
		}
		if t.Error != "" {
			return nil, errors.New(t.Error)
		}
		answer = t.Answer
	}
	v := new(T)
	if err := json.Unmarshal(answer, v); err != nil {
		return nil, fmt.Errorf("malformed answer: %w", err)
	}
	return v, nil
}

// StatsOfAll asks every replica that this one knows for its [Node.Stats]: each has 2 s. They come in the order of
// the replicas' ids; without NATS this replica's are alone.
func (n *Node) StatsOfAll(ctx context.Context) []Answer[Stats] {
	return askAll[Stats](ctx, n, question{Kind: askStats})
}

// SummaryOfAll asks every replica that this one knows for its [Node.Summary], as [Node.StatsOfAll] does, and sums
// up what was answered.
func (n *Node) SummaryOfAll(ctx context.Context) (Summary, []Answer[Summary]) {
	answers := askAll[Summary](ctx, n, question{Kind: askSummary})
	return sumUp(answers), answers
}

// ResetSummaryOfAll is [Node.ResetSummary] on every replica that this one knows, and sums up what was answered.
func (n *Node) ResetSummaryOfAll(ctx context.Context) (Summary, []Answer[Summary]) {
	answers := askAll[Summary](ctx, n, question{Kind: askReset})
	return sumUp(answers), answers
}

// ExplainAll asks every replica that this one knows for its [Node.Explain], as [Node.StatsOfAll] does.
func (n *Node) ExplainAll(ctx context.Context, namespace, view, id string) []Answer[Explanation] {
	return askAll[Explanation](ctx, n, question{Kind: askExplain, Namespace: namespace, View: view, ID: id})
}
