package cluster

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
	"unicode/utf8"
)

// MaxIDBytes is the longest id, in bytes before escaping, that a key is made of. The id is part of
// every Redis command, change row, hint and cached entry of its entity, and a Postgres B-tree cannot
// index a value beyond about 2,700 bytes, which 512 bytes stay under even when each is escaped.
const MaxIDBytes = 512

const (
	maxAppBytes  = 32
	maxNameBytes = 64 // of a namespace, of a view
)

// leaseSuffix ends the key of a lease. A view has no colon in it, so no value's key ends like that
// behind its view.
const leaseSuffix = ":lease"

// Keys writes the keys of one application. It is immutable. The zero Keys belongs to no application
// and refuses to write any; make one with [NewKeys].
type Keys struct {
	prefix string // "<app>:v"
}

// NewKeys returns the keys of the application app: a lower-case letter, then up to 31 lower-case
// letters, digits and dashes.
func NewKeys(app string) (Keys, error) {
	if err := checkApp(app); err != nil {
		return Keys{}, err
	}
	return Keys{prefix: app + ":v"}, nil
}

// Entity returns the key of one view of an entity:
//
//	<app>:v<generation>:{<namespace>:<id>}:<view>
//
// The namespace must satisfy [CheckNamespace] and the view [CheckView]. The id may hold any bytes,
// from 1 to [MaxIDBytes] of them. Those that mean something in a key (% { } : ?), spaces, control
// characters and bytes that are not UTF-8 are written as %XX; the rest stays readable.
func (k Keys) Entity(generation Generation, namespace, id, view string) (string, error) {
	if err := k.check(namespace, view); err != nil {
		return "", err
	}
	if err := checkID(id); err != nil {
		return "", err
	}
	var b strings.Builder
	n := escapedLen(id)
	k.open(&b, generation, namespace, ':', n, view)
	if n == len(id) {
		b.WriteString(id)
	} else {
		writeEscaped(&b, id)
	}
	closeKey(&b, view)
	return b.String(), nil
}

// Query returns the key of one view of a query's result:
//
//	<app>:v<generation>:{<namespace>?<hash of the parameters>}:<view>
//
// The namespace must satisfy [CheckNamespace] and the view [CheckView]; p is refused beyond
// [MaxParams] parameters or [MaxParamsBytes] bytes. No query shares a key with an entity; two queries
// share one only if SHA-256 truncated to 128 bits collides.
func (k Keys) Query(generation Generation, namespace string, p Params, view string) (string, error) {
	if err := k.check(namespace, view); err != nil {
		return "", err
	}
	if err := p.check(); err != nil {
		return "", err
	}
	hash := p.hash()
	var b strings.Builder
	k.open(&b, generation, namespace, '?', len(hash), view)
	b.Write(hash[:])
	closeKey(&b, view)
	return b.String(), nil
}

// Lease returns the key of the load lease for a key that [Keys] wrote: on the same slot, and never
// the key of a value. For other text neither is promised.
func Lease(key string) string { return key + leaseSuffix }

// KeyParts are what a key was made of.
type KeyParts struct {
	App        string
	Generation Generation
	Namespace  string
	ID         string // of an entity, not escaped; empty for a query
	Query      string // hash of the parameters ([Params.Hash]); empty for an entity
	View       string
	Lease      bool // the key of a load lease, not of a value
}

// ParseKey takes a key apart, for people and tools that look into Redis. It accepts exactly the text
// that [Keys] and [Lease] write, so that no two keys have the same parts.
func ParseKey(key string) (KeyParts, error) {
	p, ok := splitKey(key)
	if !ok || p.text() != key {
		return KeyParts{}, fmt.Errorf("cluster: %.80q is not a key of ours: want <app>:v<generation>:{<namespace>:<id>}:<view>", key)
	}
	return p, nil
}

// splitKey finds the parts without judging them.
func splitKey(key string) (KeyParts, bool) {
	app, rest, ok1 := strings.Cut(key, ":v")
	number, rest, ok2 := strings.Cut(rest, ":{")
	subject, rest, ok3 := strings.Cut(rest, "}:")
	if !ok1 || !ok2 || !ok3 {
		return KeyParts{}, false
	}
	generation, err := ParseGeneration(number)
	if err != nil {
		return KeyParts{}, false
	}
	p := KeyParts{App: app, Generation: generation}
	p.View, p.Lease = strings.CutSuffix(rest, leaseSuffix)
	separator := strings.IndexAny(subject, ":?")
	if separator < 0 {
		return KeyParts{}, false
	}
	p.Namespace = subject[:separator]
	if subject[separator] == '?' {
		p.Query = subject[separator+1:]
		return p, true
	}
	p.ID, ok1 = unescape(subject[separator+1:])
	return p, ok1
}

// text writes the parts as a key again; "" when no key has such parts.
func (p KeyParts) text() string {
	k, err := NewKeys(p.App)
	if err != nil {
		return ""
	}
	var key string
	if p.Query == "" {
		if key, err = k.Entity(p.Generation, p.Namespace, p.ID, p.View); err != nil {
			return ""
		}
	} else {
		if k.check(p.Namespace, p.View) != nil || !isParamsHash(p.Query) {
			return ""
		}
		var b strings.Builder
		k.open(&b, p.Generation, p.Namespace, '?', len(p.Query), p.View)
		b.WriteString(p.Query)
		closeKey(&b, p.View)
		key = b.String()
	}
	if p.Lease {
		return Lease(key)
	}
	return key
}

