package devstack_test

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/freshet-cache/freshet/internal/devstack"
)

// fakePostgres makes a folder of programs that print the version.
func fakePostgres(t *testing.T, folder, version string, programs ...string) {
	t.Helper()
	if err := os.MkdirAll(folder, 0o755); err != nil {
		t.Fatal(err)
	}
	for _, p := range programs {
		text := "#!/bin/sh\necho '" + p + " (PostgreSQL) " + version + "'\n"
		if err := os.WriteFile(filepath.Join(folder, p), []byte(text), 0o755); err != nil {
			t.Fatal(err)
		}
	}
}

func TestNewestCompletePostgresIsFound(t *testing.T) {
	dir := t.TempDir()
	t.Setenv("PATH", filepath.Join(dir, "path")+":/bin:/usr/bin")
	pattern := filepath.Join(dir, "pg", "*", "bin")

	fakePostgres(t, filepath.Join(dir, "pg", "9", "bin"), "9.6.1", "initdb", "postgres")
	fakePostgres(t, filepath.Join(dir, "pg", "18", "bin"), "18.0", "psql") // client only
	if server, err := devstack.FindPostgres(filepath.Join(dir, "pg", "9", "bin")); err == nil && filepath.Dir(server) == filepath.Join(dir, "pg", "9", "bin") {
		t.Errorf("found %s, which is too old", server)
	}

	fakePostgres(t, filepath.Join(dir, "path"), "14.2", "initdb", "postgres")
	if server, err := devstack.FindPostgres(pattern); err != nil || filepath.Dir(server) != filepath.Join(dir, "path") {
		t.Errorf("found %q (%v), want that in PATH, since the others are too old or incomplete", server, err)
	}

	fakePostgres(t, filepath.Join(dir, "pg", "13", "bin"), "13.4", "initdb", "postgres")
	fakePostgres(t, filepath.Join(dir, "pg", "15", "bin"), "15.1", "initdb", "postgres")
	if server, err := devstack.FindPostgres(pattern); err != nil || filepath.Base(filepath.Dir(filepath.Dir(server))) != "15" {
		t.Errorf("found %q (%v), want version 15", server, err)
	}
}
