package shop_test

import (
	"fmt"
	"math/rand/v2"
	"net/http"
	"net/url"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/freshet-cache/freshet/examples/shop"
)

func TestProductIsTheRow(t *testing.T) {
	c := newCatalogue(t, shop.SeedConfig{Products: 20})
	c.exec(t, `update products set name = '<"é&> \ 日本', description = e'two\nlines', attributes = '{"a": "b", "n": 1.50, "x": null}' where id = 7`)
	// Wherever the server stands, times are in UTC.
	c.exec(t, `do $$ begin execute format('alter database %I set timezone = ''Asia/Kathmandu''', current_database()); end $$`)
	r := c.replica(t, nil)
	for id := range 20 {
		path := fmt.Sprintf("/products/%d", id+1)
		got, a := get[shop.Product](t, r, path)
		var want shop.Product
		if err := c.db.GetContext(t.Context(), &want, `select id, name, description, category_id, price_cents, status, stock, attributes, revision,
			created_at, updated_at from products where id = $1`, id+1); err != nil {
			t.Fatal(err)
		}
		if !sameProduct(got, want) {
			t.Errorf("got  %+v\nwant %+v", got, want)
		}
		if strings.Contains(string(a.body), "+05:45") || got.CreatedAt.Location() != time.UTC {
			t.Errorf("a time is not in UTC: %s", a.body)
		}
		list, _ := get[shop.ProductPage](t, r, fmt.Sprintf("/products?limit=1&offset=%d", id))
		if len(list.Items) != 1 || !sameProduct(list.Items[0], want) {
			t.Errorf("in the list: got  %+v\nwant %+v", list.Items, want)
		}
	}
	for id := range 5 {
		got, _ := get[shop.Category](t, r, fmt.Sprintf("/categories/%d", id+1))
		var name string
		if err := c.db.GetContext(t.Context(), &name, `select name from categories where id = $1`, id+1); err != nil || got.Name != name || got.ID != int64(id+1) {
			t.Errorf("got %+v, want the name %q, %v", got, name, err)
		}
	}
}

func sameProduct(a, b shop.Product) bool {
	if !a.CreatedAt.Equal(b.CreatedAt) || !a.UpdatedAt.Equal(b.UpdatedAt) {
		return false
	}
	a.CreatedAt, a.UpdatedAt, b.CreatedAt, b.UpdatedAt = time.Time{}, time.Time{}, time.Time{}, time.Time{}
	return fmt.Sprintf("%#v", a) == fmt.Sprintf("%#v", b) // maps print in the order of their keys
}

func TestReadsAreLabelled(t *testing.T) {
	c := newCatalogue(t, shop.SeedConfig{Products: 50})
	first, second := c.replica(t, nil), c.replica(t, nil)
	for _, path := range []string{"/products/1", "/products?category=1", "/categories/1", "/categories"} {
		_, source := get[any](t, first, path)
		_, l1 := get[any](t, first, path)
		_, l2 := get[any](t, second, path)
		for _, x := range []struct {
			a            answer
			tier, status string
		}{
			{source, "source", `freshet-l2; fwd=miss, freshet-l1; fwd=miss; stored; ttl=\d+`},
			{l1, "l1", `freshet-l1; hit; ttl=\d+`},
			{l2, "l2", `freshet-l2; hit; ttl=\d+, freshet-l1; fwd=uri-miss; stored`},
		} {
			h := x.a.header
			if h.Get("Freshet-Tier") != x.tier || !regexp.MustCompile("^"+x.status+"$").MatchString(h.Get("Cache-Status")) {
				t.Errorf("%s: got %q, %q; want %q, %q", path, h.Get("Freshet-Tier"), h.Get("Cache-Status"), x.tier, x.status)
			}
			if h.Get("Freshet-Fresh") != "fresh" || h.Get("Age") != "0" || h.Get("Cache-Control") != "private, max-age=0, must-revalidate" {
				t.Errorf("%s: got %v", path, h)
			}
			if bound, err := strconv.Atoi(h.Get("Freshet-Staleness-Bound")); err != nil || bound < 0 || bound > 1000 {
				t.Errorf("%s: staleness bound %q, want 0 to 1000", path, h.Get("Freshet-Staleness-Bound"))
			}
			if h.Get("Freshet-Token") == "" {
				t.Errorf("%s: no token", path)
			}
			if h.Get("ETag") != source.header.Get("ETag") || string(x.a.body) != string(source.body) {
				t.Errorf("%s: replicas or tiers differ:\n%s %s\n%s %s", path, h.Get("ETag"), x.a.body, source.header.Get("ETag"), source.body)
			}
		}
	}
	_, list := get[any](t, first, "/products?category=1")
	_, all := get[any](t, first, "/products")
	_, one := get[any](t, first, "/products/1")
	if got := []string{list.header.Get("Surrogate-Key"), all.header.Get("Surrogate-Key"), one.header.Get("Surrogate-Key")}; !slices.Equal(got, []string{"category:1 sale", "product sale", "product:1"}) {
		t.Errorf("surrogate keys: %q", got)
	}
}

