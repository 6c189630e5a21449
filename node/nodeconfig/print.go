package nodeconfig

import (
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"
)

// Shown is a key as it may be shown.
type Shown struct {
	Key string `json:"key"`
	// Value is the text that was given, or the default, without what is secret; "" = nothing.
	Value string `json:"value"`
	// Origin is default, PATH:LINE, env VARIABLE or flag --NAME. A secret from a file has that of the file's path.
	Origin string `json:"origin"`
}

// Shown are all keys with what they hold after [Settings.Load]; of caches those that are given.
func (s *Settings) Shown() []Shown {
	var all []Shown
	for _, k := range s.shown() {
		all = append(all, Shown{Key: k.name, Value: k.shown(), Origin: k.origin().String()})
	}
	return all
}

func (s *Settings) shown() []*key {
	return slices.DeleteFunc(slices.Clone(s.keys), func(k *key) bool {
		f, _, _ := s.split(k.name)
		return f != nil && k.said == nil
	})
}

func (k *key) origin() origin {
	if k.said == nil {
		return origin{}
	}
	return k.said.where
}

func (k *key) shown() string {
	switch {
	case k.said == nil:
		return k.value.preset
	case k.value.hide != nil && k.said.text != "":
		return k.value.hide(k.said.text)
	default:
		return k.said.text
	}
}

// PrintJSON writes an array of [Shown].
func (s *Settings) PrintJSON(w io.Writer) error {
	encoder := json.NewEncoder(w)
	encoder.SetEscapeHTML(false)
	encoder.SetIndent("", "  ")
	return encoder.Encode(s.Shown())
}

// PrintYAML writes what holds as a file, each value with its origin beside it. Keys that hold nothing are comments. But for
// what is hidden, it can be loaded.
func (s *Settings) PrintYAML(w io.Writer) error {
	t := &tree{w: w}
	for _, k := range s.shown() {
		text, mark := k.yaml(), ""
		if k.said == nil && text == "" || k.secret && k.said != nil {
			mark = "# "
		}
		t.enter(s.path(k))
		line := mark + t.leaf + ":"
		if text != "" {
			line += " " + text
		}
		where := k.origin().String()
		if k.said == nil && text == "" && k.value.without != "" {
			where += ": " + k.value.without
		}
		t.line("%s  # %s", line, where)
	}
	return t.err
}

// yaml is what may be shown of the value, as it stands in a file.
func (k *key) yaml() string {
	text := k.shown()
	if text == "" {
		return ""
	}
	if k.value.kind == "list" {
		parts := strings.Split(text, ",")
		for i := range parts {
			parts[i] = quoted(strings.TrimSpace(parts[i]))
		}
		return "[" + strings.Join(parts, ", ") + "]"
	}
	if k.value.kind == "text" {
		return quoted(text)
	}
	return text
}

// quoted is the text as a scalar of YAML that is no other type. Go's escapes of a valid text are YAML's.
func quoted(text string) string {
	plain := text != ""
	for _, r := range text {
		plain = plain && (r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || strings.ContainsRune("/._-", r))
	}
	switch strings.ToLower(text) {
	case "null", "true", "false":
		plain = false
	}
	if plain && (text[0] > '9' || text[0] == '/') {
		return text
	}
	return strconv.Quote(text)
}

// PrintDefaults writes a file of all keys as comments, each with what it means, what it may be, and its default. Of keys
// that have no default, the line ends with the colon. As it is, the file says nothing.
func (s *Settings) PrintDefaults(w io.Writer) error {
	for _, f := range s.families {
		if err := s.member(f, f.example); err != nil {
			return err
		}
	}
	t := &tree{w: w, gaps: true}
	for _, k := range s.keys {
		// A member's section is an example, and a comment like its keys.
		t.commentFrom = 0
		if f, _, _ := s.split(k.name); f != nil {
			t.commentFrom = 2
		}
		t.enter(s.path(k))
		t.gap()
		for _, line := range wrapped(k.about(), 100) {
			t.line("# %s", line)
		}
		line := "# " + t.leaf + ":"
		if text := k.yaml(); text != "" {
			line += " " + text
		}
		t.line("%s", line)
	}
	return t.err
}

