package main

import (
	"context"
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"github.com/freshet-cache/freshet/node/admin"
)

func newStats() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "stats",
		Short: "Show what every replica has counted since it was started",
		Long: `Show what every replica has counted since it was started, by view of a namespace:
reads, the shares of them that were answered by this replica's memory (L1), by Redis
(L2) and by the replica that owns the entity, the loads from Postgres, the answers
that were STALE or failed, and what L1 holds. --json has all counts.`,
		Example: `  freshet stats
  freshet stats --json | jq '.[].answer.source'`,
	}
	return operate(cmd, func(ctx context.Context, c admin.Client, out *output) error {
		all, err := c.StatsOfAll(ctx)
		if err != nil {
			return err
		}
		return out.print(all, func(w io.Writer) {
			fmt.Fprintln(w, "REPLICA\tNAMESPACE\tVIEW\tREADS\tL1\tL2\tOWNER\tLOADS\tSTALE\tERRORS\tENTRIES\tL1 MEMORY\tEVICTED\t")
			for _, a := range all {
				if a.Answer == nil {
					fmt.Fprintf(w, "%s\tno answer: %s\t\n", a.Replica, a.Error)
					continue
				}
				for _, v := range a.Answer.Namespaces {
					fmt.Fprintf(w, "%s\t%s\t%s\t%d\t%s\t%s\t%s\t%d\t%d\t%d\t%d\t%s of %s\t%d\t\n", a.Replica, v.Namespace, v.View, v.Reads,
						share(v.L1Hits, v.Reads), share(v.L2Hits, v.Reads), share(v.OwnerHits, v.Reads), v.Loads, v.Stale, v.Errors,
						v.L1Entries, size(v.L1Bytes), size(v.L1MaxBytes), v.L1Evictions)
				}
			}
		})
	})
}

func newSummary() *cobra.Command {
	var reset, one bool
	cmd := &cobra.Command{
		Use:   "summary",
		Short: "Show what the replicas did together since the window began",
		Long: `Show what the replicas did together since the window began: when they were started,
or since the last --reset. HITS are the answers of L1, L2 and owners. Metrics and
` + "`freshet stats`" + ` know no window and count on.

--reset, which wants the admin token, shows the summary and begins a new window on
every replica.`,
		Example: `  freshet summary --reset --admin-token-file token && sleep 60 && freshet summary`,
	}
	cmd.Flags().BoolVar(&reset, "reset", false, "begin a new window, after showing the one that ends")
	cmd.Flags().BoolVar(&one, "one", false, "of the asked replica alone")
	return operate(cmd, func(ctx context.Context, c admin.Client, out *output) error {
		get := c.Summary
		if reset {
			get = c.ResetSummary
		}
		summed, err := get(ctx, !one)
		if err != nil {
			return err
		}
		return out.print(summed, func(w io.Writer) {
			s := summed.Sum
			fmt.Fprintf(w, "%d of %d replicas, %v since %s\n\n", s.Replicas, len(summed.Replicas), roundSeconds(s.Seconds), s.Since.Local().Format("2006-01-02 15:04:05"))
			fmt.Fprintln(w, "NAMESPACE\tVIEW\tREADS\tHITS\tL1\tL2\tOWNER\tLOADS\tPER LOAD\tSTALE\tERRORS\tENTRIES\tL1 MEMORY\t")
			for _, v := range s.Namespaces {
				perLoad := "-"
				if v.Loads > 0 {
					perLoad = fmt.Sprintf("%.2f ms", 1000*v.LoadSeconds/float64(v.Loads))
				}
				fmt.Fprintf(w, "%s\t%s\t%d\t%s\t%s\t%s\t%s\t%d\t%s\t%d\t%d\t%d\t%s\t\n", v.Namespace, v.View, v.Reads, share(v.Hits, v.Reads),
					share(v.L1Hits, v.Reads), share(v.L2Hits, v.Reads), share(v.OwnerHits, v.Reads), v.Loads, perLoad, v.Stale, v.Errors, v.L1Entries, size(v.L1Bytes))
			}
			for _, a := range summed.Replicas {
				if a.Answer == nil {
					fmt.Fprintf(w, "\nwithout %s, which gave no answer: %s\n", a.Replica, a.Error)
				}
			}
		})
	})
}