func TestMissingIsLabelledToo(t *testing.T) {
	r := newCatalogue(t, shop.SeedConfig{Products: 5}).replica(t, nil)
	for _, path := range []string{"/products/6", "/products/9223372036854775807", "/categories/51"} {
		for range 2 {
			a := r.do(t, http.MethodGet, path, "")
			wantProblem(t, a, http.StatusNotFound, "not-found")
			if a.header.Get("Freshet-Fresh") != "fresh" || a.header.Get("Freshet-Token") == "" || a.header.Get("ETag") != "" {
				t.Errorf("%s: %v", path, a.header)
			}
		}
	}
}

func TestConditionalReads(t *testing.T) {
	c := newCatalogue(t, shop.SeedConfig{Products: 5})
	r, other := c.replica(t, nil), c.replica(t, nil)
	for _, path := range []string{"/products/1", "/products", "/categories/1", "/categories"} {
		_, a := get[any](t, r, path)
		tag := a.header.Get("ETag")
		for value, want := range map[string]int{
			tag:                              http.StatusNotModified,
			"W/" + tag:                       http.StatusNotModified,
			`"x", W/"y",` + tag + ` , "z"`:   http.StatusNotModified,
			"*":                              http.StatusNotModified,
			`"0000000000000000"`:             http.StatusOK,
			strings.Trim(tag, `"`):           http.StatusOK,
			tag + "junk":                     http.StatusOK,
			`"unfinished`:                    http.StatusOK,
			"":                               http.StatusOK,
			strings.ToUpper(tag) + `, "a b"`: http.StatusOK,
		} {
			for _, replica := range []*replica{r, other} {
				got := replica.do(t, http.MethodGet, path, "", "If-None-Match", value)
				if got.status != want || got.header.Get("ETag") != tag || (want == http.StatusNotModified) != (len(got.body) == 0) {
					t.Errorf("%s with If-None-Match: %s: got %d %s, want %d", path, value, got.status, got.header.Get("ETag"), want)
				}
				if got.header.Get("Freshet-Fresh") == "" || got.header.Get("Cache-Status") == "" {
					t.Errorf("%s: %d without labels: %v", path, got.status, got.header)
				}
			}
		}
	}
	_, before := get[shop.Product](t, r, "/products/1")
	c.exec(t, `update products set stock = stock where id = 1`)
	after := r.do(t, http.MethodGet, "/products/1", "", "If-None-Match", before.header.Get("ETag"), "Freshet-Budget", "0")
	if after.status != http.StatusOK || after.header.Get("ETag") == before.header.Get("ETag") {
		t.Errorf("after an update: %d %s", after.status, after.header.Get("ETag"))
	}
}

func TestHeadIsGetWithoutBody(t *testing.T) {
	r := newCatalogue(t, shop.SeedConfig{Products: 5}).replica(t, nil)
	for _, path := range []string{"/products/1", "/products", "/categories", "/openapi.yaml"} {
		full, head := r.do(t, http.MethodGet, path, ""), r.do(t, http.MethodHead, path, "")
		if head.status != http.StatusOK || len(head.body) != 0 || head.header.Get("Content-Length") != strconv.Itoa(len(full.body)) ||
			head.header.Get("ETag") != full.header.Get("ETag") {
			t.Errorf("%s: %d, %d bytes, %v", path, head.status, len(head.body), head.header)
		}
	}
	if a := r.do(t, http.MethodHead, "/products/77", ""); a.status != http.StatusNotFound {
		t.Errorf("got %d", a.status)
	}
}

