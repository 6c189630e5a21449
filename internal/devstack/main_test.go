package devstack_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"testing"
	"time"

	"github.com/freshet-cache/freshet/internal/devstack"
	"github.com/freshet-cache/freshet/internal/devstack/stacktest"
)

// ownerDir, when set in the environment, makes the test binary the owner of a
// stack in that folder, for tests that kill it.
const ownerDir = "FRESHET_DEVSTACK_OWNER_DIR"

func TestMain(m *testing.M) {
	if dir := os.Getenv(ownerDir); dir != "" {
		if err := own(dir); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	stacktest.Main(m, devstack.Options{})
}

// own starts a stack, prints a line with its folder, and stays until standard
// input ends. Postgres is paused, since a frozen process is the hardest to end.
func own(dir string) error {
	s, err := devstack.Start(context.Background(), devstack.Options{Dir: dir})
	if err != nil {
		return err
	}
	if err := s.Postgres.Standby(context.Background()); err != nil {
		return errors.Join(err, s.Close())
	}
	if err := s.Postgres.Pause(); err != nil {
		return errors.Join(err, s.Close())
	}
	fmt.Println(s.Folder())
	_, err = io.Copy(io.Discard, os.Stdin)
	return errors.Join(err, s.Close())
}

// eventually asks the condition until it holds.
func eventually(t *testing.T, what string, limit time.Duration, holds func() bool) {
	t.Helper()
	deadline := time.After(limit)
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for !holds() {
		select {
		case <-deadline:
			t.Fatalf("not within %v: %s", limit, what)
		case <-tick.C:
		}
	}
}

// slow marks a test that takes seconds.
func slow(t *testing.T) {
	t.Helper()
	if testing.Short() {
		t.Skip("takes seconds")
	}
}

// openDir makes a folder that every user can enter, unlike t.TempDir.
func openDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "freshet-devstack-test-") //nolint:usetesting // t.TempDir is closed to other users
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o777); err != nil {
		t.Fatal(err)
	}
	return dir
}

func emptyDir(t *testing.T, dir string) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		t.Errorf("left in Options.Dir: %s", e.Name())
	}
}
