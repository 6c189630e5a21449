package repotest

import (
	"bytes"
	"encoding/json"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// top is the repository's root, seen from this package.
const top = "../.."

// read returns a file's text by its path below the root.
func read(t *testing.T, path string) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(top, path))
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// walk calls visit with the slash-separated path of each file of ours: all but git's and what make leaves behind.
func walk(t *testing.T, visit func(path string)) {
	t.Helper()
	err := filepath.WalkDir(top, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		path, err = filepath.Rel(top, path)
		if err != nil {
			return err
		}
		path = filepath.ToSlash(path)
		if d.IsDir() {
			if path == ".git" || path == "bin" {
				return filepath.SkipDir
			}
			return nil
		}
		visit(path)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

// blocks returns the fenced code blocks of a Markdown text in the given language, in order.
func blocks(text, language string) []string {
	var found []string
	fence := regexp.MustCompile("(?ms)^```" + language + "\n(.*?)^```$")
	for _, match := range fence.FindAllStringSubmatch(text, -1) {
		found = append(found, match[1])
	}
	return found
}

// documents are the texts that a newcomer reads.
var documents = []string{"README.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md"}

// The README's Go is the body of a function in node/example_test.go, so that it compiles.
func TestReadmeExamplesAreCompiled(t *testing.T) {
	examples := read(t, "node/example_test.go")
	files := token.NewFileSet()
	parsed, err := parser.ParseFile(files, "node/example_test.go", examples, parser.ParseComments)
	if err != nil {
		t.Fatal(err)
	}
	var bodies []string
	ast.Inspect(parsed, func(n ast.Node) bool {
		var body *ast.BlockStmt
		switch f := n.(type) {
		case *ast.FuncDecl:
			body = f.Body
		case *ast.FuncLit:
			body = f.Body
		}
		if body != nil {
			bodies = append(bodies, dedent(examples[files.Position(body.Lbrace).Offset+1:files.Position(body.Rbrace).Offset]))
		}
		return true
	})
	shown := blocks(read(t, "README.md"), "go")
	if len(shown) == 0 {
		t.Fatal("the README shows no Go")
	}
	for _, block := range shown {
		if !slices.Contains(bodies, dedent(block)) {
			t.Errorf("no function in node/example_test.go has this body, which the README shows:\n%s", block)
		}
	}
	if lines := strings.Count(shown[0], "\n"); lines > 15 {
		t.Errorf("the README's first example has %d lines, want at most 15", lines)
	}
}

// dedent removes the tabs that all lines of a text begin with, and blank lines around it.
func dedent(text string) string {
	lines := strings.Split(strings.Trim(text, "\n\t "), "\n")
	common := -1
	for _, line := range lines[1:] {
		if line == "" {
			continue
		}
		if tabs := len(line) - len(strings.TrimLeft(line, "\t")); common < 0 || tabs < common {
			common = tabs
		}
	}
	for i := range lines[1:] {
		lines[i+1] = strings.TrimPrefix(lines[i+1], strings.Repeat("\t", max(common, 0)))
	}
	return strings.Join(lines, "\n")
}

// The README's first two commands are the two that matter, and each `make ...` of a document is a target with help.
func TestDocumentsNameRealMakeTargets(t *testing.T) {
	commands := blocks(read(t, "README.md"), "sh")
	if len(commands) < 2 || commands[0] != "make up\n" || commands[1] != "make test\n" {
		t.Errorf("the README's first two command blocks are %q, want `make up` and `make test`", commands)
	}
	makefile := read(t, "Makefile")
	helped := map[string]bool{}
	for _, match := range regexp.MustCompile(`(?m)^([a-z]+):.*## .+$`).FindAllStringSubmatch(makefile, -1) {
		helped[match[1]] = true
	}
	phony := regexp.MustCompile(`(?m)^\.PHONY: (.+)$`).FindStringSubmatch(makefile)
	if phony == nil {
		t.Fatal("the Makefile declares no phony targets")
	}
	for target := range strings.FieldsSeq(phony[1]) {
		if !helped[target] {
			t.Errorf("make %s has no ## comment for `make help`", target)
		}
	}
	named := regexp.MustCompile("(?m)(?:^|`)make ([a-z]+)")
	for _, document := range documents {
		for _, match := range named.FindAllStringSubmatch(read(t, document), -1) {
			if !helped[match[1]] {
				t.Errorf("%s names `make %s`, which is no target", document, match[1])
			}
		}
	}
}

func TestDocumentsLinkToFiles(t *testing.T) {
	link := regexp.MustCompile(`\]\(([^)#]+)[^)]*\)`)
	code := regexp.MustCompile("(?ms)^```.*?^```$")
	for _, document := range documents {
		for _, match := range link.FindAllStringSubmatch(code.ReplaceAllString(read(t, document), ""), -1) {
			if strings.Contains(match[1], "://") {
				continue
			}
			if _, err := os.Stat(filepath.Join(top, match[1])); err != nil {
				t.Errorf("%s links to %s: %v", document, match[1], err)
			}
		}
	}
}

// ARCHITECTURE.md's table of folders is the tree's first level.
func TestArchitectureListsTheFolders(t *testing.T) {
	var listed, there []string
	for _, match := range regexp.MustCompile("(?m)^\\| `([a-z0-9]+)/` \\|").FindAllStringSubmatch(read(t, "ARCHITECTURE.md"), -1) {
		listed = append(listed, match[1])
	}
	walk(t, func(path string) {
		folder, _, inside := strings.Cut(path, "/")
		if inside && !strings.HasPrefix(folder, ".") && !slices.Contains(there, folder) {
			there = append(there, folder)
		}
	})
	slices.Sort(listed)
	slices.Sort(there)
	if !slices.Equal(listed, there) {
		t.Errorf("ARCHITECTURE.md lists the folders %v, the tree has %v", listed, there)
	}
}

// ARCHITECTURE.md's table of dependencies is go.mod's list of direct ones.
func TestArchitectureListsTheDependencies(t *testing.T) {
	command := exec.CommandContext(t.Context(), "go", "mod", "edit", "-json")
	command.Dir = top
	text, err := command.Output()
	if err != nil {
		t.Fatalf("%v: %v", command, err)
	}
	var module struct {
		Require []struct {
			Path, Version string
			Indirect      bool
		}
	}
	if err := json.Unmarshal(text, &module); err != nil {
		t.Fatal(err)
	}
	listed := map[string]string{}
	row := regexp.MustCompile("(?m)^\\| `([^`]+\\.[^`]+/[^`]+)` \\| (v\\S+) \\| .+ \\|$")
	for _, match := range row.FindAllStringSubmatch(read(t, "ARCHITECTURE.md"), -1) {
		listed[match[1]] = match[2]
	}
	for _, require := range module.Require {
		if require.Indirect {
			continue
		}
		switch version, ok := listed[require.Path]; {
		case !ok:
			t.Errorf("ARCHITECTURE.md gives no reason for %s %s", require.Path, require.Version)
		case version != require.Version:
			t.Errorf("ARCHITECTURE.md has %s at %s, go.mod at %s", require.Path, version, require.Version)
		}
		delete(listed, require.Path)
	}
	for path := range listed {
		t.Errorf("ARCHITECTURE.md lists %s, which go.mod does not require directly", path)
	}
}

func TestChangelogKeepsItsFormat(t *testing.T) {
	kinds := []string{"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}
	release := regexp.MustCompile(`^## \[\d+\.\d+\.\d+(-[0-9A-Za-z.]+)?\] - \d{4}-\d{2}-\d{2}( \[YANKED\])?$`)
	lines := strings.Split(read(t, "CHANGELOG.md"), "\n")
	if lines[0] != "# Changelog" {
		t.Errorf("CHANGELOG.md begins with %q, want %q", lines[0], "# Changelog")
	}
	var releases []string
	for number, line := range lines {
		switch {
		case strings.HasPrefix(line, "## "):
			releases = append(releases, line)
			if line != "## [Unreleased]" && !release.MatchString(line) {
				t.Errorf("CHANGELOG.md:%d: %q, want ## [1.2.3] - 2006-01-02", number+1, line)
			}
		case strings.HasPrefix(line, "### "):
			if kind := strings.TrimPrefix(line, "### "); !slices.Contains(kinds, kind) {
				t.Errorf("CHANGELOG.md:%d: kind of change %q, want one of %v", number+1, kind, kinds)
			}
		}
	}
	if len(releases) == 0 || releases[0] != "## [Unreleased]" {
		t.Errorf("CHANGELOG.md's first section is %q, want ## [Unreleased]", releases)
	}
}

// Every package says what it is: in doc.go where it has several files and is no program.
func TestPackagesHaveDocs(t *testing.T) {
	type pkg struct {
		documented, inDoc, program bool
		files                      int // without tests
	}
	packages := map[string]*pkg{}
	walk(t, func(path string) {
		if !strings.HasSuffix(path, ".go") || strings.Contains(path, "/testdata/") {
			return
		}
		file, err := parser.ParseFile(token.NewFileSet(), filepath.Join(top, path), nil, parser.ParseComments|parser.PackageClauseOnly)
		if err != nil {
			t.Error(err)
			return
		}
		folder, name := filepath.Split(path)
		if packages[folder] == nil {
			packages[folder] = &pkg{}
		}
		p := packages[folder]
		p.program = p.program || file.Name.Name == "main"
		if !strings.HasSuffix(name, "_test.go") {
			p.files++
		}
		if strings.HasPrefix(file.Doc.Text(), "Package "+file.Name.Name) || p.program && file.Doc.Text() != "" {
			p.documented = true
			p.inDoc = p.inDoc || name == "doc.go"
		}
	})
	for folder, p := range packages {
		switch {
		case !p.documented:
			t.Errorf("%s: no package comment", folder)
		case !p.inDoc && !p.program && p.files > 1:
			t.Errorf("%s: the package comment is not in doc.go", folder)
		}
	}
}

// Folders are named for what they are about, not for being a place to put things.
func TestFoldersHaveNames(t *testing.T) {
	refused := []string{"util", "utils", "common", "helper", "helpers", "types", "manager", "impl", "data", "info", "misc", "shared", "lib"}
	walk(t, func(path string) {
		for folder := range strings.SplitSeq(filepath.ToSlash(filepath.Dir(path)), "/") {
			if slices.Contains(refused, folder) {
				t.Errorf("%s: what is %q about?", path, folder)
			}
		}
	})
}

// Texts name nobody's machine, keep no unfinished business and no trace of a merge.
func TestTextsAreClean(t *testing.T) {
	refused := map[string]*regexp.Regexp{
		"somebody's home folder": regexp.MustCompile(`(?:^|[\s"'=(:])/(?:home|Users)/[A-Za-z]|(?:^|[\s"'=(:])/root/`),
		"unfinished business":    regexp.MustCompile(`\b(?:TO` + `DO|FIX` + `ME|X` + `XX)\b`),
		"a merge conflict":       regexp.MustCompile(`^(?:<<<<<<<|>>>>>>>) `),
		"a carriage return":      regexp.MustCompile(`\r`),
	}
	walk(t, func(path string) {
		if strings.Contains(path, "testdata/") || strings.HasSuffix(path, "go.sum") || path == "LICENSE" {
			return
		}
		text, err := os.ReadFile(filepath.Join(top, path))
		if err != nil {
			t.Error(err)
			return
		}
		if bytes.IndexByte(text, 0) >= 0 {
			return
		}
		number := 0
		for line := range bytes.Lines(text) {
			number++
			for what, pattern := range refused {
				if pattern.Match(bytes.TrimSuffix(line, []byte("\n"))) {
					t.Errorf("%s:%d: %s: %s", path, number, what, line)
				}
			}
		}
		if len(text) > 0 && text[len(text)-1] != '\n' {
			t.Errorf("%s: the last line does not end", path)
		}
	})
}
