package nodeconfig

import (
	"errors"
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"
)

// Value is where a key's value goes, and what it may be. The functions of this package make them.
type Value struct {
	kind     string                   // in help and documents: duration, size, number, true or false, text, list
	preset   string                   // the default, as text; "" = none
	without  string                   // what holds without a value, where no text says it; "" = nothing
	bounds   string                   // what the text may be; "" = anything of its kind
	set      func(text string) error  // stores; its error says what would be right, and repeats the text unless hide is set
	hide     func(text string) string // what of the text may be shown; nil = all
	variable any                      // the pointer that set stores through
}

// Default says what holds when nothing is given: the variable's zero value must mean it.
func (v Value) Default(text string) Value {
	v.preset = text
	return v
}

// Without says in words what holds when nothing is given, where that is no value.
func (v Value) Without(words string) Value {
	v.without = words
	return v
}

// Word has the text stand for a value outside the bounds, such as none or off.
func (v Value) Word(word string, set func()) Value {
	otherwise := v.set
	v.bounds += ", or " + word
	v.set = func(text string) error {
		if text == word {
			set()
			return nil
		}
		err := otherwise(text)
		if err != nil {
			err = fmt.Errorf("%w, or %s", err, word)
		}
		return err
	}
	return v
}

// Text is any text.
func Text(p *string) Value {
	return Value{kind: "text", variable: p, set: func(text string) error {
		*p = text
		return nil
	}}
}

// URL is a text whose user information and query are never shown.
func URL(p *string) Value {
	v := Text(p)
	v.hide = hideURL
	return v
}

// List is any number of texts without commas: a sequence in YAML, joined by commas elsewhere.
func List(p *[]string) Value {
	return Value{kind: "list", variable: p, set: func(text string) error {
		var list []string
		for part := range strings.SplitSeq(text, ",") {
			if part = strings.TrimSpace(part); part != "" {
				list = append(list, part)
			}
		}
		*p = list
		return nil
	}}
}

// URLs is a list of URLs, whose user information and queries are never shown.
func URLs(p *[]string) Value {
	v := List(p)
	v.hide = func(text string) string {
		parts := strings.Split(text, ",")
		for i := range parts {
			parts[i] = hideURL(strings.TrimSpace(parts[i]))
		}
		return strings.Join(parts, ",")
	}
	return v
}

// Bool is true or false.
func Bool(p *bool) Value {
	return Value{kind: "true or false", variable: p, set: func(text string) error {
		if text != "true" && text != "false" {
			return fmt.Errorf("%q; want true or false", short(text))
		}
		*p = text == "true"
		return nil
	}}
}

// Duration is a time as Go writes it: 1s, 250ms, 1h30m.
func Duration(p *time.Duration, least, most time.Duration) Value {
	bounds := fmt.Sprintf("%s to %s", durationText(least), durationText(most))
	return Value{kind: "duration", bounds: bounds, variable: p, set: func(text string) error {
		d, err := time.ParseDuration(text)
		if err != nil || d < least || d > most {
			return fmt.Errorf("%q; want a duration such as 250ms or 1h30m, %s", short(text), bounds)
		}
		*p = d
		return nil
	}}
}

// Int is a whole number.
func Int(p *int, least, most int) Value {
	bounds := fmt.Sprintf("%d to %d", least, most)
	return Value{kind: "number", bounds: bounds, variable: p, set: func(text string) error {
		n, err := strconv.Atoi(text)
		if err != nil || n < least || n > most {
			return fmt.Errorf("%q; want a whole number, %s", short(text), bounds)
		}
		*p = n
		return nil
	}}
}

// Number is a number with a fraction.
func Number(p *float64, least, most float64) Value {
	bounds := fmt.Sprintf("%v to %v", least, most)
	return Value{kind: "number", bounds: bounds, variable: p, set: func(text string) error {
		x, err := strconv.ParseFloat(text, 64)
		if within := x >= least && x <= most; err != nil || !within {
			return fmt.Errorf("%q; want a number, %s", short(text), bounds)
		}
		*p = x
		return nil
	}}
}

// Size is a number of bytes: 4096, or with a unit of 1,024 bytes or its multiples, 64KiB, 64MiB, 1GiB.
func Size[N int | int64](p *N, least, most N) Value {
	bounds := fmt.Sprintf("%s to %s", sizeText(int64(least)), sizeText(int64(most)))
	return Value{kind: "size", bounds: bounds, variable: p, set: func(text string) error {
		n, err := parseSize(text)
		if err != nil || n < int64(least) || n > int64(most) {
			return fmt.Errorf("%q; want a number of bytes such as 4096, 64KiB or 64MiB, %s", short(text), bounds)
		}
		*p = N(n)
		return nil
	}}
}

// OneOf is one of the words, in small or capital letters, each of which stands for the value beside it.
func OneOf[T any](p *T, words []string, values []T) Value {
	bounds := strings.Join(words, ", ")
	return Value{kind: "text", bounds: bounds, variable: p, set: func(text string) error {
		for i, word := range words {
			if strings.EqualFold(text, word) {
				*p = values[i]
				return nil
			}
		}
		return fmt.Errorf("%q; want one of %s", short(text), bounds)
	}}
}

// short keeps what an error repeats to a line.
func short(text string) string {
	if len(text) > 40 {
		return strings.ToValidUTF8(text[:40], "") + "..."
	}
	return text
}

// durationText is the duration without the zeros at its end: 1h, not 1h0m0s.
func durationText(d time.Duration) string {
	text := d.String()
	if strings.HasSuffix(text, "m0s") {
		text = strings.TrimSuffix(text, "0s")
	}
	if strings.HasSuffix(text, "h0m") {
		text = strings.TrimSuffix(text, "0m")
	}
	return text
}

// units are those of sizes, largest first.
func units() []struct {
	name  string
	bytes int64
} {
	return []struct {
		name  string
		bytes int64
	}{{"GiB", 1 << 30}, {"MiB", 1 << 20}, {"KiB", 1 << 10}, {"B", 1}}
}

// sizeText is exact: 64MiB, and 1025B.
func sizeText(n int64) string {
	for _, u := range units() {
		if n != 0 && n%u.bytes == 0 {
			return fmt.Sprintf("%d%s", n/u.bytes, u.name)
		}
	}
	return "0"
}

func parseSize(text string) (int64, error) {
	unit := int64(1)
	for _, u := range units() {
		if number, ok := strings.CutSuffix(text, u.name); ok {
			text, unit = number, u.bytes
			break
		}
	}
	n, err := strconv.ParseInt(text, 10, 64)
	if err == nil && (n < 0 || n > math.MaxInt64/unit) {
		err = errors.New("out of range")
	}
	return n * unit, err
}
