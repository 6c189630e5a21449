package node_test

import (
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/lib/pq"

	"github.com/freshet-cache/freshet/node"
)

// nastyParts are parts of ids that an encoding could mix up.
var nastyParts = []string{"", "/", "%", "%25", "%2F", "%2f", "%252F", "//", "a/b", "a%b", "25", "2F", "é", "\n", "'", `\`, "{}", ":", "😀", "a b", ","}

// The two languages agree on every id and on what is none.
func TestIDAgreesWithPostgres(t *testing.T) {
	s := newSite(t)
	random := rand.New(rand.NewPCG(1, 2))
	var lists [][]string
	for _, a := range nastyParts {
		lists = append(lists, []string{a})
		for _, b := range nastyParts {
			lists = append(lists, []string{a, b})
		}
	}
	for range 500 {
		var parts []string
		for range 1 + random.IntN(4) {
			var part strings.Builder
			for range random.IntN(6) {
				part.WriteString(nastyParts[random.IntN(len(nastyParts))])
			}
			parts = append(parts, part.String())
		}
		lists = append(lists, parts)
	}
	for _, parts := range lists {
		id := node.ID(parts...)
		// What has been made, and the parts' own texts, most of which have not.
		for _, text := range append([]string{id}, parts...) {
			goParts, goErr := node.IDParts(text)
			var sqlID string
			var sqlParts pq.StringArray
			if err := s.db.QueryRowContext(t.Context(), `select freshet.id(variadic $1), freshet.id_parts($2)`, pq.StringArray(parts), text).
				Scan(&sqlID, &sqlParts); err != nil {
				t.Fatal(err)
			}
			if sqlID != id {
				t.Errorf("parts %q: %q here, %q in Postgres", parts, id, sqlID)
			}
			if (goErr == nil) != (sqlParts != nil) || !slices.Equal(goParts, sqlParts) {
				t.Errorf("id %q: %q, %v here, %q in Postgres", text, goParts, goErr, sqlParts)
			}
		}
	}
}