// Every combination of filters shows what a plain statement finds, page by page, with the right total.
func TestListsAreWhatSQLFinds(t *testing.T) {
	c := newCatalogue(t, shop.SeedConfig{Products: 3000, Categories: 8})
	c.exec(t, `insert into products (name, category_id, price_cents, stock) values ('100% "Oak" -- drop table; $1', 1, 0, 0)`)
	r := c.replica(t, nil)
	random := rand.New(rand.NewPCG(1, 2))
	searches := []string{"oak", "oak table", "-oak lamp", `"chef's knife"`, "wool or linen", "knives", "100%", "--", "the", "zzz", `"`, "$1", "' or 1=1"}
	for round := range 160 {
		filter := url.Values{}
		condition, arguments := "true", []any{}
		add := func(text string, argument any) {
			arguments = append(arguments, argument)
			condition += " and " + strings.ReplaceAll(text, "?", fmt.Sprintf("$%d", len(arguments)))
		}
		if round&1 != 0 {
			n := 1 + random.IntN(9)
			filter.Set("category", strconv.Itoa(n))
			add("category_id = ?", n)
		}
		if round&2 != 0 {
			status := []string{"draft", "active", "archived"}[random.IntN(3)]
			filter.Set("status", status)
			add("status = ?", status)
		}
		if round&4 != 0 {
			n := random.IntN(6000)
			filter.Set("min_price", strconv.Itoa(n))
			add("price_cents >= ?", n)
		}
		if round&8 != 0 {
			n := 6000 + random.IntN(9000)
			filter.Set("max_price", strconv.Itoa(n))
			add("price_cents <= ?", n)
		}
		if round&16 != 0 {
			search := searches[random.IntN(len(searches))]
			filter.Set("search", search)
			add("to_tsvector('english', name || ' ' || description) @@ websearch_to_tsquery('english', ?)", search)
		}
		var want []int64
		if err := c.db.SelectContext(t.Context(), &want, "select id from products where "+condition+" order by id", arguments...); err != nil {
			t.Fatal(err)
		}
		if count, _ := get[int](t, r, "/products/count?"+filter.Encode()); count != len(want) {
			t.Errorf("%s: counted %d, want %d", filter.Encode(), count, len(want))
		}
		offset, limit := random.IntN(max(1, len(want))+5), 1+random.IntN(100)
		filter.Set("offset", strconv.Itoa(offset))
		filter.Set("limit", strconv.Itoa(limit))
		page, _ := get[shop.ProductPage](t, r, "/products?"+filter.Encode())
		got := []int64{}
		for _, p := range page.Items {
			got = append(got, p.ID)
		}
		expect := want[min(offset, len(want)):min(offset+limit, len(want))]
		if page.Total != int64(len(want)) || page.Offset != int64(offset) || page.Limit != int64(limit) || page.Items == nil || !slices.Equal(got, expect) {
			t.Errorf("%s: got %d of %d, at %d, limit %d: %d\nwant %d of %d: %d", filter.Encode(), len(got), page.Total, page.Offset, page.Limit, got, len(expect), len(want), expect)
		}
	}
	c.exec(t, `delete from products where id = 1`)
	if count, a := get[int](t, r, "/products/count", "Freshet-Budget", "0"); count != 3000 || a.header.Get("Surrogate-Key") != "product" {
		t.Errorf("after a deletion: counted %d, %v", count, a.header)
	}
	if page, _ := get[shop.CategoryPage](t, r, "/categories"); page.Total != 8 || len(page.Items) != 8 || !slices.IsSortedFunc(page.Items, func(a, b shop.Category) int { return strings.Compare(a.Name, b.Name) }) {
		t.Errorf("categories: %+v", page)
	}
}

func TestOneListIsOneEntry(t *testing.T) {
	r := newCatalogue(t, shop.SeedConfig{Products: 100}).replica(t, nil)
	get[shop.ProductPage](t, r, "/products?search=Oak+shelf&category=1&limit=20")
	for _, query := range []string{"category=1&search=oak++SHELF", "offset=0&category=01&search=%20oak%20shelf%20&limit=020"} {
		if _, a := get[shop.ProductPage](t, r, "/products?"+query); a.header.Get("Freshet-Tier") != "l1" {
			t.Errorf("%s: came from %s, want l1", query, a.header.Get("Freshet-Tier"))
		}
	}
}

