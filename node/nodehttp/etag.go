package nodehttp

import (
	"fmt"
	"net/http"
	"slices"
	"strings"
)

// ETag is the strong entity tag of an entry: its Version, which is the same on every replica.
func ETag(version uint64) string { return fmt.Sprintf(`"%016x"`, version) }

// ETags is the value of If-Match or If-None-Match (RFC 9110, sections 13.1.1 and 13.1.2).
type ETags struct {
	// Any: the value is *.
	Any  bool
	tags []string
}

// ParseETags reads the values of all header lines of one name. It reports whether they are well formed.
func ParseETags(lines []string) (list ETags, ok bool) {
	rest := strings.Join(lines, ",")
	if strings.TrimSpace(rest) == "*" {
		return ETags{Any: true}, true
	}
	for {
		rest = strings.TrimLeft(rest, " \t,")
		if rest == "" {
			return list, len(list.tags) > 0
		}
		opaque := strings.TrimPrefix(rest, "W/")
		if !strings.HasPrefix(opaque, `"`) {
			return ETags{}, false
		}
		length := strings.IndexByte(opaque[1:], '"')
		if length < 0 || strings.ContainsFunc(opaque[1:1+length], notInTag) {
			return ETags{}, false
		}
		end := len(rest) - len(opaque) + length + 2
		list.tags = append(list.tags, rest[:end])
		rest = strings.TrimLeft(rest[end:], " \t")
		if rest != "" && rest[0] != ',' {
			return ETags{}, false
		}
	}
}

func notInTag(r rune) bool { return r <= ' ' || r == 0x7f }

// MatchStrongly is the comparison of If-Match: weak tags are never equal.
func (l ETags) MatchStrongly(tag string) bool {
	return l.Any || slices.Contains(l.tags, tag)
}

// MatchWeakly is the comparison of If-None-Match.
func (l ETags) MatchWeakly(tag string) bool {
	for _, t := range l.tags {
		if strings.TrimPrefix(t, "W/") == tag {
			return true
		}
	}
	return l.Any
}

// NotModified reports whether the client has what the entity tag is of, by If-None-Match: the answer to its GET is then
// [http.StatusNotModified].
func NotModified(r *http.Request, tag string) bool {
	list, ok := ParseETags(r.Header.Values("If-None-Match"))
	return ok && list.MatchWeakly(tag)
}
