package cluster

import (
	"errors"
	"fmt"
	"regexp"
	"strings"
	"unicode/utf8"
)

// Pattern is a set of ids. The zero Pattern is that of all.
type Pattern struct {
	id  *regexp.Regexp // nil = all
	key string         // glob, as of SCAN, of what such an id is in a key; it may match more
}

// maxPatternStars bounds the asterisks of a pattern: Redis tries what stands behind each at every place.
const maxPatternStars = 8

// ParsePattern reads a pattern of ids: * stands for any characters, ? for one, and \ takes the character
// behind it as it is. It may have [MaxIDBytes] bytes of UTF-8 and eight asterisks.
func ParsePattern(text string) (Pattern, error) {
	switch {
	case text == "" || len(text) > MaxIDBytes || !utf8.ValidString(text):
		return Pattern{}, fmt.Errorf("cluster: pattern of ids %.80q: want 1 to %d bytes of UTF-8", text, MaxIDBytes)
	case strings.Count(text, "*") > maxPatternStars:
		return Pattern{}, fmt.Errorf("cluster: pattern of ids %.80q: want at most %d asterisks", text, maxPatternStars)
	}
	var b patternBuilder
	plain := false // the next character is behind a backslash
	for _, r := range text {
		switch {
		case plain:
			b.literal(string(r))
			plain = false
		case r == '\\':
			plain = true
		case r == '*':
			b.wild(".*")
		case r == '?':
			b.wild(".")
		default:
			b.literal(string(r))
		}
	}
	if plain {
		return Pattern{}, errors.New(`cluster: pattern of ids ends with \: want the character that it is for, \\ for itself`)
	}
	return b.pattern(), nil
}

// PrefixPattern is the pattern of all ids that begin with the text, as it is: 1 to [MaxIDBytes] bytes of UTF-8.
func PrefixPattern(prefix string) (Pattern, error) {
	if prefix == "" || len(prefix) > MaxIDBytes || !utf8.ValidString(prefix) {
		return Pattern{}, fmt.Errorf("cluster: prefix of ids %.80q: want 1 to %d bytes of UTF-8", prefix, MaxIDBytes)
	}
	var b patternBuilder
	b.literal(prefix)
	b.wild(".*")
	return b.pattern(), nil
}

// Match reports whether the id is in the set.
func (p Pattern) Match(id string) bool { return p.id == nil || p.id.MatchString(id) }

// Matching returns a glob, as of SCAN, that matches the keys of all entities of the namespace whose ids the
// pattern has, in all generations and views, leases included; with the zero Pattern those of queries, too.
// An empty namespace stands for all. What it matches besides, [Pattern.Match] of the parsed key tells.
func (k Keys) Matching(namespace string, p Pattern) string {
	switch {
	case namespace == "":
		return k.prefix + "*"
	case p.id == nil:
		return k.prefix + "*:{" + namespace + "[:?]*"
	}
	return k.prefix + "*:{" + namespace + ":" + p.key + "}:*"
}

// patternBuilder writes both forms of a pattern.
type patternBuilder struct{ id, key strings.Builder }

func (b *patternBuilder) literal(text string) {
	b.id.WriteString(regexp.QuoteMeta(text))
	var escaped strings.Builder
	writeEscaped(&escaped, text)
	for _, c := range []byte(escaped.String()) {
		if strings.IndexByte(`*?[]^\`, c) >= 0 {
			b.key.WriteByte('\\')
		}
		b.key.WriteByte(c)
	}
}

// wild is what the expression matches; in a key it may be of any length, since characters are escaped there.
func (b *patternBuilder) wild(expression string) {
	b.id.WriteString(expression)
	if !strings.HasSuffix(b.key.String(), "*") || strings.HasSuffix(b.key.String(), `\*`) {
		b.key.WriteByte('*')
	}
}

func (b *patternBuilder) pattern() Pattern {
	return Pattern{id: regexp.MustCompile(`(?s)\A(?:` + b.id.String() + `)\z`), key: b.key.String()}
}
