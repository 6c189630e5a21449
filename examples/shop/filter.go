package shop

import (
	"cmp"
	"fmt"
	"maps"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/freshet-cache/freshet/cluster"
)

// The bounds of a list of products.
const (
	DefaultLimit = 20     // products on a page when the request does not say
	MaxLimit     = 100    // products on a page
	MaxOffset    = 10_000 // products before a page: narrower filters reach the others
	MaxSearch    = 100    // characters of a search
)

// A parameter of a list reads one query parameter: its canonical form, or what would be right.
type parameter struct {
	name string
	read func(text string) (canonical, want string)
}

// listParameters are those of listConditions, in their order, and the page.
var listParameters = []parameter{
	{"category", integer(1, maxID)},
	{"status", readStatus},
	{"min_price", integer(0, maxPriceCents)},
	{"max_price", integer(0, maxPriceCents)},
	{"search", readSearch},
	{"offset", integer(0, MaxOffset)},
	{"limit", integer(1, MaxLimit)},
}

// parseFilter reads the query of a list of products. The filter is canonical: requests for the same page
// give the same one, which holds offset and limit always and the others when they narrow the list. Every
// value in it is in bounds. When something is wrong, faults names all of it.
func parseFilter(rawQuery string) (filter cluster.Params, faults []fault) {
	filter, faults = parseParameters(rawQuery, listParameters, "known are category, status, min_price, max_price, search, offset and limit")
	if faults == nil {
		filter["offset"] = cmp.Or(filter["offset"], "0")
		filter["limit"] = cmp.Or(filter["limit"], strconv.Itoa(DefaultLimit))
	}
	return filter, faults
}

// parseConditions reads the query of a count: a list's without its page.
func parseConditions(rawQuery string) (filter cluster.Params, faults []fault) {
	return parseParameters(rawQuery, listParameters[:len(listConditions)], "known are category, status, min_price, max_price and search")
}

func parseParameters(rawQuery string, parameters []parameter, known string) (filter cluster.Params, faults []fault) {
	values, faults := parseQuery(rawQuery)
	filter = cluster.Params{}
	for _, p := range parameters {
		given := values[p.name]
		delete(values, p.name)
		if len(given) == 0 {
			continue
		}
		canonical, want := p.read(given[0])
		switch {
		case len(given) > 1:
			faults = append(faults, fault{Parameter: p.name, Detail: fmt.Sprintf("given %d times; give it once", len(given))})
		case want != "":
			faults = append(faults, fault{Parameter: p.name, Detail: want + "; got " + quote(given[0])})
		default:
			filter[p.name] = canonical
		}
	}
	if low, high := filter["min_price"], filter["max_price"]; low != "" && high != "" && number(low) > number(high) {
		faults = append(faults, fault{Parameter: "min_price", Detail: fmt.Sprintf("%s is above max_price, %s: give a lower one", low, high)})
	}
	faults = append(faults, unknownParameters(values, known)...)
	if len(faults) > 0 {
		return nil, faults
	}
	return filter, nil
}

// noParameters reads the query of a resource that has no parameters.
func noParameters(rawQuery string) []fault {
	if rawQuery == "" {
		return nil
	}
	values, faults := parseQuery(rawQuery)
	return append(faults, unknownParameters(values, "there are no parameters here")...)
}

func parseQuery(rawQuery string) (url.Values, []fault) {
	values, err := url.ParseQuery(rawQuery)
	if err != nil { // the pairs that could be read are in values
		return values, []fault{{Detail: "the query is not well formed: " + shorten(err.Error())}}
	}
	return values, nil
}

func unknownParameters(values url.Values, known string) (faults []fault) {
	for _, name := range slices.Sorted(maps.Keys(values)) {
		faults = append(faults, fault{Parameter: shorten(name), Detail: "unknown parameter: " + known})
	}
	return faults
}

// integer reads a decimal number from low to high.
func integer(low, high int64) func(string) (canonical, want string) {
	return func(text string) (string, string) {
		n, err := strconv.ParseInt(text, 10, 64)
		if err != nil || n < low || n > high || text[0] == '+' {
			return "", fmt.Sprintf("want an integer from %d to %d", low, high)
		}
		return strconv.FormatInt(n, 10), ""
	}
}

// number is the value of a canonical integer.
func number(canonical string) int64 {
	n, _ := strconv.ParseInt(canonical, 10, 64) // it came from FormatInt
	return n
}

func readStatus(text string) (canonical, want string) {
	if !Status(text).valid() {
		return "", "want draft, active or archived"
	}
	return text, ""
}

// readSearch joins the words with single spaces, in lower case: Postgres makes no difference.
func readSearch(text string) (canonical, want string) {
	canonical = strings.ToLower(strings.Join(strings.Fields(text), " "))
	if canonical == "" || !utf8.ValidString(text) || utf8.RuneCountInString(canonical) > MaxSearch || strings.ContainsFunc(canonical, unicode.IsControl) {
		return "", fmt.Sprintf("want 1 to %d printable characters of UTF-8", MaxSearch)
	}
	return canonical, ""
}

// readID reads the id in a path. Each id has one text, so that each product has one URL.
func readID(text string) (id string, faults []fault) {
	canonical, want := integer(1, maxID)(text)
	if want != "" || canonical != text {
		return "", []fault{{Parameter: "id", Detail: fmt.Sprintf("want an integer from 1 to %d without leading zeros; got %s", int64(maxID), quote(text))}}
	}
	return canonical, nil
}

func quote(text string) string { return strconv.Quote(shorten(text)) }

// shorten keeps what a client sent from filling the answer and the log.
func shorten(text string) string {
	const most = 64
	text = strings.ToValidUTF8(text, "\ufffd")
	if utf8.RuneCountInString(text) <= most {
		return text
	}
	return string([]rune(text)[:most]) + "..."
}
