package cluster

import (
	"fmt"
	"strings"
)

// ID is the id of an entity that several columns name together: the parts, joined by slashes, with % as %25 and / as
// %2F in each. It is what freshet.id makes of the same texts in SQL, and freshet.watch of the columns of
// id => 'order_id, line'. Other parts have another id, but no parts the same as one empty part. An entity of one
// column has the column's text as its id, as it is.
func ID(parts ...string) string {
	if len(parts) == 0 {
		return ""
	}
	escaper := strings.NewReplacer("%", "%25", "/", "%2F")
	escaped := make([]string, len(parts))
	for i, part := range parts {
		escaped[i] = escaper.Replace(part)
	}
	return strings.Join(escaped, "/")
}

// IDParts are the parts of which [ID] made the id. It is an error if it has not made it.
func IDParts(id string) ([]string, error) {
	parts := strings.Split(id, "/")
	for i, part := range parts {
		plain, rest, escaped := strings.Cut(part, "%")
		if !escaped {
			continue
		}
		var b strings.Builder
		b.WriteString(plain)
		for escaped {
			switch {
			case strings.HasPrefix(rest, "25"):
				b.WriteByte('%')
			case strings.HasPrefix(rest, "2F"):
				b.WriteByte('/')
			default:
				return nil, fmt.Errorf("cluster: %.80q is no id of several parts: want 25 or 2F behind each %%", id)
			}
			plain, rest, escaped = strings.Cut(rest[2:], "%")
			b.WriteString(plain)
		}
		parts[i] = b.String()
	}
	return parts, nil
}
