package shop

import (
	"fmt"
	"math"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/freshet-cache/freshet/node"
)

// session is what the headers of a request ask of its reads.
type session struct {
	token   node.Token
	options []node.ReadOption
}

// The bounds of the request's headers.
const (
	maxBudget = time.Hour
	maxTokens = 16 // in one request
)

// readSession reads Freshet-Token, which may be given more than once, and Freshet-Budget.
func readSession(h http.Header) (s session, faults []fault) {
	tokens := h.Values("Freshet-Token")
	if len(tokens) > maxTokens {
		faults = append(faults, fault{Header: "Freshet-Token", Detail: fmt.Sprintf("given %d times; want at most %d", len(tokens), maxTokens)})
		tokens = nil
	}
	for _, text := range tokens {
		token, err := node.ParseToken(text)
		if err != nil {
			faults = append(faults, fault{Header: "Freshet-Token", Detail: "want a token of an earlier answer, unchanged: " + shorten(err.Error())})
			continue
		}
		s.token = s.token.Merge(token)
	}
	if len(tokens) > 0 {
		s.options = append(s.options, node.AtLeast(s.token))
	}

	switch budgets := h.Values("Freshet-Budget"); len(budgets) {
	case 0:
	case 1:
		budget, err := time.ParseDuration(budgets[0])
		if err != nil || budget < 0 || budget > maxBudget {
			faults = append(faults, fault{Header: "Freshet-Budget", Detail: "want 0 to 1h, such as 0, 50ms or 1s; got " + quote(budgets[0])})
			break
		}
		s.options = append(s.options, node.Within(budget))
	default:
		faults = append(faults, fault{Header: "Freshet-Budget", Detail: fmt.Sprintf("given %d times; give it once", len(budgets))})
	}
	return s, faults
}

// carry gives the client the token that covers its own and that of the answer.
func (s session) carry(h http.Header, token node.Token) {
	if text := s.token.Merge(token).String(); text != "" {
		h.Set("Freshet-Token", text)
	}
}

// label says on the answer what the node knows of the entry, found or not.
func label[V any](h http.Header, s session, entry node.Entry[V], keys []string) {
	s.carry(h, entry.Token)
	fresh := "stale"
	if entry.Fresh {
		fresh = "fresh"
	}
	h.Set("Freshet-Fresh", fresh)
	h.Set("Surrogate-Key", strings.Join(keys, " "))
	if entry.Pending { // nothing is known of it but that it is newer than what Postgres has
		h.Set("Freshet-Pending", "true")
		h.Set("Cache-Status", "freshet-l1; hit; detail=pending")
		return
	}
	h.Set("Freshet-Staleness-Bound", strconv.FormatInt(int64(math.Ceil(float64(entry.Age)/float64(time.Millisecond))), 10))
	h.Set("Age", strconv.FormatInt(int64(entry.Age/time.Second), 10))
	if entry.Tier != 0 { // else it is made of several entries, from wherever each was
		h.Set("Freshet-Tier", entry.Tier.String())
		h.Set("Cache-Status", cacheStatus(entry))
	}
}

// cacheStatus is the value of the header of RFC 9211: the cache closest to Postgres comes first.
func cacheStatus[V any](entry node.Entry[V]) string {
	found := fmt.Sprintf("; ttl=%d", int64(math.Floor(entry.TTL.Seconds())))
	switch {
	case entry.Grace > 0:
		found += "; detail=grace"
	case !entry.Fresh:
		found += "; detail=stale"
	}
	switch entry.Tier {
	case node.TierL1:
		return "freshet-l1; hit" + found
	case node.TierL2:
		return "freshet-l2; hit" + found + ", freshet-l1; fwd=uri-miss; stored"
	case node.TierOwner:
		return "freshet-owner; hit" + found + ", freshet-l1; fwd=uri-miss; stored"
	default: // the source
		return "freshet-l2; fwd=miss, freshet-l1; fwd=miss; stored" + found
	}
}
