package cluster_test

import (
	"slices"
	"testing"

	"github.com/freshet-cache/freshet/cluster"
)

// nastyParts are parts of ids that an encoding could mix up.
var nastyParts = []string{"", "/", "%", "%25", "%2F", "%2f", "%252F", "//", "a/b", "a%b", "25", "2F", "é", "\n", "'", `\`, "{}", ":", "😀", "a b", ","}

// FuzzID: no two lists of parts have one id, the parts come back, and what ID has not made is refused.
func FuzzID(f *testing.F) {
	for _, a := range nastyParts {
		for _, b := range nastyParts {
			f.Add(a, b)
		}
	}
	f.Fuzz(func(t *testing.T, a, b string) {
		for _, parts := range [][]string{{a, b}, {b, a}, {a}, {a, b, a}, {a + b}, {"", a, b}} {
			id := cluster.ID(parts...)
			back, err := cluster.IDParts(id)
			if err != nil || !slices.Equal(back, parts) {
				t.Errorf("parts %q, id %q, come back as %q, %v", parts, id, back, err)
			}
		}
		if parts, err := cluster.IDParts(a); err == nil && cluster.ID(parts...) != a {
			t.Errorf("%q is taken for the id of %q, which is %q", a, parts, cluster.ID(parts...))
		}
	})
}
