package verify_test

import (
	"context"
	"fmt"
	"os"
	"testing"

	"github.com/freshet-cache/freshet/internal/devstack"
	"github.com/freshet-cache/freshet/internal/devstack/stacktest"
	"github.com/freshet-cache/freshet/internal/verify"
)

// asReplica, as first argument, makes the test binary a replica of the subject that the second names.
const asReplica = "replica-under-test"

func TestMain(m *testing.M) {
	if len(os.Args) == 3 && os.Args[1] == asReplica {
		if err := verify.RunReplica(context.Background(), subjects()[os.Args[2]], os.Stdin, os.Stdout); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	stacktest.Main(m, devstack.Options{})
}
