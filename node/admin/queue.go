package admin

import (
	"cmp"
	"context"
	"errors"
	"log/slog"
	"math"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/freshet-cache/freshet/node"
)

// Queue is what is known of later puts. While NATS or Postgres is away the rest is told all the same, with the reason
// in place of what is missing.
type Queue struct {
	// Stream is that of NATS in which they wait; nil = no cache of the replica writes behind, or StreamError says why
	// it is not known.
	Stream      *node.QueueStats `json:"stream,omitempty"`
	StreamError string           `json:"stream_error,omitempty"`
	// DeadLetters are how many there are; nil = DeadLettersError says why it is not known.
	DeadLetters      *int64 `json:"dead_letters,omitempty"`
	DeadLettersError string `json:"dead_letters_error,omitempty"`
	// Namespaces are those that write behind, over all replicas that the asked one knows, and Replicas each of theirs.
	Namespaces []LaterPuts                `json:"namespaces"`
	Replicas   []node.Answer[[]LaterPuts] `json:"replicas"`
}

// LaterPuts are those of one namespace, on one replica or on all.
type LaterPuts struct {
	Namespace string `json:"namespace"`
	// Pending puts are known not to be in Postgres yet, the oldest for so many seconds. Every replica knows of all of
	// them: over all replicas it is what the replica knows that knows of most.
	Pending int     `json:"pending"`
	Oldest  float64 `json:"oldest_seconds"`
	// What the flushers did since their replicas were opened: wrote, passed over since a later put of the key was
	// there, gave up, tried again.
	Applied    uint64 `json:"applied"`
	Superseded uint64 `json:"superseded"`
	Dead       uint64 `json:"dead"`
	Retries    uint64 `json:"retries"`
}

// DeadLetters are some of the application's, in the order of their numbers.
type DeadLetters struct {
	Letters []node.DeadLetter `json:"letters"`
}

// lookPatience bounds the wait for the stream and for the number of dead letters.
const lookPatience = 3 * time.Second

func (a *API) queuePaths() map[string]methods {
	return map[string]methods{
		"/admin/v1/queue":                             {"GET": showing(a, queue)},
		"/admin/v1/queue/dead-letters":                {"GET": {do: a.deadLetters, guarded: true}},
		"/admin/v1/queue/dead-letters/{letter}":       {"DELETE": {do: a.dropDeadLetter, guarded: true}},
		"/admin/v1/queue/dead-letters/{letter}/retry": {"POST": {do: a.retryDeadLetter, guarded: true}},
	}
}

func queue(ctx context.Context, n *node.Node) (q Queue, err error) {
	q = Queue{Namespaces: []LaterPuts{}, Replicas: []node.Answer[[]LaterPuts]{}}
	look, cancel := context.WithTimeout(ctx, lookPatience)
	defer cancel()
	if q.Stream, err = n.Queue(look); err != nil {
		q.StreamError = err.Error()
	}
	if count, err := n.CountDeadLetters(look); err != nil {
		q.DeadLettersError = err.Error()
	} else {
		q.DeadLetters = &count
	}
	for _, told := range n.StatsOfAll(ctx) {
		answer := node.Answer[[]LaterPuts]{Replica: told.Replica, Address: told.Address, Error: told.Error}
		if told.Answer != nil {
			puts := laterPuts(told.Answer.Namespaces)
			answer.Answer = &puts
			for _, p := range puts {
				q.add(p)
			}
		}
		q.Replicas = append(q.Replicas, answer)
	}
	slices.SortFunc(q.Namespaces, func(a, b LaterPuts) int { return strings.Compare(a.Namespace, b.Namespace) })
	return q, nil
}

// laterPuts are those of one replica.
func laterPuts(views []node.NamespaceStats) []LaterPuts {
	all := []LaterPuts{}
	for _, v := range views {
		if v.WritesBehind {
			all = append(all, LaterPuts{v.Namespace, v.PutsPending, v.PutsOldest, v.PutsApplied, v.PutsSuperseded, v.PutsDead, v.PutRetries})
		}
	}
	return all
}

