package admin

import (
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/lib/pq"

	"github.com/freshet-cache/freshet/node"
)

// Bounds of texts, in characters.
const (
	maxWhy   = 1000 // of a reason
	maxBy    = 200  // of who changes something
	maxBatch = 200  // of a batch's name
)

// maxFaults bounds the faults that an answer names.
const maxFaults = 20

// faults are what is wrong with a body that could be read.
type faults []fault

// add names what is wrong with the part of the body that the JSON pointer leads to.
func (f *faults) add(pointer, format string, args ...any) {
	if len(*f) < maxFaults {
		*f = append(*f, fault{Pointer: pointer, Detail: fmt.Sprintf(format, args...)})
	}
}

// problem is nil if nothing is wrong.
func (f faults) problem() error {
	if len(f) == 0 {
		return nil
	}
	p := refused("The request is understood and cannot be done as it is; errors says why.")
	p.Errors = f
	return p
}

// bound adds a fault unless the text has so many characters, and none that Postgres does not take.
func (f *faults) bound(pointer, text string, least, most int) {
	switch n := utf8.RuneCountInString(text); {
	case n < least || n > most:
		f.add(pointer, "has %d characters; want %d to %d", n, least, most)
	case strings.ContainsRune(text, 0):
		f.add(pointer, "holds the character NUL; want it without")
	}
}

// namespace adds a fault unless this replica has a cache of the namespace. A slip of the operator's changes nothing then.
func (f *faults) namespace(n *node.Node, pointer, namespace string) {
	var known []string
	for _, c := range n.Caches() {
		known = append(known, c.Namespace)
	}
	known = slices.Compact(known) // they are sorted
	if !slices.Contains(known, namespace) {
		f.add(pointer, "%.64q has no cache here; want one of %s", namespace, enumerate(known))
	}
}

// enumerate lists the first of the names.
func enumerate(names []string) string {
	const most = 20
	if len(names) > most {
		return fmt.Sprintf("%s, and %d others", strings.Join(names[:most], ", "), len(names)-most)
	}
	return strings.Join(names, ", ")
}

// who is the one that a request's credential names.
func (a *API) who(r *http.Request) string {
	if a.config.ClientCertificates && r.TLS != nil && len(r.TLS.VerifiedChains) > 0 {
		subject := []rune(r.TLS.VerifiedChains[0][0].Subject.String())
		return string(subject[:min(len(subject), maxBy)])
	}
	return "admin token"
}

// steered is the problem for an error of what changes something by functions of the schema freshet. What these refuse
// is the client's to mend.
func steered(err error) error {
	answer, ok := errors.AsType[*pq.Error](err)
	if !ok {
		return err
	}
	switch answer.Code.Class() {
	case "22", "54", "02": // data exception, program limit exceeded, no data
		return refused(answer.Message)
	}
	return err
}

// steering reads what every request that changes something by a body has: no parameters, the body, and a node.
func steering[T any](a *API, w http.ResponseWriter, r *http.Request) (body T, n *node.Node, err error) {
	if _, err = parameters(r); err != nil {
		return body, nil, err
	}
	if body, err = read[T](w, r); err != nil {
		return body, nil, err
	}
	n, err = a.opened()
	return body, n, err
}

// bare reads what every request that changes something without a body has: no parameters, no body, and a node.
func (a *API) bare(r *http.Request) (*node.Node, error) {
	if _, err := parameters(r); err != nil {
		return nil, err
	}
	if err := empty(r); err != nil {
		return nil, err
	}
	return a.opened()
}

// number reads a parameter that is a number within bounds; otherwise = if it is not given.
func number(values url.Values, name string, least, most, otherwise int64) (int64, error) {
	if !values.Has(name) {
		return otherwise, nil
	}
	return parseNumber(name, values.Get(name), least, most)
}

func parseNumber(name, text string, least, most int64) (int64, error) {
	n, err := strconv.ParseInt(text, 10, 64)
	if err != nil || n < least || n > most || strconv.FormatInt(n, 10) != text {
		return 0, badRequest(fault{Parameter: name, Detail: fmt.Sprintf("want a number from %d to %d", least, most)})
	}
	return n, nil
}

// checkText refuses a parameter that has not so many characters of UTF-8, or one that Postgres does not take.
func checkText(name, text string, least, most int) error {
	n := utf8.RuneCountInString(text)
	if n < least || n > most || !utf8.ValidString(text) || strings.ContainsRune(text, 0) {
		return badRequest(fault{Parameter: name, Detail: fmt.Sprintf("want %d to %d characters of UTF-8, percent-encoded, without NUL", least, most)})
	}
	return nil
}

// segment is a name as one segment of a path, also if it has slashes or is nothing but dots.
func segment(name string) string {
	if strings.Trim(name, ".") == "" {
		return strings.ReplaceAll(name, ".", "%2E")
	}
	return url.PathEscape(name)
}
