package nodeconfig

import (
	"errors"
	"fmt"
	"io"
	"os"
	"regexp"
	"strings"
	"unicode/utf8"

	"github.com/goccy/go-yaml"
	"github.com/goccy/go-yaml/ast"
	"github.com/goccy/go-yaml/parser"
)

// Bounds of files, in bytes.
const (
	maxFile   = 1 << 20
	maxSecret = 64 << 10
)

// place is where something stands in the file.
type place struct {
	where origin
	point string
}

// file is the YAML file while it is read.
type file struct {
	*Settings
	path  string
	lines []string
}

// readFile enters what the file says.
func (s *Settings) readFile(path string) {
	if path == "" {
		return
	}
	top := origin{layer: byFile, name: path, line: 1, column: 1}
	text, err := readBounded(path, maxFile)
	if err == nil && !utf8.ValidString(text) {
		err = errors.New("not UTF-8 text")
	}
	if err != nil {
		s.wrong("", top, "", "%v", err)
		return
	}
	f := &file{s, path, strings.Split(text, "\n")}
	parsed, err := parser.ParseBytes([]byte(text), 0, parser.AllowDuplicateMapKey())
	if err != nil {
		f.wrongSyntax(err)
		return
	}
	for i, document := range parsed.Docs {
		switch {
		case document.Body == nil:
		case i > 0:
			at := document.Body.GetToken().Position
			s.wrong("", f.at(at.Line, at.Column), "", "a second document; want one")
		default:
			f.section("", document.Body)
		}
	}
}

// readBounded is the content of a file.
func readBounded(path string, most int64) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, most+1))
	if err == nil && int64(len(text)) > most {
		err = fmt.Errorf("%s has more than %s", path, sizeText(most))
	}
	return string(text), err
}

func (f *file) at(line, column int) origin {
	return origin{layer: byFile, name: f.path, line: line, column: column}
}

// wrongSyntax reports what the parser says, with the line, but nothing that may be a value.
func (f *file) wrongSyntax(err error) {
	line, column, want := 1, 1, "wrong syntax"
	if e := yaml.Error(nil); errors.As(err, &e) {
		want += ": " + e.GetMessage()
		if token := e.GetToken(); token != nil && token.Position != nil {
			line, column = token.Position.Line, token.Position.Column
		}
	}
	shown := "..."
	if line <= len(f.lines) {
		if k := regexp.MustCompile(`^\s*(- )?[a-z0-9_./-]+:`).FindString(f.lines[line-1]); k != "" {
			shown = strings.ReplaceAll(k, "\t", " ") + " ..."
		}
	}
	f.wrong("", f.at(line, column), excerpt(line, min(column, len(shown)), shown), "%s", want)
}

// excerpt is a line of the file and a line that points at its column.
func excerpt(line, column int, text string) string {
	if len(text) > 120 {
		text = strings.ToValidUTF8(text[:120], "") + "..."
	}
	return fmt.Sprintf("\n%6d | %s\n       | %s^", line, text, strings.Repeat(" ", max(column-1, 0)))
}

// section reads the keys below a path; "" is the whole file.
func (f *file) section(path string, body ast.Node) {
	var pairs []*ast.MappingValueNode
	switch body := body.(type) {
	case *ast.NullNode: // all its keys are comments
	case *ast.MappingNode:
		pairs = body.Values
	case *ast.MappingValueNode:
		pairs = []*ast.MappingValueNode{body}
	default:
		p := body.GetToken().Position
		f.wrong(path, f.at(p.Line, p.Column), "", "no keys; want %s, each followed by a colon", f.below(path))
	}
	for _, pair := range pairs {
		f.pair(path, pair)
	}
}

// pair reads one key of a section.
func (f *file) pair(path string, pair *ast.MappingValueNode) {
	token := pair.Key.GetToken()
	p := token.Position
	name := token.Value
	full := name
	if path != "" {
		full = path + "." + name
	}
	where := f.at(p.Line, p.Column)
	// What stands behind the key is shown only where it is known to be no secret.
	point := excerpt(p.Line, p.Column, strings.Repeat(" ", p.Column-1)+short(name)+": ...")
	switch pair.Key.(type) {
	case *ast.MergeKeyNode, *ast.MappingKeyNode, *ast.AnchorNode, *ast.AliasNode, *ast.TagNode:
		f.wrong(path, where, "", "merge keys, complex keys, anchors, aliases and tags are not known here; want a plain key")
		return
	default:
	}
	if f.Settings.at[full] != (place{}) {
		f.wrong(full, where, point, "given twice: here and by %v", f.Settings.at[full].where)
		return
	}
	f.Settings.at[full] = place{where, point}
	k, err := f.known(path, name, full)
	switch {
	case err != nil:
		f.wrong(full, where, point, "%v", err)
	case k != nil:
		f.value(k, pair.Value, place{where, point})
	case f.sections[full] || f.isFamily(full):
		f.section(full, pair.Value)
	default:
		f.wrong(full, where, point, "unknown key; want one of %s", f.below(path))
	}
}

func (f *file) isFamily(path string) bool {
	for _, one := range f.families {
		if one.section == path {
			return true
		}
	}
	return false
}

// known is the key of that name, if it is one. In a family it declares the keys of the member of that name.
func (f *file) known(path, name, full string) (*key, error) {
	for _, one := range f.families {
		if one.section == path {
			return nil, f.member(one, name)
		}
	}
	return f.byName[full], nil
}

// value enters what the file says of a key that stands at the place.
func (f *file) value(k *key, body ast.Node, at place) {
	wrong := func(format string, args ...any) { f.wrong(k.name, at.where, at.point, format, args...) }
	token := body.GetToken()
	var text string
	switch body := body.(type) {
	case *ast.StringNode, *ast.IntegerNode, *ast.FloatNode, *ast.BoolNode, *ast.InfinityNode, *ast.NanNode:
		text = token.Value
		if source := strings.TrimSpace(token.Origin); k.value.hide == nil && !strings.Contains(source, "\n") {
			p, before := token.Position, k.name[strings.LastIndexByte(k.name, '.')+1:]+": "
			at.where = f.at(p.Line, p.Column)
			at.point = excerpt(p.Line, p.Column, strings.Repeat(" ", max(p.Column-1-len(before), 0))+before+source)
		}
	case *ast.LiteralNode:
		text = body.Value.Value
	case *ast.SequenceNode:
		if k.value.kind != "list" {
			wrong("a list; want a %s", k.value.kind)
			return
		}
		for i, one := range body.Values {
			part := one.GetToken().Value
			if _, ok := one.(ast.ScalarNode); !ok || part == "" || strings.Contains(part, ",") {
				wrong("no. %d of the list is no text without commas; within braces, one with a colon wants quotes", i+1)
				return
			}
			text += part + ","
		}
		text = strings.TrimSuffix(text, ",")
	case *ast.NullNode:
		wrong("has no value; leave the key out for the default")
		return
	case *ast.MappingNode, *ast.MappingValueNode:
		wrong("has keys below it; want a %s", k.value.kind)
		return
	default:
		wrong("anchors, aliases and tags are not known here; want the value itself")
		return
	}
	f.say(k, said{text: text, where: at.where, point: at.point})
}
