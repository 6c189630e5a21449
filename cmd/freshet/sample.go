package main

import (
	"context"
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"

	"github.com/freshet-cache/freshet/node"
	"github.com/freshet-cache/freshet/node/admin"
)

func newSample() *cobra.Command {
	var entries int
	var found bool
	cmd := &cobra.Command{
		Use:   "sample",
		Short: "Compare entries of a replica's memory with Postgres",
		Long: `Take entries of the asked replica's L1 at random and compare those that are FRESH with
what Postgres has. One that changes meanwhile counts as moved. One that should be equal
and is not was changed past the log: it is listed with its id, and replaced on every
replica. The key verify.every of the configuration has a replica do it all the time.

It asks for a credential, as it loads from Postgres and shows ids. The exit code is 1 if
something was not equal.`,
		Example: `  freshet sample
  freshet sample --entries 1000
  freshet sample --found    # the last that were found so far, by whatever sample`,
	}
	cmd.Flags().IntVar(&entries, "entries", 100, fmt.Sprintf("entries to compare, 1 to %d", node.MaxVerify))
	cmd.Flags().BoolVar(&found, "found", false, "compare nothing, list what was found before")
	return operate(cmd, func(ctx context.Context, c admin.Client, out *output) error {
		if found {
			mismatches, err := c.Mismatches(ctx)
			if err != nil {
				return err
			}
			return out.print(mismatches, func(w io.Writer) { mismatchTable(w, mismatches) })
		}
		report, err := c.Verify(ctx, entries)
		if err != nil {
			return err
		}
		if err := out.print(report, func(w io.Writer) {
			fmt.Fprintf(w, "%d equal, %d not equal, %d changed meanwhile, %d could not be compared, %d are not FRESH\n",
				report.Checked, len(report.Mismatches), report.Moved, report.Failed, report.Skipped)
			mismatchTable(w, report.Mismatches)
		}); err != nil {
			return err
		}
		if n := len(report.Mismatches); n > 0 {
			return fmt.Errorf("%d entries were FRESH and not what Postgres has; they were replaced on every replica", n)
		}
		return nil
	})
}

// mismatchTable lists entries that were wrong; of none it says nothing.
func mismatchTable(w io.Writer, mismatches []node.Mismatch) {
	if len(mismatches) == 0 {
		return
	}
	fmt.Fprintln(w, "\nNAMESPACE\tVIEW\tID\tFOUND\tCAME FROM\tWAS READ UNDER\tPOSTGRES HAS IT UNDER\t")
	for _, m := range mismatches {
		fmt.Fprintf(w, "%s\t%s\t%s\t%v ago\t%s\t%s\t%s\t\n", m.Namespace, m.View, m.ID, time.Since(m.At).Round(time.Second), m.Tier, m.Held.Snapshot, m.Loaded.Snapshot)
	}
}