// open writes a key up to and with the separator behind the namespace, after making room for the
// whole of it, so that the key is the only allocation.
func (k Keys) open(b *strings.Builder, generation Generation, namespace string, separator byte, subjectLen int, view string) {
	var number [21]byte // of the longest generation
	digits := generation.appendText(number[:0])
	b.Grow(len(k.prefix) + len(digits) + len(":{") + len(namespace) + 1 + subjectLen + len("}:") + len(view))
	b.WriteString(k.prefix)
	b.Write(digits)
	b.WriteString(":{")
	b.WriteString(namespace)
	b.WriteByte(separator)
}

func closeKey(b *strings.Builder, view string) {
	b.WriteString("}:")
	b.WriteString(view)
}

// isPlainASCII reports whether c is an ASCII character that is written as it is: the visible ones but
// % { } : ?. Each has a bit in one of the two words.
func isPlainASCII(c byte) bool {
	const (
		low  = (1<<64 - 1<<(' '+1)) &^ (1<<'%' | 1<<':' | 1<<'?') // 0 to 63
		high = (1<<(0x7f-64) - 1) &^ (1<<('{'-64) | 1<<('}'-64))  // 64 to 127
	)
	word := uint64(low)
	if c >= 64 {
		word = high
	}
	return c < utf8.RuneSelf && word>>(c&63)&1 == 1
}

// plainAt returns how many bytes of id from i on form a character that is written as it is, or 0
// when the byte at i is to be escaped. The set is fixed here rather than taken from package unicode,
// whose tables change with the Go version: replicas of two builds must agree on the key of an id.
func plainAt(id string, i int) int {
	if isPlainASCII(id[i]) {
		return 1
	}
	r, n := utf8.DecodeRuneInString(id[i:])
	if r == utf8.RuneError && n == 1 || r <= 0x9f { // not UTF-8, ASCII, or one of the C1 control characters
		return 0
	}
	return n
}

func escapedLen(id string) int {
	i := 0
	for i < len(id) && isPlainASCII(id[i]) { // most ids are nothing else
		i++
	}
	total := i
	for i < len(id) {
		n := plainAt(id, i)
		if n == 0 {
			total += len("%XX")
			i++
			continue
		}
		total += n
		i += n
	}
	return total
}

func writeEscaped(b *strings.Builder, id string) {
	const hexDigits = "0123456789ABCDEF"
	from := 0 // start of the plain bytes that are not written yet
	for i := 0; i < len(id); {
		n := plainAt(id, i)
		if n > 0 {
			i += n
			continue
		}
		b.WriteString(id[from:i])
		b.WriteByte('%')
		b.WriteByte(hexDigits[id[i]>>4])
		b.WriteByte(hexDigits[id[i]&15])
		i++
		from = i
	}
	b.WriteString(id[from:])
}

// unescape is the inverse of writeEscaped; it also takes escapes that writeEscaped would not have
// written, which ParseKey then finds by writing the key again.
func unescape(s string) (string, bool) {
	var b strings.Builder
	for {
		plain, rest, found := strings.Cut(s, "%")
		b.WriteString(plain)
		if !found {
			return b.String(), true
		}
		if len(rest) < 2 {
			return "", false
		}
		c, err := strconv.ParseUint(rest[:2], 16, 8)
		if err != nil {
			return "", false
		}
		b.WriteByte(byte(c))
		s = rest[2:]
	}
}

func (k Keys) check(namespace, view string) error {
	if k.prefix == "" {
		return errors.New("cluster: the zero Keys has no application: make it with NewKeys")
	}
	if err := CheckNamespace(namespace); err != nil {
		return err
	}
	return CheckView(view)
}

func checkApp(app string) error {
	if isName(app, maxAppBytes, "-") {
		return nil
	}
	return fmt.Errorf("cluster: app %.80q is not allowed: want a lower-case letter, then up to %d of a-z 0-9 -", app, maxAppBytes-1)
}

// CheckNamespace returns an error that says what would be right unless the namespace is a lower-case
// letter followed by up to 63 lower-case letters, digits, underscores, dots and dashes.
func CheckNamespace(namespace string) error { return checkName("namespace", namespace) }

// CheckView does the same for the name of a view.
func CheckView(view string) error { return checkName("view", view) }

func checkName(field, name string) error {
	if isName(name, maxNameBytes, "_.-") {
		return nil
	}
	return fmt.Errorf("cluster: %s %.80q is not allowed: want a lower-case letter, then up to %d of a-z 0-9 _ . -", field, name, maxNameBytes-1)
}

func checkID(id string) error {
	switch {
	case id == "":
		return errors.New("cluster: id is empty: want 1 to " + strconv.Itoa(MaxIDBytes) + " bytes")
	case len(id) > MaxIDBytes:
		return fmt.Errorf("cluster: id %.40q... has %d bytes: want at most %d, since the id is repeated in every key, change and hint; hash a longer one", id, len(id), MaxIDBytes)
	}
	return nil
}

// isName reports whether s is a lower-case letter followed by lower-case letters, digits and bytes of
// extra, at most limit bytes in all.
func isName(s string, limit int, extra string) bool {
	if s == "" || len(s) > limit || s[0] < 'a' || s[0] > 'z' {
		return false
	}
	for i := range len(s) {
		c := s[i]
		if (c < 'a' || c > 'z') && (c < '0' || c > '9') && strings.IndexByte(extra, c) < 0 {
			return false
		}
	}
	return true
}
