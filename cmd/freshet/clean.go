package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"

	"github.com/freshet-cache/freshet/node"
	"github.com/freshet-cache/freshet/node/admin"
)

func newClean() *cobra.Command {
	return newGroup("clean", "Remove entries from Redis, in the background of a replica",
		`Remove entries from Redis: all, those of a namespace, of ids that begin so or match a
pattern, or of old generations. The replica that is asked goes through the keys of
every primary by cursor, at a bounded rate, one clean-up at a time. It saves space:
nothing becomes fresher by it without --invalidate.`,
		newCleanStart(), newCleanStatus(), newCleanStop())
}

func newCleanStart() *cobra.Command {
	var v whose
	var c admin.Cleanup
	cmd := &cobra.Command{
		Use:   "start {NAMESPACE | --application}",
		Short: "Start a clean-up on the asked replica",
		Long: `Start a clean-up on the asked replica, which goes on in its background. A pattern has *
for any characters, ? for one, and \ before one that is meant as it is.`,
		Example: `  freshet clean start product --prefix draft- --admin-token-file admin-token
  freshet clean start product --pattern '*:preview' --invalidate
  freshet clean start --application --old-generations --rate 1000`,
	}
	v.flag(cmd)
	f := cmd.Flags()
	f.StringVar(&c.Prefix, "prefix", "", "only ids that begin so")
	f.StringVar(&c.Pattern, "pattern", "", "only ids that match")
	f.BoolVar(&c.OldGenerations, "old-generations", false, "only entries of other generations than the present one")
	f.BoolVar(&c.Invalidate, "invalidate", false, "what is found has changed as well")
	f.IntVar(&c.Rate, "rate", 0, "keys gone through in a second, up to 1000000; 0 = 10000")
	confirmed(cmd, func(args []string) (string, error) {
		_, err := v.take(cmd, args)
		some := c.Prefix != "" || c.Pattern != ""
		if c.Prefix != "" && c.Pattern != "" {
			err = errors.Join(err, errors.New("--pattern: want it without --prefix"))
		}
		if v.application && (some || c.Invalidate) {
			err = errors.Join(err, errors.New("--application: want a NAMESPACE with --prefix, --pattern and --invalidate"))
		}
		if err != nil || some || c.OldGenerations {
			return "", usage(err)
		}
		return fmt.Sprintf("everything of %s will be removed from Redis", v.String()), nil
	})
	return operate(cmd, func(ctx context.Context, client admin.Client, out *output) error {
		c.Namespace = v.namespace
		return showClean(out)(client.StartClean(ctx, c))
	})
}

func newCleanStatus() *cobra.Command {
	cmd := &cobra.Command{
		Use:     "status",
		Short:   "Show the clean-up of the asked replica",
		Long:    "Show how far the clean-up of the asked replica has come, or what became of its last one.",
		Example: "  freshet clean status --admin-url http://10.0.0.7:9090",
	}
	return operate(cmd, func(ctx context.Context, c admin.Client, out *output) error {
		return showClean(out)(c.CleanStatus(ctx))
	})
}

func newCleanStop() *cobra.Command {
	cmd := &cobra.Command{
		Use:     "stop",
		Short:   "End the clean-up of the asked replica",
		Long:    "End the clean-up of the asked replica. What it has removed stays removed.",
		Example: "  freshet clean stop --admin-token-file admin-token",
	}
	return operate(cmd, func(ctx context.Context, c admin.Client, out *output) error { return showClean(out)(c.StopClean(ctx)) })
}

// showClean prints what a clean-up has done.
func showClean(out *output) func(s node.CleanStatus, err error) error {
	return func(s node.CleanStatus, err error) error {
		if err != nil {
			return err
		}
		return out.print(s, func(w io.Writer) {
			if s.Began.IsZero() {
				fmt.Fprintln(w, "there was no clean-up since the replica was opened")
				return
			}
			state := "done"
			switch {
			case s.Running:
				state = fmt.Sprintf("at %s, %d of %d keys", s.Primary, s.PrimaryScanned, s.PrimaryKeys)
			case s.Error != "":
				state = "ended early"
			}
			fmt.Fprintf(w, "began\t%s\nstate\t%s\nscanned\t%d\nremoved\t%d\ninvalidated\t%d\n", s.Began.Format(time.RFC3339), state, s.Scanned, s.Removed, s.Invalidated)
			if s.Error != "" {
				fmt.Fprintf(w, "error\t%s\n", s.Error)
			}
		})
	}
}
