package admin_test

import (
	"cmp"
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"net/url"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/getkin/kin-openapi/openapi3"

	"github.com/freshet-cache/freshet/node"
	"github.com/freshet-cache/freshet/node/admin"
)

// attempt is a request with one thing wrong, or none.
type attempt struct {
	what    string
	method  string
	path    string
	query   string
	body    string
	headers map[string]string
	want    []int // status; none = any 4xx
}

// attempts makes requests of an operation from its description: a good one out of the examples, and those that have
// one thing wrong.
type attempts struct {
	t         *testing.T
	route     admin.Route
	operation *openapi3.Operation
	example   map[string]json.RawMessage // the body's fields
	all       []attempt
}

// good is the request out of the examples.
func (v *attempts) good() attempt {
	v.t.Helper()
	a := attempt{method: v.route.Method, path: v.route.Path, headers: map[string]string{}}
	if v.route.Guarded {
		a.headers["Authorization"] = "Bearer " + token
	}
	query := url.Values{}
	for _, p := range v.operation.Parameters {
		switch example := exampleOf(p.Value); {
		case p.Value.In == "path":
			a.path = strings.ReplaceAll(a.path, "{"+p.Value.Name+"}", url.PathEscape(example))
		case p.Value.Required:
			query.Set(p.Value.Name, example)
		}
	}
	a.query = query.Encode()
	if v.example != nil {
		a.body = v.with("", nil)
		a.headers["Content-Type"] = "application/json"
	}
	return a
}

// exampleOf is the parameter's example, or a value that its schema takes.
func exampleOf(p *openapi3.Parameter) string {
	switch s := p.Schema.Value; {
	case p.Example != nil:
		return fmt.Sprint(p.Example)
	case s.Default != nil:
		return fmt.Sprint(s.Default)
	case len(s.Enum) > 0:
		return fmt.Sprint(s.Enum[0])
	case s.Min != nil:
		return fmt.Sprint(*s.Min)
	}
	return "x"
}

// with is the example of the body with another value of the field; nil = without it; "" = as it is.
func (v *attempts) with(field string, value []byte) string {
	v.t.Helper()
	fields := maps.Clone(v.example)
	if field != "" {
		delete(fields, field)
		if value != nil {
			fields[field] = value
		}
	}
	body, err := json.Marshal(fields)
	if err != nil {
		v.t.Fatal(err)
	}
	return string(body)
}

// add has the good request tried with a change.
func (v *attempts) add(what string, change func(a *attempt), want ...int) {
	v.t.Helper()
	a := v.good()
	a.what, a.want = what, want
	change(&a)
	v.all = append(v.all, a)
}

// credentials are missing and wrong.
func (v *attempts) credentials() {
	for _, wrong := range []string{"", "Bearer x" + token, "Basic " + token} {
		v.add("with the credential "+strconv.Quote(wrong), func(a *attempt) { a.headers["Authorization"] = wrong }, 401)
	}
}

// methods are all that the path does not take.
func (v *attempts) methods(taken []string) {
	for _, method := range []string{"GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"} {
		if !slices.Contains(taken, method) {
			v.add("by "+method, func(a *attempt) { a.method = method }, 405)
		}
	}
}

