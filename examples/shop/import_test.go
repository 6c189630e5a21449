package shop_test

import (
	"os"
	"strings"
	"testing"

	"github.com/freshet-cache/freshet/examples/shop"
)

// The import of README.md goes past the triggers, and nothing that was cached before is used after it.
func TestImportOfPrices(t *testing.T) {
	readme, err := os.ReadFile("README.md")
	if err != nil {
		t.Fatal(err)
	}
	_, text, _ := strings.Cut(string(readme), "\n```sql\n")
	statements, _, found := strings.Cut(text, "\n```\n")
	if !found {
		t.Fatal("README.md has no SQL")
	}
	c := newCatalogue(t, shop.SeedConfig{Products: 20})
	c.exec(t, `update products set price_cents = 1000`)
	r := c.replica(t, nil)
	get[shop.Product](t, r, "/products/1", "Freshet-Budget", "0")
	get[shop.ProductPage](t, r, "/products", "Freshet-Budget", "0")
	var logged int
	if err := c.db.GetContext(t.Context(), &logged, `select count(*) from freshet.log`); err != nil {
		t.Fatal(err)
	}

	c.exec(t, statements)
	if p, _ := get[shop.Product](t, r, "/products/1", "Freshet-Budget", "0"); p.PriceCents != 1030 {
		t.Errorf("got the price %d, want 1030", p.PriceCents)
	}
	list, a := get[shop.ProductPage](t, r, "/products", "Freshet-Budget", "0")
	if len(list.Items) != 20 || list.Items[7].PriceCents != 1030 || a.header.Get("Freshet-Fresh") != "fresh" {
		t.Errorf("got %v %s", a.header, a.body)
	}
	var after int
	if err := c.db.GetContext(t.Context(), &after, `select count(*) from freshet.log`); err != nil || after-logged > 2 {
		t.Errorf("the import logged %d changes, %v; want one of its generation", after-logged, err)
	}
}
