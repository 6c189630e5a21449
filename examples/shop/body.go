package shop

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"math"
	"mime"
	"net/http"
	"os"
	"slices"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"
)

// The bounds of what clients may store. The tables check them too.
const (
	MaxBody        = 64 << 10 // bytes of a request body
	maxName        = 200      // characters
	maxDescription = 8000     // characters
	maxAttributes  = 32
	maxAttribute   = 256            // characters of an attribute's name or value
	maxPriceCents  = 10_000_000_000 // a hundred million in whole units
	maxStock       = 1_000_000_000  // pieces
	maxID          = math.MaxInt64

	maxCategoryName        = 100  // characters
	maxCategoryDescription = 2000 // characters
)

// readObject reads a body that is one JSON object in one of the media types, within the timeout.
func readObject(w http.ResponseWriter, r *http.Request, timeout time.Duration, accept string, types ...string) (map[string]json.RawMessage, error) {
	mediaType, parameters, err := mime.ParseMediaType(r.Header.Get("Content-Type"))
	charset, hasCharset := parameters["charset"]
	encoding := r.Header.Get("Content-Encoding")
	if err != nil || !slices.Contains(types, mediaType) || hasCharset && !strings.EqualFold(charset, "utf-8") || encoding != "" && encoding != "identity" {
		return nil, newProblem(http.StatusUnsupportedMediaType, "unsupported-media-type", "Unsupported media type",
			"Want a body of type "+strings.Join(types, " or ")+" in UTF-8 without Content-Encoding.").with(accept, strings.Join(types, ", "))
	}

	control := http.NewResponseController(w)
	_ = control.SetReadDeadline(time.Now().Add(timeout)) // a recorder in a test has none
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, MaxBody))
	if err == nil {
		_ = control.SetReadDeadline(time.Time{}) // else the server would wait for the rest before it answers
	}
	if tooLarge, ok := errors.AsType[*http.MaxBytesError](err); ok {
		return nil, newProblem(http.StatusRequestEntityTooLarge, "too-large", "Body too large",
			fmt.Sprintf("The body has more than %d bytes.", tooLarge.Limit))
	}
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return nil, newProblem(http.StatusRequestTimeout, "slow-body", "Request timeout", "The body did not arrive in time.").because(err)
	}
	if err != nil {
		return nil, malformedBody("The body ended early.").because(err)
	}

	if !utf8.Valid(body) {
		return nil, malformedBody("The body is not UTF-8.")
	}
	decoder := json.NewDecoder(bytes.NewReader(body))
	var object map[string]json.RawMessage
	if err := decoder.Decode(&object); err != nil || object == nil {
		return nil, malformedBody("Want one JSON object; " + syntax(err, decoder.InputOffset()))
	}
	if _, err := decoder.Token(); !errors.Is(err, io.EOF) {
		return nil, malformedBody(fmt.Sprintf("Want nothing after the JSON object; got more after byte %d.", decoder.InputOffset()))
	}
	return object, nil
}

func syntax(err error, offset int64) string {
	if bad, ok := errors.AsType[*json.SyntaxError](err); ok {
		return fmt.Sprintf("got a mistake at byte %d: %s.", bad.Offset, bad.Error())
	}
	if other, ok := errors.AsType[*json.UnmarshalTypeError](err); ok {
		return "got " + other.Value + "."
	}
	switch {
	case errors.Is(err, io.EOF):
		return "got an empty body."
	case err == nil:
		return "got null."
	}
	return fmt.Sprintf("got an end after %d bytes.", offset)
}

// newProduct makes a product from the fields that a client gave. Its id, revision and times are left to Postgres.
func newProduct(fields map[string]json.RawMessage) (Product, error) {
	p := Product{Status: Active, Attributes: Attributes{}}
	required := []string{"name", "category_id", "price_cents"}
	return p, p.apply(fields, required)
}

// apply sets the given fields (a JSON merge patch, RFC 7396). It says all that is wrong with them, and then
// the product must not be used.
func (p *Product) apply(fields map[string]json.RawMessage, required []string) error {
	var unknown, invalid []fault
	for _, name := range slices.Sorted(maps.Keys(fields)) {
		text := fields[name]
		want := ""
		switch name {
		case "name":
			want = setText(&p.Name, text, 1, maxName, "")
		case "description":
			want = setText(&p.Description, text, 0, maxDescription, "\r\n\t")
		case "category_id":
			want = setInteger(&p.CategoryID, text, 1, maxID)
		case "price_cents":
			want = setInteger(&p.PriceCents, text, 0, maxPriceCents)
		case "status":
			var status string
			if !setString(&status, text) || !Status(status).valid() {
				want = "want draft, active or archived"
			}
			p.Status = Status(status)
		case "stock":
			want = setInteger(&p.Stock, text, 0, maxStock)
		case "attributes":
			invalid = append(invalid, p.mergeAttributes(text)...)
		case "id", "sale_price_cents", "revision", "created_at", "updated_at":
			want = "is set by the service: leave it out"
		default:
			unknown = append(unknown, fault{
				Pointer: pointer(name),
				Detail:  "unknown field: known are name, description, category_id, price_cents, status, stock and attributes",
			})
		}
		if want != "" {
			invalid = append(invalid, fault{Pointer: pointer(name), Detail: want})
		}
	}
	for _, name := range required {
		if _, given := fields[name]; !given {
			invalid = append(invalid, fault{Pointer: pointer(name), Detail: "is required"})
		}
	}
	switch {
	case len(unknown) > 0:
		return badRequest(append(unknown, invalid...))
	case len(invalid) > 0:
		return invalidBody(invalid)
	}
	return nil
}

