package main

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// Every mutant can still be made, and the test that is to kill it is there. Whether it does is for `make mutants`.
func TestGuardsAreWhereTheyWere(t *testing.T) {
	const root = "../.."
	tests := map[string]string{} // folder -> its tests' source
	names := map[string]bool{}
	for _, m := range mutants {
		if changed, err := m.apply(root); err != nil {
			t.Error(err)
		} else if strings.Contains(m.with, m.old) || changed == "" {
			t.Errorf("%s: its guard is still there", m.name)
		}
		if names[m.name] {
			t.Errorf("%s: two mutants of one name", m.name)
		}
		names[m.name] = true
		if tests[m.folder] == "" {
			tests[m.folder] = sources(t, filepath.Join(root, m.folder, "*_test.go"))
		}
		test, _, _ := strings.Cut(m.killer, "/")
		if !regexp.MustCompile(`(?m)^func ` + test + `\(t \*testing\.T\)`).MatchString(tests[m.folder]) {
			t.Errorf("%s: ./%s has no %s", m.name, m.folder, test)
		}
	}
	if len(mutants) < 15 {
		t.Errorf("%d mutants, want at least 15", len(mutants))
	}
}

// sources are the texts of the files, one after the other.
func sources(t *testing.T, pattern string) string {
	t.Helper()
	files, err := filepath.Glob(pattern)
	if err != nil || len(files) == 0 {
		t.Fatalf("%s: %d files, %v", pattern, len(files), err)
	}
	var all strings.Builder
	for _, file := range files {
		b, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		all.Write(b)
	}
	return all.String()
}