func (v *attempts) parameters() {
	v.add("with a parameter that is not known", func(a *attempt) { a.query = joined(a.query, "nonsense=1") }, 400)
	v.add("with a query that cannot be decoded", func(a *attempt) { a.query = joined(a.query, "nonsense=%zz") }, 400)
	for _, p := range v.operation.Parameters {
		name, schema := p.Value.Name, p.Value.Schema.Value
		var wrong []string
		switch {
		case schema.Type.Is("integer"):
			wrong = append(wrong, "x", "1.5", "99999999999999999999")
			if schema.Min != nil {
				wrong = append(wrong, fmt.Sprintf("%.0f", *schema.Min-1))
			}
			if schema.Max != nil {
				wrong = append(wrong, fmt.Sprintf("%.0f", *schema.Max+1))
			}
		case len(schema.Enum) > 0, schema.Type.Is("boolean"):
			wrong = append(wrong, "nonsense")
		case schema.MaxLength != nil:
			wrong = append(wrong, strings.Repeat("x", int(*schema.MaxLength)+1), "a\x00b", "a\xff")
		}
		for _, value := range wrong {
			if p.Value.In == "path" {
				v.add(fmt.Sprintf("with %.20q as %s", value, name), func(a *attempt) {
					a.path = strings.ReplaceAll(v.route.Path, "{"+name+"}", url.PathEscape(value))
				}, 400)
				continue
			}
			v.add(fmt.Sprintf("with the %s %.20q", name, value), func(a *attempt) { a.query = url.Values{name: {value}}.Encode() }, 400)
		}
		if example := exampleOf(p.Value); p.Value.In == "query" {
			v.add("with two of "+name, func(a *attempt) { a.query = url.Values{name: {example, example}}.Encode() }, 400)
		}
	}
}

func joined(query, more string) string { return strings.TrimPrefix(query+"&"+more, "&") }

// bodies are not what they should be as a whole.
func (v *attempts) bodies() {
	if v.example == nil {
		for _, body := range []string{"{}", "x"} {
			v.add("with the body "+body, func(a *attempt) { a.body = body }, 400)
		}
		return
	}
	for _, header := range []string{"Content-Type: ", "Content-Type: text/plain", "Content-Type: application/json; charset=latin1", "Content-Encoding: gzip"} {
		v.add("with "+header, func(a *attempt) {
			name, value, _ := strings.Cut(header, ": ")
			a.headers[name] = value
		}, 415)
	}
	good := v.with("", nil)
	for _, body := range []string{
		"", "{", good[:len(good)-1], "[]", "[" + good + "]", `"x"`, "1", good + good, good + " x", good + "]",
		v.with("nonsense", []byte("1")), good[:len(good)-1] + `, "` + "\xff" + `": 1}`,
	} {
		v.add(fmt.Sprintf("with the body %.50q of %d bytes", body, len(body)), func(a *attempt) { a.body = body }, 400)
	}
	v.add("with null", func(a *attempt) { a.body = "null" })
	v.add("with a body that is too large", func(a *attempt) { a.body = good + strings.Repeat(" ", admin.MaxBody) }, 413)
}

// fields are not what they should be, one by one.
func (v *attempts) fields(schema *openapi3.Schema) {
	for _, name := range schema.Required {
		v.add("without "+name, func(a *attempt) { a.body = v.with(name, nil) })
	}
	for name, property := range schema.Properties {
		wrongType, wrong := wrongValues(property.Value)
		for _, value := range wrongType {
			v.add(fmt.Sprintf("with the %s %.50s", name, value), func(a *attempt) { a.body = v.with(name, []byte(value)) }, 400)
		}
		for _, value := range wrong {
			v.add(fmt.Sprintf("with the %s %.50s", name, value), func(a *attempt) { a.body = v.with(name, []byte(value)) })
		}
	}
}

