package shop_test

import (
	"maps"
	"strconv"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/freshet-cache/freshet/cluster"
	"github.com/freshet-cache/freshet/examples/shop"
)

func TestFiltersAreCanonical(t *testing.T) {
	first := cluster.Params{"offset": "0", "limit": "20"}
	for query, want := range map[string]cluster.Params{
		"":                            first,
		"limit=20":                    first,
		"offset=0000":                 first,
		"limit=%32%30&offset=-0":      first,
		"status=active":               {"offset": "0", "limit": "20", "status": "active"},
		"search=%20Oak+%09TABLE":      {"offset": "0", "limit": "20", "search": "oak table"},
		"max_price=0&min_price=0":     {"offset": "0", "limit": "20", "min_price": "0", "max_price": "0"},
		"category=07&limit=100&":      {"offset": "0", "limit": "100", "category": "7"},
		"offset=10000&search=%22a%22": {"offset": "10000", "limit": "20", "search": `"a"`},
	} {
		got, err := shop.ParseFilter(query)
		if err != nil || !maps.Equal(got, want) {
			t.Errorf("%q: got %v, %v, want %v", query, got, err, want)
		}
	}
}

func TestFiltersNameEveryFault(t *testing.T) {
	for query, want := range map[string][]string{
		"limit=0":                            {"limit: want an integer from 1 to 100; got \"0\""},
		"limit=101":                          {"limit: want"},
		"limit=":                             {"limit: want"},
		"limit=1.0":                          {"limit: want"},
		"limit=%2B1":                         {"limit: want"},
		"limit=99999999999999999999":         {"limit: want"},
		"offset=10001":                       {"offset: want an integer from 0 to 10000"},
		"offset=-1":                          {"offset: want"},
		"status=Active":                      {"status: want draft, active or archived"},
		"category=0":                         {"category: want"},
		"category=x&status=&limit=z":         {"category: want", "status: want", "limit: want"},
		"min_price=2&max_price=1":            {"min_price: 2 is above max_price, 1"},
		"search=":                            {"search: want 1 to 100"},
		"search=+":                           {"search: want"},
		"search=a%00b":                       {"search: want"},
		"search=%FF":                         {"search: want"},
		"search=" + strings.Repeat("é", 101): {"search: want"},
		"limit=1&limit=1":                    {"limit: given 2 times"},
		"page=1&sort=name":                   {"page: unknown parameter: known are category", "sort: unknown"},
		"Limit=5":                            {"Limit: unknown"},
		"limit=5;offset=2":                   {"the query is not well formed"},
		"limit=%zz":                          {"the query is not well formed"},
		"limit=%zz&x=1":                      {"the query is not well formed", "x: unknown"},
		strings.Repeat("a", 1000) + "=1":     {"a...: unknown"},
	} {
		filter, err := shop.ParseFilter(query)
		if err == nil {
			t.Errorf("%q: got %v, want faults", query, filter)
			continue
		}
		lines := strings.Split(err.Error(), "\n")
		if len(lines) != len(want) {
			t.Errorf("%q: got %q, want %d faults", query, lines, len(want))
			continue
		}
		for i := range want {
			if !strings.Contains(lines[i], want[i]) {
				t.Errorf("%q: got %q, want %q", query, lines[i], want[i])
			}
		}
	}
}

func FuzzParseFilter(f *testing.F) {
	f.Add("")
	f.Add("category=7&status=active&min_price=100&max_price=5000&search=oak+table&offset=20&limit=50")
	f.Add("search=%E2%80%8B%22-or&limit=%2B5")
	f.Add("limit=5;offset=%zz&x&limit=")
	f.Fuzz(func(t *testing.T, query string) {
		filter, err := shop.ParseFilter(query)
		if err != nil {
			if filter != nil || len(err.Error()) > 2000*(1+strings.Count(query, "&")) {
				t.Errorf("got %v and %d bytes of error", filter, len(err.Error()))
			}
			return
		}
		in := func(name string, low, high int64) {
			if text, given := filter[name]; given {
				n, err := strconv.ParseInt(text, 10, 64)
				if err != nil || n < low || n > high || strconv.FormatInt(n, 10) != text {
					t.Errorf("%s is %q", name, text)
				}
			}
		}
		in("category", 1, 1<<63-1)
		in("min_price", 0, 10_000_000_000)
		in("max_price", 0, 10_000_000_000)
		in("offset", 0, shop.MaxOffset)
		in("limit", 1, shop.MaxLimit)
		if search, given := filter["search"]; given && (search == "" || !utf8.ValidString(search) || strings.ContainsRune(search, 0) ||
			utf8.RuneCountInString(search) > shop.MaxSearch) {
			t.Errorf("search is %q", search)
		}
		if filter["offset"] == "" || filter["limit"] == "" {
			t.Errorf("no offset or limit in %v", filter)
		}
		statement, arguments, err := shop.ProductList(filter)
		if err != nil || len(arguments) != len(filter) || strings.Contains(statement, "$"+strconv.Itoa(len(arguments)+1)) {
			t.Errorf("%d arguments for %v in %s", len(arguments), filter, statement)
		}
	})
}