// about is the key's meaning, kind, bounds and default.
func (k *key) about() string {
	text := k.doc + " " + strings.ToUpper(k.value.kind[:1]) + k.value.kind[1:]
	if k.value.bounds != "" {
		text += ": " + k.value.bounds
	}
	if k.value.without != "" {
		text += ". Default: " + k.value.without
	}
	return text + "."
}

// PrintTable writes the keys as a table of Markdown.
func (s *Settings) PrintTable(w io.Writer) error {
	for _, f := range s.families {
		if err := s.member(f, f.example); err != nil {
			return err
		}
	}
	if _, err := fmt.Fprint(w, "| key | is | default | variable, flag | meaning |\n|---|---|---|---|---|\n"); err != nil {
		return err
	}
	for _, k := range s.keys {
		is := k.value.kind
		if k.value.bounds != "" {
			is += ": " + k.value.bounds
		}
		preset := k.value.without
		if k.value.preset != "" {
			preset = "`" + k.value.preset + "`"
		}
		names := "`" + s.variable(k.name) + "`"
		if k.flag != "" {
			if s.variable(k.flag) != s.variable(k.name) {
				names += " or `" + s.variable(k.flag) + "`"
			}
			names += ", `--" + k.flag + "`"
		}
		if _, err := fmt.Fprintf(w, "| `%s` | %s | %s | %s | %s |\n", k.name, is, preset, names, strings.ReplaceAll(k.doc, "|", `\|`)); err != nil {
			return err
		}
	}
	return nil
}

// path is the key's name by its sections: the name of a family's member is one, whatever dots it has.
func (s *Settings) path(k *key) []string {
	if f, member, suffix := s.split(k.name); f != nil {
		return append([]string{f.section, member}, strings.Split(suffix, ".")...)
	}
	return strings.Split(k.name, ".")
}

// tree writes keys with their sections above them.
type tree struct {
	w           io.Writer
	err         error
	sections    []string // that are open
	began       bool     // the last line is not a section's head
	leaf        string   // the last name of the path
	gaps        bool     // empty lines stand between keys
	commentFrom int      // the depth from which on sections are comments; 0 = none are
}

// enter opens the sections of a key.
func (t *tree) enter(path []string) {
	sections := path[:len(path)-1]
	same := 0
	for same < len(sections) && same < len(t.sections) && sections[same] == t.sections[same] {
		same++
	}
	for depth := same; depth < len(sections); depth++ {
		t.sections = sections[:depth]
		mark := ""
		if t.commentFrom > 0 && depth >= t.commentFrom-1 {
			mark = "# "
		}
		t.gap()
		t.line("%s%s:", mark, quoted(sections[depth]))
		t.began = false
	}
	t.sections, t.leaf = sections, path[len(path)-1]
}

// gap is an empty line between what belongs apart.
func (t *tree) gap() {
	if t.began && t.gaps {
		t.line("")
	}
}

func (t *tree) line(format string, args ...any) {
	t.began = true
	if t.err == nil {
		_, t.err = fmt.Fprintln(t.w, strings.TrimRight(strings.Repeat("  ", len(t.sections))+fmt.Sprintf(format, args...), " "))
	}
}

// wrapped breaks a text into lines.
func wrapped(text string, width int) []string {
	var lines []string
	line := ""
	for word := range strings.FieldsSeq(text) {
		if line != "" && utf8.RuneCountInString(line)+1+utf8.RuneCountInString(word) > width {
			lines, line = append(lines, line), ""
		}
		if line != "" {
			line += " "
		}
		line += word
	}
	return append(lines, line)
}