// A field of a body reads its JSON, or says what would be right.
type field struct {
	name     string
	required bool
	read     func(text json.RawMessage) (want string)
}

// readFields reads the fields that a client gave. It says all that is wrong with them.
func readFields(given map[string]json.RawMessage, known ...field) error {
	var unknown, invalid []fault
	names := make([]string, len(known))
	for i, f := range known {
		names[i] = f.name
		text, there := given[f.name]
		want := ""
		switch {
		case there:
			want = f.read(text)
		case f.required:
			want = "is required"
		}
		if want != "" {
			invalid = append(invalid, fault{Pointer: pointer(f.name), Detail: want})
		}
	}
	for _, name := range slices.Sorted(maps.Keys(given)) {
		if !slices.Contains(names, name) {
			unknown = append(unknown, fault{Pointer: pointer(name), Detail: "unknown field: known are " + strings.Join(names, ", ")})
		}
	}
	switch {
	case len(unknown) > 0:
		return badRequest(append(unknown, invalid...))
	case len(invalid) > 0:
		p := newProblem(http.StatusUnprocessableEntity, "invalid-body", "Invalid body", "The body cannot be as it is; errors says why.")
		p.Errors = invalid
		return p
	}
	return nil
}

func textOf(to *string, least, most int, allowed string) func(json.RawMessage) string {
	return func(text json.RawMessage) string { return setText(to, text, least, most, allowed) }
}

func integerOf(to *int64, low, high int64) func(json.RawMessage) string {
	return func(text json.RawMessage) string { return setInteger(to, text, low, high) }
}

// durationOf reads a text such as 90s or 1h30m.
func durationOf(to *time.Duration, low, high time.Duration) func(json.RawMessage) string {
	return func(text json.RawMessage) string {
		var s string
		d, err := time.Duration(0), error(nil)
		if setString(&s, text) {
			d, err = time.ParseDuration(s)
		}
		if s == "" || err != nil || d < low || d > high {
			return fmt.Sprintf("want a text from %v to %v, such as 90s or 1h30m", low, high)
		}
		*to = d.Truncate(time.Millisecond)
		return ""
	}
}

// mergeAttributes sets the given attributes and removes those that are null.
func (p *Product) mergeAttributes(text json.RawMessage) (faults []fault) {
	var given map[string]json.RawMessage
	if json.Unmarshal(text, &given) != nil || given == nil {
		return []fault{{Pointer: "/attributes", Detail: "want an object of texts"}}
	}
	merged := maps.Clone(p.Attributes)
	if merged == nil {
		merged = make(Attributes)
	}
	for _, name := range slices.Sorted(maps.Keys(given)) {
		if string(given[name]) == "null" {
			delete(merged, name)
			continue
		}
		var value, want string
		if name == "" || utf8.RuneCountInString(name) > maxAttribute || strings.ContainsFunc(name, unicode.IsControl) {
			want = fmt.Sprintf("want a name of 1 to %d printable characters", maxAttribute)
		} else {
			want = setText(&value, given[name], 0, maxAttribute, "")
		}
		if want != "" {
			faults = append(faults, fault{Pointer: "/attributes" + pointer(name), Detail: want})
		}
		merged[name] = value
	}
	if len(merged) > maxAttributes {
		faults = append(faults, fault{Pointer: "/attributes", Detail: fmt.Sprintf("want at most %d attributes; got %d", maxAttributes, len(merged))})
	}
	p.Attributes = merged
	return faults
}

// setText reads a JSON string of least to most characters, none of them a control character but those allowed.
func setText(to *string, text json.RawMessage, least, most int, allowed string) (want string) {
	forbidden := func(r rune) bool { return unicode.IsControl(r) && !strings.ContainsRune(allowed, r) }
	if !setString(to, text) || utf8.RuneCountInString(*to) < least || utf8.RuneCountInString(*to) > most ||
		strings.ContainsFunc(*to, forbidden) || *to != strings.TrimSpace(*to) {
		return fmt.Sprintf("want a text of %d to %d characters without control characters or outer blanks", least, most)
	}
	return ""
}

func setString(to *string, text json.RawMessage) bool {
	return string(text) != "null" && json.Unmarshal(text, to) == nil
}

func setInteger(to *int64, text json.RawMessage, low, high int64) (want string) {
	if string(text) == "null" || json.Unmarshal(text, to) != nil || *to < low || *to > high {
		return fmt.Sprintf("want an integer from %d to %d", low, high)
	}
	return ""
}

// pointer is the JSON pointer (RFC 6901) to the field of an object.
func pointer(name string) string {
	return "/" + strings.NewReplacer("~", "~0", "/", "~1").Replace(shorten(name))
}
