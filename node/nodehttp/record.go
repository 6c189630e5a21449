package nodehttp

import (
	"context"
	"fmt"
	"math"
	"net/http"
	"strconv"
	"sync"
	"time"

	"github.com/freshet-cache/freshet/node"
)

// answer is what is known of an entry that a request's answer is made of.
type answer struct {
	tier                  node.Tier // 0 = of several entries, from wherever each was
	fresh, grace, pending bool
	age, ttl              time.Duration
}

// record is what is known of a request: it is in the request's context.
type record struct {
	config *Config
	secure bool // the request came over TLS

	mu      sync.Mutex
	token   node.Token // the session's: carried in, and noted
	tokens  bool       // one was noted
	answers int
	sources int    // of answers, those that came from the source
	sum     answer // of all answers: the farthest tier, the least fresh, the oldest, the first to expire
}

type recordKey struct{}

func recordOf(ctx context.Context) *record {
	rec, _ := ctx.Value(recordKey{}).(*record)
	return rec
}

func (rec *record) carry(t node.Token) {
	rec.mu.Lock()
	defer rec.mu.Unlock()
	rec.token = rec.token.Merge(t)
}

func (rec *record) noteToken(t node.Token) {
	rec.mu.Lock()
	defer rec.mu.Unlock()
	rec.token, rec.tokens = rec.token.Merge(t), true
}

func (rec *record) note(a answer, t node.Token) {
	rec.mu.Lock()
	defer rec.mu.Unlock()
	rec.token, rec.tokens = rec.token.Merge(t), true
	if a.tier == node.TierSource {
		rec.sources++
	}
	rec.answers++
	if rec.answers == 1 {
		rec.sum = a
		return
	}
	rec.sum = answer{
		tier: max(rec.sum.tier, a.tier), fresh: rec.sum.fresh && a.fresh, grace: rec.sum.grace || a.grace,
		pending: rec.sum.pending || a.pending, age: max(rec.sum.age, a.age), ttl: min(rec.sum.ttl, a.ttl),
	}
}

// result is what the caches did for the request, as a label.
func (rec *record) result() string {
	rec.mu.Lock()
	defer rec.mu.Unlock()
	switch {
	case rec.answers == 0:
		return "none"
	case rec.sum.pending:
		return "pending"
	case !rec.sum.fresh:
		return "stale"
	case rec.sum.tier == 0:
		return "mixed"
	}
	return rec.sum.tier.String()
}

// setHeaders says on the answer what was noted. What the handler has set stays.
func (rec *record) setHeaders(h http.Header) {
	rec.mu.Lock()
	defer rec.mu.Unlock()
	set := func(name, value string) {
		if _, there := h[name]; !there {
			h[name] = []string{value}
		}
	}
	if text := rec.token.String(); rec.tokens && text != "" {
		set(TokenHeader, text)
		if rec.config.Cookie != "" {
			http.SetCookie(headerWriter{h}, &http.Cookie{
				Name: rec.config.Cookie, Value: text, Path: "/", HttpOnly: true, Secure: rec.secure, SameSite: http.SameSiteLaxMode,
			})
		}
	}
	if rec.answers == 0 {
		return
	}
	a := rec.sum
	if a.fresh {
		set("Freshet-Fresh", "fresh")
	} else {
		set("Freshet-Fresh", "stale")
	}
	if a.pending { // nothing is known of it but that it is newer than what Postgres has
		set("Freshet-Pending", "true")
		set("Cache-Status", "freshet-l1; hit; detail=pending")
		return
	}
	set("Freshet-Staleness-Bound", strconv.FormatInt(int64(math.Ceil(float64(a.age)/float64(time.Millisecond))), 10))
	set("Age", strconv.FormatInt(int64(a.age/time.Second), 10))
	if a.tier != 0 {
		if rec.answers == 1 {
			set("Freshet-Tier", a.tier.String())
		}
		set("Cache-Status", rec.cacheStatus())
	}
}

// headerWriter is the headers of an answer, for [http.SetCookie].
type headerWriter struct{ h http.Header }

func (w headerWriter) Header() http.Header     { return w.h }
func (headerWriter) Write([]byte) (int, error) { return 0, http.ErrNotSupported }
func (headerWriter) WriteHeader(int)           {}

// cacheStatus is the value of the header of RFC 9211: the cache closest to Postgres comes first. Of several entries
// it speaks of the node as one cache.
func (rec *record) cacheStatus() string {
	a := rec.sum
	found := fmt.Sprintf("; ttl=%d", int64(math.Floor(a.ttl.Seconds())))
	switch {
	case a.grace:
		found += "; detail=grace"
	case !a.fresh:
		found += "; detail=stale"
	}
	if rec.answers > 1 {
		switch rec.sources {
		case 0:
			return "freshet; hit" + found
		case rec.answers:
			return "freshet; fwd=miss" + found
		default:
			return "freshet; fwd=partial" + found
		}
	}
	switch a.tier {
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