// A change by any writer shows in the lists that it concerns, and leaves the others in place.
func TestListsFollowTheirCategory(t *testing.T) {
	c := newCatalogue(t, shop.SeedConfig{Products: 400, Categories: 4})
	r := c.replica(t, nil)
	lists := []string{"/products?category=1", "/products?category=2", "/products?category=3&status=active", "/products", "/products?search=oak"}
	const lists1, lists2, lists3, all, oak = 0, 1, 2, 3, 4
	read := func() (pages []shop.ProductPage, tiers []string) {
		for _, list := range lists {
			page, a := get[shop.ProductPage](t, r, list, "Freshet-Budget", "0")
			pages, tiers = append(pages, page), append(tiers, a.header.Get("Freshet-Tier"))
		}
		return pages, tiers
	}
	before, _ := read()
	if _, tiers := read(); slices.ContainsFunc(tiers, func(tier string) bool { return tier != "l1" }) {
		t.Fatalf("unchanged lists came from %q", tiers)
	}
	moved := before[lists1].Items[0].ID

	c.exec(t, `update products set price_cents = 123456 where id = $1`, moved)
	after, tiers := read()
	if after[lists1].Items[0].PriceCents != 123456 || after[lists1].Total != before[lists1].Total {
		t.Errorf("the list shows %+v after its price was changed", after[lists1].Items[0])
	}
	if tiers[lists1] != "source" || tiers[all] != "source" || tiers[oak] != "source" || tiers[lists2] != "l1" || tiers[lists3] != "l1" {
		t.Errorf("after a change in category 1 the lists came from %q", tiers)
	}

	c.exec(t, `update products set category_id = 2 where id = $1`, moved)
	after, tiers = read()
	if after[lists1].Total != before[lists1].Total-1 || after[lists2].Total != before[lists2].Total+1 || after[all].Total != 400 {
		t.Errorf("totals after a move: %d, %d, %d; before %d, %d", after[lists1].Total, after[lists2].Total, after[all].Total, before[lists1].Total, before[lists2].Total)
	}
	if tiers[lists3] != "l1" {
		t.Errorf("a move from 1 to 2 took away the list of 3: %q", tiers)
	}

	c.exec(t, `delete from products where category_id = 3`)
	if after, _ = read(); after[lists3].Total != 0 || len(after[lists3].Items) != 0 {
		t.Errorf("after a bulk delete: %d of %d", len(after[lists3].Items), after[lists3].Total)
	}
	c.exec(t, `truncate products cascade`) // and their sales
	if after, _ = read(); after[all].Total != 0 || after[lists2].Total != 0 {
		t.Errorf("after truncate: %+v", after)
	}
	if a := r.do(t, http.MethodGet, "/products/1", "", "Freshet-Budget", "0"); a.status != http.StatusNotFound {
		t.Errorf("after truncate: %d", a.status)
	}
}

func TestCategoriesFollowTheirTable(t *testing.T) {
	c := newCatalogue(t, shop.SeedConfig{Products: 1, Categories: 3})
	r := c.replica(t, nil)
	get[shop.CategoryPage](t, r, "/categories")
	get[shop.Category](t, r, "/categories/2")
	c.exec(t, `update categories set name = 'AAA' where id = 2`)
	if got, _ := get[shop.Category](t, r, "/categories/2", "Freshet-Budget", "0"); got.Name != "AAA" || got.Revision != 2 {
		t.Errorf("got %+v", got)
	}
	if got, _ := get[shop.CategoryPage](t, r, "/categories", "Freshet-Budget", "0"); got.Items[0].Name != "AAA" {
		t.Errorf("got %+v", got)
	}
	c.exec(t, `insert into categories (slug, name) values ('new', 'New')`)
	if got, _ := get[shop.CategoryPage](t, r, "/categories", "Freshet-Budget", "0"); got.Total != 4 {
		t.Errorf("got %+v", got)
	}
}

// Without a budget of 0, a change by psql arrives within the node's budget.
func TestChangesArriveByThemselves(t *testing.T) {
	c := newCatalogue(t, shop.SeedConfig{Products: 3})
	r := c.replica(t, nil)
	get[shop.Product](t, r, "/products/1")
	c.exec(t, `update products set stock = 4711 where id = 1`)
	eventually(t, "the new stock is served", func() bool {
		p, _ := get[shop.Product](t, r, "/products/1")
		return p.Stock == 4711
	})
}

