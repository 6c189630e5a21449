// Package stacktest gives the tests of one package real servers: one
// [devstack.Stack] for the whole test binary, started before the first test and
// removed after the last.
//
//	func TestMain(m *testing.M) { stacktest.Main(m, devstack.Options{}) }
//
//	func TestQuery(t *testing.T) {
//		dsn, err := stacktest.Stack().Postgres.CreateDatabase(t.Context(), "query")
//		...
//	}
//
// Tests share the stack: each uses its own database, key prefix and subject
// names, and one that stops a server starts it again and waits until it is ready
// before it ends. When the binary is killed or times out, the stack goes with it.
package stacktest

import (
	"context"
	"fmt"
	"os"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/freshet-cache/freshet/internal/devstack"
)

// startLimit bounds the start of the stack, which takes seconds.
const startLimit = time.Minute

// stack is set by Main before the first test runs, and not changed while tests
// run. It is global because TestMain has no other way to hand anything to tests.
var stack *devstack.Stack

// Main is the body of a TestMain. It starts a stack with the parts that o asks
// for, runs the tests, closes the stack, checks that no goroutine is left, and
// exits. When the stack cannot start, no test runs, and the binary fails with
// the reason, which names the missing programs and the command that installs
// them.
func Main(m *testing.M, o devstack.Options) { os.Exit(run(m, o)) }

// Stack returns the running stack; nil in a test binary whose TestMain is not
// [Main].
func Stack() *devstack.Stack { return stack }

// run returns the exit code.
func run(m *testing.M, o devstack.Options) int {
	ctx, cancel := context.WithTimeout(context.Background(), startLimit)
	defer cancel()
	s, err := devstack.Start(ctx, o)
	if err != nil {
		fmt.Fprintln(os.Stderr, "these tests need real servers:", err)
		return 1
	}
	stack = s
	code := m.Run()
	if err := s.Close(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		code = max(code, 1)
	}
	if code != 0 {
		return code // a failed test may well leave goroutines; its own message counts
	}
	if err := goleak.Find(expected()...); err != nil {
		fmt.Fprintln(os.Stderr, "goroutines are left after all tests:", err)
		return 1
	}
	return 0
}

// expected are the goroutines that may outlive their owner for a moment.
func expected() []goleak.Option {
	return []goleak.Option{
		// rueidis's cluster client sleeps five seconds before it closes
		// connections to nodes that have left, even when it is closed meanwhile.
		goleak.IgnoreAnyFunction("github.com/redis/rueidis.(*clusterClient)._refresh.func2"),
		// The same to a node that has answered MOVED with its own address.
		goleak.IgnoreAnyFunction("github.com/redis/rueidis.(*clusterClient).redirectOrNew.func1"),
	}
}