// add joins what a replica knows to what the others do.
func (q *Queue) add(p LaterPuts) {
	at := slices.IndexFunc(q.Namespaces, func(is LaterPuts) bool { return is.Namespace == p.Namespace })
	if at < 0 {
		q.Namespaces = append(q.Namespaces, p)
		return
	}
	sum := &q.Namespaces[at]
	sum.Pending = max(sum.Pending, p.Pending)
	sum.Oldest = max(sum.Oldest, p.Oldest)
	sum.Applied += p.Applied
	sum.Superseded += p.Superseded
	sum.Dead += p.Dead
	sum.Retries += p.Retries
}

func (a *API) deadLetters(w http.ResponseWriter, r *http.Request) error {
	values, err := parameters(r, "after", "limit")
	if err != nil {
		return err
	}
	after, err1 := number(values, "after", 0, math.MaxInt64, 0)
	limit, err2 := number(values, "limit", 1, node.MaxLetters, 100)
	if err := cmp.Or(err1, err2); err != nil {
		return err
	}
	n, err := a.opened()
	if err != nil {
		return err
	}
	letters, err := n.DeadLetters(r.Context(), after, int(limit))
	if err != nil {
		return err
	}
	return send(w, http.StatusOK, DeadLetters{letters})
}

func (a *API) retryDeadLetter(w http.ResponseWriter, r *http.Request) error {
	letter, n, err := a.letter(r)
	if err != nil {
		return err
	}
	err = n.RetryDeadLetter(r.Context(), letter)
	switch {
	case errors.Is(err, node.ErrNoLetter):
		return errNoLetter()
	case errors.Is(err, node.ErrRefused):
		return refused(err.Error())
	case err != nil:
		return err
	}
	a.log.Info("admin: a dead letter was written after all", slog.Int64("letter", letter), slog.String("by", a.who(r)))
	w.WriteHeader(http.StatusNoContent)
	return nil
}

func (a *API) dropDeadLetter(w http.ResponseWriter, r *http.Request) error {
	letter, n, err := a.letter(r)
	if err != nil {
		return err
	}
	dropped, err := n.DropDeadLetter(r.Context(), letter)
	switch {
	case err != nil:
		return err
	case dropped == 0:
		return errNoLetter()
	}
	a.log.Info("admin: a dead letter was dropped", slog.Int64("letter", letter), slog.String("by", a.who(r)))
	w.WriteHeader(http.StatusNoContent)
	return nil
}

func errNoLetter() error {
	return notFound("There is no dead letter of that number: /admin/v1/queue/dead-letters lists them.")
}

// letter reads a request about a dead letter.
func (a *API) letter(r *http.Request) (letter int64, n *node.Node, err error) {
	if letter, err = parseNumber("letter", r.PathValue("letter"), 1, math.MaxInt64); err != nil {
		return 0, nil, err
	}
	n, err = a.bare(r)
	return letter, n, err
}

// Queue is what is known of later puts, on all replicas.
func (c Client) Queue(ctx context.Context) (Queue, error) {
	return call[Queue](ctx, c, http.MethodGet, "/admin/v1/queue", nil, nil)
}

// DeadLetters returns the application's dead letters with numbers above after, as many as limit, 1 to
// [node.MaxLetters]; 0 = 100.
func (c Client) DeadLetters(ctx context.Context, after int64, limit int) ([]node.DeadLetter, error) {
	query := url.Values{"after": {strconv.FormatInt(after, 10)}}
	if limit != 0 {
		query.Set("limit", strconv.Itoa(limit))
	}
	letters, err := call[DeadLetters](ctx, c, http.MethodGet, "/admin/v1/queue/dead-letters", query, nil)
	return letters.Letters, err
}

// RetryDeadLetter is [node.Node.RetryDeadLetter] on the replica.
func (c Client) RetryDeadLetter(ctx context.Context, letter int64) error {
	_, err := call[struct{}](ctx, c, http.MethodPost, letterPath(letter)+"/retry", nil, nil)
	return err
}

// DropDeadLetter removes the letter for good.
func (c Client) DropDeadLetter(ctx context.Context, letter int64) error {
	_, err := call[struct{}](ctx, c, http.MethodDelete, letterPath(letter), nil, nil)
	return err
}

func letterPath(letter int64) string {
	return "/admin/v1/queue/dead-letters/" + strconv.FormatInt(letter, 10)
}