func TestBadReadsNameWhatIsWrong(t *testing.T) {
	r := newCatalogue(t, shop.SeedConfig{Products: 3}).replica(t, nil)
	many := slices.Concat(slices.Repeat([]string{"Freshet-Token", "x"}, 17), []string{"Freshet-Budget", "1s", "Freshet-Budget", "2s"})
	for _, x := range []struct {
		path    string
		headers []string
		faults  []string // parameter or header, in order
	}{
		{"/products?limit=101&offset=-1&status=x&page=2", nil, []string{"status", "offset", "limit", "page"}},
		{"/products?min_price=5&max_price=4", nil, []string{"min_price"}},
		{"/products?limit=1&limit=1", nil, []string{"limit"}},
		{"/products/count?limit=1&status=x", nil, []string{"status", "limit"}},
		{"/products/0", nil, []string{"id"}},
		{"/products/-1", nil, []string{"id"}},
		{"/products/01", nil, []string{"id"}},
		{"/products/abc?fields=name", nil, []string{"id", "fields"}},
		{"/products/9223372036854775808", nil, []string{"id"}},
		{"/products/1%2F2", nil, []string{"id"}},
		{"/products/%00", nil, []string{"id"}},
		{"/categories/x", nil, []string{"id"}},
		{"/categories?limit=1", nil, []string{"limit"}},
		{"/openapi.yaml?x", nil, []string{"x"}},
		{"/products/1", []string{"Freshet-Budget", "soon"}, []string{"Freshet-Budget"}},
		{"/products/1", []string{"Freshet-Budget", "-1s"}, []string{"Freshet-Budget"}},
		{"/products/1", []string{"Freshet-Budget", "61m"}, []string{"Freshet-Budget"}},
		{"/products/1", []string{"Freshet-Budget", ""}, []string{"Freshet-Budget"}},
		{"/products", []string{"Freshet-Token", "junk", "Freshet-Budget", "5"}, []string{"Freshet-Token", "Freshet-Budget"}},
		{"/products", many, []string{"Freshet-Token", "Freshet-Budget"}},
	} {
		p := wantProblem(t, r.do(t, http.MethodGet, x.path, "", x.headers...), http.StatusBadRequest, "bad-request")
		var faults []string
		for _, f := range p.Errors {
			faults = append(faults, f.Parameter+f.Header)
			if f.Detail == "" {
				t.Errorf("%s: %+v does not say what would be right", x.path, f)
			}
		}
		if !slices.Equal(faults, x.faults) {
			t.Errorf("%s %q: got %q, want %q", x.path, x.headers, faults, x.faults)
		}
	}
	for _, budget := range []string{"0", "0s", "50ms", "1h"} {
		get[shop.Product](t, r, "/products/1", "Freshet-Budget", budget)
	}
}

func TestWrongMethodsAndPaths(t *testing.T) {
	r := newCatalogue(t, shop.SeedConfig{Products: 3}).replica(t, nil)
	for path, allow := range map[string]string{
		"/products":     "GET, HEAD, OPTIONS, POST",
		"/products/1":   "DELETE, GET, HEAD, OPTIONS, PATCH",
		"/carts/1":      "DELETE, GET, HEAD, OPTIONS, PUT",
		"/categories":   "GET, HEAD, OPTIONS",
		"/categories/1": "GET, HEAD, OPTIONS, PUT",
		"/openapi.yaml": "GET, HEAD, OPTIONS",
	} {
		for _, method := range []string{"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "TRACE", "BREW"} {
			if strings.Contains(allow, method) {
				continue
			}
			a := r.do(t, method, path, "")
			wantProblem(t, a, http.StatusMethodNotAllowed, "method-not-allowed")
			if a.header.Get("Allow") != allow {
				t.Errorf("%s %s: Allow: %q, want %q", method, path, a.header.Get("Allow"), allow)
			}
		}
		if a := r.do(t, "OPTIONS", path, ""); a.status != http.StatusNoContent || a.header.Get("Allow") != allow {
			t.Errorf("OPTIONS %s: %d, Allow: %q", path, a.status, a.header.Get("Allow"))
		}
	}
	for _, path := range []string{"/", "/products/", "/products/1/reviews", "/favicon.ico", "/Products"} {
		for _, method := range []string{"GET", "POST"} {
			wantProblem(t, r.do(t, method, path, ""), http.StatusNotFound, "not-found")
		}
	}
}

func TestNewNamesEveryOption(t *testing.T) {
	_, err := shop.New(nil, shop.Options{Timeout: time.Hour, MaxEntries: -1})
	if err == nil || !strings.Contains(err.Error(), "Timeout: 1h0m0s; want 0 to 1m") || !strings.Contains(err.Error(), "MaxEntries: -1") {
		t.Errorf("got %v", err)
	}
}

func TestNodeTakesOneAPI(t *testing.T) {
	r := newCatalogue(t, shop.SeedConfig{Products: 1}).replica(t, nil)
	if _, err := shop.New(r.node, shop.Options{}); err == nil {
		t.Error("a second API was made on one node")
	}
}
