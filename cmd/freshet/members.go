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

func newMembers() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "members",
		Short: "List the replicas, and how far each is behind Postgres",
		Long: `List the replicas that the asked one knows, by their heartbeats over NATS. BEHIND is
the age of what a replica knows of Postgres, which bounds the staleness of its FRESH
answers; it lags when that is above its budget. A replica that does not answer is
listed with the reason.`,
		Example: `  freshet members
  freshet members --json`,
	}
	return operate(cmd, func(ctx context.Context, c admin.Client, out *output) error {
		all, err := c.StatsOfAll(ctx)
		if err != nil {
			return err
		}
		return out.print(all, func(w io.Writer) {
			fmt.Fprintln(w, "REPLICA\tADDRESS\tBEHIND\tBUDGET\tSTATE")
			for _, a := range all {
				fmt.Fprintf(w, "%s\t%s\t%s\n", a.Replica, a.Address, memberRow(a))
			}
		})
	})
}

// memberRow is what a replica answered, in the columns BEHIND, BUDGET and STATE.
func memberRow(a node.Answer[node.Stats]) string {
	s := a.Answer
	if s == nil {
		return "-\t-\tno answer: " + a.Error
	}
	state := "ok"
	switch {
	case s.PollAge > s.Budget:
		state = "lags: cannot reach Postgres"
	case s.HasNATS && !s.Connected:
		state = "without NATS"
	}
	return fmt.Sprintf("%v\t%v\t%s", roundSeconds(s.PollAge), roundSeconds(s.Budget), state)
}

func roundSeconds(s float64) time.Duration {
	return time.Duration(s * float64(time.Second)).Round(time.Millisecond)
}
