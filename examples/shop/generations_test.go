package shop_test

import (
	"os"
	"strings"
	"testing"

	"github.com/freshet-cache/freshet/examples/shop"
)

// A new generation, by the SQL of README.md: nothing that was cached before is used, until it is rolled back.
func TestGenerations(t *testing.T) {
	readme, err := os.ReadFile("README.md")
	if err != nil {
		t.Fatal(err)
	}
	_, text, _ := strings.Cut(string(readme), "\n```sql\n")
	text, _, found := strings.Cut(text, "\n```\n")
	next, back, both := strings.Cut(text, "\n")
	if !found || !both {
		t.Fatalf("README.md has no two statements of SQL: %q", text)
	}
	c := newCatalogue(t, shop.SeedConfig{Products: 20})
	r := c.replica(t, nil)
	tier := func(want ...string) {
		t.Helper()
		for _, path := range []string{"/products/1", "/products?limit=5"} {
			_, a := get[map[string]any](t, r, path, "Freshet-Budget", "0")
			if tier := a.header.Get("Freshet-Tier"); !strings.Contains(strings.Join(want, " "), tier) || a.header.Get("Freshet-Fresh") != "fresh" {
				t.Errorf("%s: %s from %s, want fresh from %v", path, a.header.Get("Freshet-Fresh"), tier, want)
			}
		}
	}
	tier("source")
	tier("l1")
	c.exec(t, next)
	tier("source")
	tier("l1")
	c.exec(t, back)
	tier("l1", "l2")
}
