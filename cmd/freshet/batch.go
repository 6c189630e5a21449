package main

import (
	"context"
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"

	"github.com/freshet-cache/freshet/node/admin"
)

func newBatch() *cobra.Command {
	return newGroup("batch", "See, run and drop named batches of changes",
		`See, run and drop the named batches of changes that wait in Postgres: those of
`+"`freshet invalidate --batch`"+`, of the library and of freshet.batch_add.`,
		newBatchList(), newBatchRun(), newBatchDrop())
}

func newBatchList() *cobra.Command {
	cmd := &cobra.Command{
		Use:     "list",
		Short:   "List the batches with something in them",
		Long:    "List the batches with something in them, by name. DUE is when one runs by itself.",
		Example: "  freshet batch list",
	}
	return operate(cmd, func(ctx context.Context, c admin.Client, out *output) error {
		batches, err := c.Batches(ctx)
		if err != nil {
			return err
		}
		return out.print(batches, func(w io.Writer) {
			fmt.Fprintln(w, "BATCH\tCHANGES\tSINCE\tDUE")
			for _, b := range batches {
				due := "-"
				if !b.Due.IsZero() {
					due = b.Due.Format(time.RFC3339)
				}
				fmt.Fprintf(w, "%q\t%d\t%s\t%s\n", b.Name, b.Entries, b.Since.Format(time.RFC3339), due)
			}
		})
	})
}

func newBatchRun() *cobra.Command {
	cmd := &cobra.Command{
		Use:     "run NAME",
		Short:   "Have what is in a batch count as changed, now",
		Long:    "Have what is in a batch count as changed, now: what is cached of it is loaded again.",
		Example: "  freshet batch run nightly --admin-token-file admin-token",
		Args:    oneName,
	}
	return operate(cmd, func(ctx context.Context, c admin.Client, out *output) error {
		ran, err := c.RunBatch(ctx, cmd.Flags().Arg(0))
		if err != nil {
			return err
		}
		return out.print(admin.RanBatch{Ran: ran}, func(w io.Writer) { fmt.Fprintf(w, "%d changes count\n", ran) })
	})
}

func newBatchDrop() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "drop NAME",
		Short: "Forget what is in a batch",
		Long: `Forget what is in a batch, as if it had not changed. What did change goes on being
served from before, if nothing else tells of it.`,
		Example: "  freshet batch drop nightly --admin-token-file admin-token",
		Args:    oneName,
	}
	confirmed(cmd, func(args []string) (string, error) {
		return fmt.Sprintf("what the batch %q has will never count as changed", args[0]), nil
	})
	return operate(cmd, func(ctx context.Context, c admin.Client, out *output) error {
		dropped, err := c.DropBatch(ctx, cmd.Flags().Arg(0))
		if err != nil {
			return err
		}
		return out.print(admin.DroppedBatch{Dropped: dropped}, func(w io.Writer) { fmt.Fprintf(w, "%d changes are forgotten\n", dropped) })
	})
}
