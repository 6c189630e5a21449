package shop

import (
	"errors"
	"net/http"
	"strings"

	"github.com/freshet-cache/freshet/node"
	"github.com/freshet-cache/freshet/node/nodehttp"
)

// session is what the headers of a request ask of its reads.
type session = nodehttp.Session

// readSession reads Freshet-Token, which may be given more than once, and Freshet-Budget.
func readSession(r *http.Request) (s session, faults []fault) {
	s, err := nodehttp.SessionOf(r)
	if wrong, ok := errors.AsType[*nodehttp.SessionError](err); ok {
		for _, f := range wrong.Faults {
			faults = append(faults, fault{Header: f.Header, Detail: f.Detail})
		}
	}
	return s, faults
}

// label says on the answer to the request what the node knows of the entry, found or not.
func label[V any](w http.ResponseWriter, r *http.Request, entry node.Entry[V], keys []string) {
	nodehttp.Note(r.Context(), entry)
	w.Header().Set("Surrogate-Key", strings.Join(keys, " "))
}