// wrongValues are JSON of another type than the schema's, and out of its bounds.
func wrongValues(s *openapi3.Schema) (wrongType, wrong []string) {
	if s.Min != nil {
		wrong = append(wrong, fmt.Sprintf("%.0f", *s.Min-1))
	}
	if s.Max != nil {
		wrong = append(wrong, fmt.Sprintf("%.0f", *s.Max+1))
	}
	switch {
	case s.Type.Is("integer"):
		return []string{`"1"`, "1.5", "{}", "1e99"}, wrong
	case s.Type.Is("number"):
		return []string{`"1"`, "[]", "1e999"}, append(wrong, "1e99")
	case s.Type.Is("boolean"):
		return []string{`"true"`, "1"}, wrong
	case s.Type.Is("string"):
		if s.MinLength > 0 {
			wrong = append(wrong, `""`)
		}
		if s.MaxLength != nil {
			wrong = append(wrong, strconv.Quote(strings.Repeat("x", int(*s.MaxLength)+1)))
		}
		return []string{"1", "[]", "true"}, append(wrong, `"a\u0000b"`)
	case s.Type.Is("array"):
		ofItemType, ofItem := wrongValues(s.Items.Value)
		wrongType = []string{`"x"`, "1", "{}"}
		for _, value := range ofItemType {
			wrongType = append(wrongType, "["+value+"]")
		}
		for _, value := range ofItem {
			wrong = append(wrong, "["+value+"]")
		}
		if s.MinItems > 0 {
			wrong = append(wrong, "[]")
		}
		if s.MaxItems != nil {
			wrong = append(wrong, `["x"`+strings.Repeat(`,"x"`, int(*s.MaxItems))+"]")
		}
		return wrongType, wrong
	}
	return []string{`"x"`, "1"}, wrong
}

// attemptsOf makes the attempts of an operation that are to be refused.
func attemptsOf(t *testing.T, doc *openapi3.T, r admin.Route, taken []string) *attempts {
	t.Helper()
	entry := doc.Paths.Value(r.Path)
	if entry == nil || entry.GetOperation(r.Method) == nil {
		t.Fatalf("openapi.yaml does not describe %s %s", r.Method, r.Path)
	}
	v := &attempts{t: t, route: r, operation: entry.GetOperation(r.Method)}
	v.operation.Parameters = append(v.operation.Parameters, entry.Parameters...)
	var schema *openapi3.Schema
	if body := v.operation.RequestBody; body != nil {
		content := body.Value.Content.Get("application/json")
		text, err := json.Marshal(content.Example)
		if err == nil {
			err = json.Unmarshal(text, &v.example)
		}
		if err != nil || len(v.example) == 0 {
			t.Fatalf("openapi.yaml has no example of the body of %s %s", r.Method, r.Path)
		}
		schema = content.Schema.Value
	}
	v.methods(taken)
	if strings.HasPrefix(r.Path, "/admin/v1/") { // orchestrators and Prometheus may add what they like
		v.parameters()
	}
	if r.Guarded {
		v.credentials()
	}
	if r.Method != http.MethodGet {
		v.bodies()
	}
	if schema != nil {
		v.fields(schema)
	}
	return v
}

// try sends the request.
func (r *replica) try(a attempt) answer {
	r.t.Helper()
	var headers []string
	for name, value := range a.headers {
		headers = append(headers, name, value)
	}
	target := a.path
	if a.query != "" {
		target += "?" + a.query
	}
	return r.do(a.method, target, a.body, headers...)
}

// seed makes what the examples are about.
func (s *site) seed() {
	s.t.Helper()
	s.exec(`select freshet.batch_add('nightly', 'thing', 'thing-1')`)
	s.exec(`insert into freshet.dead_letters (letter, app, namespace, id, epoch, seq, value, error, attempts, put_at) overriding system value
		values (1, $1, 'thing', 'thing-1', 0, 1, '{"id": "thing-1", "name": "late", "kind": "kind-1"}', 'of a test', 5, now())
		on conflict do nothing`, s.app)
}

// state is all that requests can change, as text.
func (s *site) state(r *replica) string {
	s.t.Helper()
	var text string
	if err := s.db.GetContext(s.t.Context(), &text, `select jsonb_build_object(
		'log', (select jsonb_build_array(count(*), max(xid::text)) from freshet.log),
		'generations', (select to_jsonb(g) from freshet.generations g),
		'history', (select jsonb_build_array(count(*), max(number)) from freshet.generation_history),
		'scheduled', (select jsonb_agg(to_jsonb(s) order by seq) from freshet.scheduled s),
		'dead letters', (select jsonb_agg(to_jsonb(d) order by letter) from freshet.dead_letters d),
		'applied', (select jsonb_build_array(count(*), max(seq)) from freshet.applied),
		'watches', (select jsonb_agg(to_jsonb(w) order by w::text) from freshet.watches w),
		'things', (select md5(string_agg(t::text, ',' order by id)) from things t)
	)::text`); err != nil {
		s.t.Fatal(err)
	}
	clean := r.CleanStatus()
	return fmt.Sprintf("%s window %v clean-up %v %t", text, r.Summary().Since, clean.Began, clean.Running)
}

