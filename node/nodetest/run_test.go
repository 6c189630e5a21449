package nodetest_test

import (
	"fmt"
	"os"
	"sync"
	"testing"
)

// run runs a test within an example, once, and has it print nothing but what it prints itself.
func run(test func(t *testing.T)) {
	stdout := os.Stdout
	os.Stdout = os.Stderr // for what testing says with -v
	defer func() { os.Stdout = stdout }()
	var once sync.Once // also with -count
	passed := testing.RunTests(func(string, string) (bool, error) { return true, nil }, []testing.InternalTest{{
		Name: "Example", F: func(t *testing.T) {
			t.Helper()
			once.Do(func() {
				os.Stdout = stdout
				defer func() { os.Stdout = os.Stderr }()
				test(t)
			})
		},
	}})
	if !passed {
		fmt.Fprintln(stdout, "the test has failed")
	}
}
