package shop

import (
	"fmt"
	"slices"
	"strings"
)

// entityTag is the strong ETag of an entry: its version, which is the same on every replica.
func entityTag(version uint64) string { return fmt.Sprintf(`"%016x"`, version) }

// tagList is the value of If-Match or If-None-Match (RFC 9110, sections 13.1.1 and 13.1.2).
type tagList struct {
	any  bool // the value is *
	tags []string
}

// parseTagList reads the values of all header lines of one name. It reports whether they are well formed.
func parseTagList(lines []string) (list tagList, ok bool) {
	rest := strings.Join(lines, ",")
	if strings.TrimSpace(rest) == "*" {
		return tagList{any: true}, true
	}
	for {
		rest = strings.TrimLeft(rest, " \t,")
		if rest == "" {
			return list, len(list.tags) > 0
		}
		opaque := strings.TrimPrefix(rest, "W/")
		if !strings.HasPrefix(opaque, `"`) {
			return tagList{}, false
		}
		length := strings.IndexByte(opaque[1:], '"')
		if length < 0 || strings.ContainsFunc(opaque[1:1+length], notInTag) {
			return tagList{}, false
		}
		end := len(rest) - len(opaque) + length + 2
		list.tags = append(list.tags, rest[:end])
		rest = strings.TrimLeft(rest[end:], " \t")
		if rest != "" && rest[0] != ',' {
			return tagList{}, false
		}
	}
}

func notInTag(r rune) bool { return r <= ' ' || r == 0x7f }

// matchesStrongly is the comparison of If-Match: weak tags are never equal.
func (l tagList) matchesStrongly(tag string) bool {
	return l.any || slices.Contains(l.tags, tag)
}

// matchesWeakly is the comparison of If-None-Match.
func (l tagList) matchesWeakly(tag string) bool {
	for _, t := range l.tags {
		if strings.TrimPrefix(t, "W/") == tag {
			return true
		}
	}
	return l.any
}
