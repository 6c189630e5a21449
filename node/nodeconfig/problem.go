package nodeconfig

import (
	"errors"
	"fmt"
	"strings"

	"github.com/freshet-cache/freshet/node"
)

// origin is where a value was given; the zero origin is the default.
type origin struct {
	layer        layer
	name         string // the path, the variable, or the flag without dashes
	line, column int    // of a file, from 1 on
}

type layer uint8

const (
	byDefault layer = iota
	byFile
	byVariable
	byFlag
)

// String is default, PATH:LINE, env VARIABLE or flag --NAME.
func (o origin) String() string {
	switch o.layer {
	case byFile:
		return fmt.Sprintf("%s:%d", o.name, o.line)
	case byVariable:
		return "env " + o.name
	case byFlag:
		return "flag --" + o.name
	default:
		return "default"
	}
}

// ProblemError is one thing that is wrong, and where.
type ProblemError struct {
	// Key that it is about, as far as it is about one: redis.timeout.
	Key string
	// Want says what is wrong, and what would be right.
	Want string

	where   origin
	excerpt string // of the file: the line and what points into it; "" = none
}

// Error is the place, the key and what is wrong, and of a file two lines more: an excerpt, and what points into it.
func (p *ProblemError) Error() string {
	var b strings.Builder
	switch p.where.layer {
	case byFile:
		fmt.Fprintf(&b, "%s:%d:%d: ", p.where.name, p.where.line, p.where.column)
		if p.Key != "" {
			b.WriteString(p.Key + ": ")
		}
	case byVariable:
		b.WriteString(p.where.name + ": ")
	case byFlag:
		b.WriteString("--" + p.where.name + ": ")
	default:
		if p.Key != "" {
			b.WriteString(p.Key + ": ")
		}
	}
	b.WriteString(p.Want)
	b.WriteString(p.excerpt)
	return b.String()
}

// KeyError is what a function given to [Settings.Check] returns, alone or joined with others, of a key whose value is wrong.
type KeyError struct {
	Key  string // redis.timeout
	Want string // what is wrong, and what would be right
}

func (e *KeyError) Error() string { return e.Key + ": " + e.Want }

// flatten is the single errors of joined ones.
func flatten(err error) []error {
	if err == nil {
		return nil
	}
	if joined, ok := err.(interface{ Unwrap() []error }); ok {
		var all []error
		for _, one := range joined.Unwrap() {
			all = append(all, flatten(one)...)
		}
		return all
	}
	return []error{err}
}

// keyOf is the key that an error of a check is about, "" for none, and what it says of it.
func keyOf(err error) (key, want string) {
	if e, ok := errors.AsType[*KeyError](err); ok {
		return e.Key, e.Want
	}
	if e, ok := errors.AsType[*node.ConfigError](err); ok {
		return snake(e.Field), e.Want
	}
	return "", err.Error()
}

// snake is the key of a field: Postgres.PollInterval is postgres.poll_interval, NATS.URLs nats.urls.
func snake(field string) string {
	var b strings.Builder
	var last rune
	for _, r := range field {
		if upper := r >= 'A' && r <= 'Z'; upper && last >= 'a' && last <= 'z' {
			b.WriteByte('_')
		}
		b.WriteString(strings.ToLower(string(r)))
		last = r
	}
	return b.String()
}
