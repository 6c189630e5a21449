// Mutants shows that the tests of the guarantee can fail: it takes away one guard after the other, and for each a named
// test must notice. A mutant that survives is a missing test.
//
//	go run ./internal/mutants [-only NAME,NAME]
//
// The table of mutants is in guards.go. The source is left alone: the compiler is handed the changed file by an overlay.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"
)

// Bounds of one mutant's build and of its test.
const (
	buildLimit = 5 * time.Minute
	testLimit  = time.Minute
)

func main() {
	only := flag.String("only", "", "the mutants to run, separated by commas; empty = all")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, os.Stdout, *only); err != nil {
		fmt.Fprintln(os.Stderr, "mutants:", err)
		os.Exit(1)
	}
}

// run prints the table of the chosen mutants and what became of each. The error names those that survived and those that
// could not be tried.
func run(ctx context.Context, out io.Writer, only string) error {
	chosen := mutants
	if only != "" {
		chosen = nil
		for name := range strings.SplitSeq(only, ",") {
			i := slices.IndexFunc(mutants, func(m mutant) bool { return m.name == name })
			if i < 0 {
				return fmt.Errorf("-only %q: want names of mutants in internal/mutants/guards.go", name)
			}
			chosen = append(chosen, mutants[i])
		}
	}
	mod, err := exec.CommandContext(ctx, "go", "env", "GOMOD").Output()
	if err != nil {
		return fmt.Errorf("go env GOMOD: %w", err)
	}
	temp, err := os.MkdirTemp("", "freshet-mutants-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(temp) //nolint:errcheck // a temporary folder
	lab := &lab{root: filepath.Dir(strings.TrimSpace(string(mod))), temp: temp}
	if err := lab.intact(ctx, chosen); err != nil {
		return err
	}
	fmt.Fprint(out, "| mutant | guard | killed by | time |\n|---|---|---|---|\n")
	var problems []error
	for _, m := range chosen {
		began := time.Now()
		var verdicts []string
		for _, k := range m.killers(lab.root) {
			killed, err := lab.try(ctx, m, k)
			verdict := fmt.Sprintf("`%s` %s", k.folder, k.test)
			switch {
			case err != nil:
				verdict = "not tried: " + verdict
				problems = append(problems, fmt.Errorf("%s: %w", m.name, err))
			case !killed:
				verdict = "SURVIVED " + verdict
				problems = append(problems, fmt.Errorf("%s: survived %s of ./%s", m.name, k.test, k.folder))
			}
			verdicts = append(verdicts, verdict)
		}
		fmt.Fprintf(out, "| %s | %s | %s | %.1f s |\n", m.name, m.guard, strings.Join(verdicts, ", "), time.Since(began).Seconds())
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
	}
	return errors.Join(problems...)
}

// lab builds and runs the tests of mutants.
type lab struct {
	root string // of the module
	temp string // for changed files and test binaries
}

// intact makes sure that every mutant can be made, and that all tests that are to kill pass without it.
func (l *lab) intact(ctx context.Context, chosen []mutant) error {
	killers := map[string][]string{} // folder -> names of tests
	var problems []error
	for _, m := range chosen {
		if _, err := m.apply(l.root); err != nil {
			problems = append(problems, err)
		}
		for _, k := range m.killers(l.root) {
			killers[k.folder] = append(killers[k.folder], k.test)
		}
	}
	if err := errors.Join(problems...); err != nil {
		return err
	}
	for folder, names := range killers {
		binary, err := l.build(ctx, folder, "")
		if err != nil {
			return err
		}
		var tests []string
		for _, name := range names {
			test, _, _ := strings.Cut(name, "/")
			tests = append(tests, test)
		}
		text, err := l.test(ctx, binary, folder, "^("+strings.Join(tests, "|")+")$")
		if err != nil {
			return fmt.Errorf("the tests of ./%s fail without a mutant: %w\n%s", folder, err, text)
		}
		for _, name := range names {
			if !strings.Contains(text, "--- PASS: "+name+" (") {
				return fmt.Errorf("./%s has no test %s that passes", folder, name)
			}
		}
	}
	return nil
}

// try reports whether the test fails with the mutant. The error says why that cannot be told.
func (l *lab) try(ctx context.Context, m mutant, k killer) (killed bool, err error) {
	changed, err := m.apply(l.root)
	if err != nil {
		return false, err
	}
	file, overlay := filepath.Join(l.temp, "mutant.go"), filepath.Join(l.temp, "overlay.json")
	replace, err := json.Marshal(map[string]map[string]string{"Replace": {filepath.Join(l.root, m.file): file}})
	if err != nil {
		return false, err
	}
	if err := errors.Join(os.WriteFile(file, []byte(changed), 0o600), os.WriteFile(overlay, replace, 0o600)); err != nil {
		return false, err
	}
	binary, err := l.build(ctx, k.folder, overlay)
	if err != nil {
		return false, err
	}
	text, err := l.test(ctx, binary, k.folder, k.pattern())
	if err == nil {
		return false, nil
	}
	test, _, _ := strings.Cut(k.test, "/")
	// A panic may come from a goroutine of the code that is tested, or from the test's time limit.
	if !strings.Contains(text, "--- FAIL: "+test+" (") && !strings.Contains(text, "\npanic: ") && !strings.HasPrefix(text, "panic: ") {
		return false, fmt.Errorf("the test ended before it could tell: %w\n%s", err, text)
	}
	return true, nil
}

// build makes the test binary of a folder; overlay is empty for the source as it is.
func (l *lab) build(ctx context.Context, folder, overlay string) (binary string, err error) {
	ctx, cancel := context.WithTimeout(ctx, buildLimit)
	defer cancel()
	binary = filepath.Join(l.temp, "mutant.test")
	args := []string{"test", "-c", "-o", binary}
	if overlay != "" {
		args = append(args, "-overlay", overlay)
	}
	command := exec.CommandContext(ctx, "go", append(args, "./"+folder)...)
	command.Dir = l.root
	if text, err := command.CombinedOutput(); err != nil {
		return "", fmt.Errorf("does not compile: %w\n%s", err, text)
	}
	return binary, nil
}

// test runs some tests of a binary and returns what it printed. An error says that one failed.
func (l *lab) test(ctx context.Context, binary, folder, pattern string) (text string, err error) {
	ctx, cancel := context.WithTimeout(ctx, 2*testLimit) // the binary ends itself sooner
	defer cancel()
	command := exec.CommandContext(ctx, binary, "-test.v", "-test.run", pattern, "-test.timeout", testLimit.String())
	command.Dir = filepath.Join(l.root, folder)
	b, err := command.CombinedOutput()
	return string(b), err
}

// mutant is a guard of the guarantee and how to take it away.
type mutant struct {
	name  string
	guard string // what the guard is for
	file  string // below the root of the module
	// old is the guard's text, which the file has exactly once, and with what stands in its place.
	old, with string
	// killer is the test in folder that fails without the guard, "Test" or "Test/subtest".
	folder, killer string
}

// apply is the text of the file without the guard.
func (m mutant) apply(root string) (string, error) {
	b, err := os.ReadFile(filepath.Join(root, m.file))
	if err != nil {
		return "", fmt.Errorf("%s: %w", m.name, err)
	}
	if n := strings.Count(string(b), m.old); n != 1 {
		return "", fmt.Errorf("%s: the guard moved: %s has its text %d times, want once:\n%s", m.name, m.file, n, m.old)
	}
	return strings.Replace(string(b), m.old, m.with, 1), nil
}

// killer is a test that fails with a mutant.
type killer struct{ folder, test string }

// killers are the mutant's own, and a plan of the simulator if there is one of the mutant's name.
func (m mutant) killers(root string) []killer {
	all := []killer{{m.folder, m.killer}}
	if _, err := os.Stat(filepath.Join(root, "internal/sim/testdata", m.name+".txt")); err == nil {
		all = append(all, killer{"internal/sim", "TestPlans/" + m.name})
	}
	return all
}

// pattern is the test's name as -run wants it.
func (k killer) pattern() string {
	return "^" + strings.ReplaceAll(k.test, "/", "$/^") + "$"
}
