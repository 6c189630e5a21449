package nodehttp

import (
	"context"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/freshet-cache/freshet/node"
)

// The headers of requests and answers.
const (
	// TokenHeader has the session's token: a client sends that of its last answer, or of several.
	TokenHeader = "Freshet-Token"
	// BudgetHeader has the freshness budget that a request asks for, such as 0, 50ms or 1s.
	BudgetHeader = "Freshet-Budget"
)

const (
	maxBudget = time.Hour
	maxTokens = 16 // in one request
)

// Session is what a request asks of the reads that answer it. The zero Session asks for nothing.
type Session struct {
	token   node.Token
	options []node.ReadOption
}

// SessionOf reads Freshet-Token, which may be given more than once, up to 16 times; or else the cookie, if the
// middleware has one; and Freshet-Budget, 0 to 1h, if the middleware takes it. The error is a [*SessionError] when
// headers cannot be read: that is the client's fault, and the request is to be refused. A cookie that cannot be read
// counts as none: a browser could not put it right.
func SessionOf(r *http.Request) (Session, error) {
	var s Session
	var faults []HeaderFault
	wrong := func(header, format string, args ...any) {
		faults = append(faults, HeaderFault{Header: header, Detail: fmt.Sprintf(format, args...)})
	}
	rec := recordOf(r.Context())
	tokens := r.Header.Values(TokenHeader)
	if len(tokens) > maxTokens {
		wrong(TokenHeader, "given %d times; want at most %d", len(tokens), maxTokens)
		tokens = nil
	}
	for _, text := range tokens {
		token, err := node.ParseToken(text)
		if err != nil {
			wrong(TokenHeader, "want a token of an earlier answer, unchanged: %.60s", err)
			continue
		}
		s.token = s.token.Merge(token)
	}
	carried := len(tokens) > 0
	if !carried && rec != nil && rec.config.Cookie != "" {
		if c, err := r.Cookie(rec.config.Cookie); err == nil {
			if token, err := node.ParseToken(c.Value); err == nil {
				s.token, carried = token, true
			}
		}
	}
	if carried {
		s.options = append(s.options, node.AtLeast(s.token))
	}
	if rec != nil {
		rec.carry(s.token)
		if rec.config.Budget {
			switch budgets := r.Header.Values(BudgetHeader); len(budgets) {
			case 0:
			case 1:
				budget, err := time.ParseDuration(budgets[0])
				if err != nil || budget < 0 || budget > maxBudget {
					wrong(BudgetHeader, "want 0 to 1h, such as 0, 50ms or 1s; got %s", quote(budgets[0]))
					break
				}
				s.options = append(s.options, node.Within(budget))
			default:
				wrong(BudgetHeader, "given %d times; give it once", len(budgets))
			}
		}
	}
	if faults != nil {
		return s, &SessionError{faults}
	}
	return s, nil
}

// Options are for the reads of the request.
func (s Session) Options() []node.ReadOption { return slices.Clip(s.options) }

// Token is that which the request carries; zero if it has none.
func (s Session) Token() node.Token { return s.token }

// SessionError says what is wrong with the headers of a request.
type SessionError struct{ Faults []HeaderFault } // at least one

// HeaderFault says what is wrong with one header, and what would be right.
type HeaderFault struct{ Header, Detail string }

func (e *SessionError) Error() string {
	var texts []string
	for _, f := range e.Faults {
		texts = append(texts, f.Header+": "+f.Detail)
	}
	return strings.Join(texts, "; ")
}

// quote is what a client sent, short and harmless.
func quote(text string) string {
	if len(text) > 40 {
		text = text[:40] + "..."
	}
	return strconv.QuoteToASCII(text)
}

// Note says that the entry is a part of the answer to the request of ctx, found or not. Without the middleware it does
// nothing. It may be called more than once, and by several goroutines, and counts for the headers until they are
// written.
func Note[V any](ctx context.Context, e node.Entry[V]) {
	rec := recordOf(ctx)
	if rec == nil {
		return
	}
	rec.note(answer{tier: e.Tier, fresh: e.Fresh, grace: e.Grace > 0, pending: e.Pending, age: e.Age, ttl: e.TTL}, e.Token)
}

// NoteToken says that the session has come as far as the token: that of a write, or of a read that the answer does
// not show.
func NoteToken(ctx context.Context, t node.Token) {
	if rec := recordOf(ctx); rec != nil {
		rec.noteToken(t)
	}
}
