package nodetest_test

import (
	"fmt"
	"os"
	"sync"
	"testing"
)

// run runs a test within an example, once, and has it print nothing but what it prints itself.
func run(test func(t *testing.T)) {
	var once sync.Once
	printed := os.Stdout
	os.Stdout = os.Stderr // for what testing says with -v
	defer func() { os.Stdout = printed }()
	if !testing.RunTests(func(string, string) (bool, error) { return true, nil }, []testing.InternalTest{{Name: "Example", F: func(t *testing.T) {
		once.Do(func() { // also with -count
			testing := os.Stdout
			os.Stdout = printed
			defer func() { os.Stdout = testing }()
			test(t)
		})
	}}}) {
		fmt.Fprintln(printed, "the test has failed")
	}
}