// steers are the routes whose changes the state shows.
var steers = regexp.MustCompile(`^/admin/v1/(generations|invalidations|batches|queue|cleanups|summary)\b`)

// Whatever is wrong with a request of whichever route, it is refused with a problem, and nothing changes.
func TestRefusedRequestsChangeNothing(t *testing.T) {
	doc, err := openapi3.NewLoader().LoadFromFile("openapi.yaml")
	if err != nil {
		t.Fatal(err)
	}
	s := newSite(t)
	r := s.open("a", behind)
	s.seed()
	routes := admin.Routes()
	slices.SortFunc(routes, func(a, b admin.Route) int {
		return cmp.Or(strings.Compare(a.Path, b.Path), strings.Compare(a.Method, b.Method))
	})
	taken := map[string][]string{} // path -> its methods
	for _, route := range routes {
		taken[route.Path] = append(taken[route.Path], route.Method)
	}
	before := s.state(r)
	tried := 0
	for _, route := range routes {
		for _, a := range attemptsOf(t, doc, route, taken[route.Path]).all {
			tried++
			got := r.try(a)
			if got.status < 400 || got.status > 499 || len(a.want) > 0 && !slices.Contains(a.want, got.status) {
				t.Errorf("%s %s %s: %d %.300s, want %v", route.Method, route.Path, a.what, got.status, got.body, a.want)
			}
			if got.header.Get("Content-Type") != "application/problem+json" || !strings.Contains(got.body, "/docs/admin.md#") {
				t.Errorf("%s %s %s is answered with no problem: %s", route.Method, route.Path, a.what, got.body)
			}
		}
		if after := s.state(r); after != before {
			t.Fatalf("%s %s changed something:\n%s\n%s", route.Method, route.Path, before, after)
		}
	}
	t.Logf("%d requests to %d routes were refused", tried, len(routes))

	// What they were made of is right: so each was refused for what is wrong with it.
	for _, route := range routes {
		if !route.Guarded || route.Method == http.MethodGet {
			continue
		}
		s.seed()
		if route.Path == "/admin/v1/cleanups" && route.Method == http.MethodDelete { // which needs one under way
			for n := range 40 {
				if _, err := r.things.Get(t.Context(), fmt.Sprint("thing-", 1+n)); err != nil {
					t.Fatal(err)
				}
			}
			if err := r.StartClean(node.Clean{Rate: 1}); err != nil {
				t.Fatal(err)
			}
		}
		before := s.state(r)
		good := attemptsOf(t, doc, route, nil).good()
		if got := r.try(good); got.status > 299 {
			t.Errorf("the example of %s %s: %d %s", route.Method, route.Path, got.status, got.body)
		} else if s.state(r) == before && steers.MatchString(route.Path) {
			t.Errorf("%s %s changed nothing that is looked at", route.Method, route.Path)
		}
	}
}

// behind gives the things a store, and has them written behind.
func behind(_ *node.Config, c *node.CacheConfig[Thing]) {
	c.Store = node.SQLStore[Thing](`
insert into things (id, name, kind) select v.id, v.name, v.kind from jsonb_to_recordset($2::jsonb) v (id text, name text, kind text)
 where v.id = any($1::text[]) on conflict (id) do update set name = excluded.name, kind = excluded.kind`,
		`delete from things where id = any($1::text[])`)
	c.WriteBehind = true
}
