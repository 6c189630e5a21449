package main

import (
	"context"
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"github.com/freshet-cache/freshet/node/admin"
)

func newMembers() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "members",
		Short: "List the replicas, and how far each is behind Postgres",
		Long: `List the replicas that the asked one, marked with *, knows by their heartbeats over
NATS. BEHIND is the age of what a replica knows of Postgres, which bounds the staleness
of its FRESH answers; it lags when that is above its budget. KNOWS is how many
replicas it knows itself. A replica that does not answer is listed with the reason,
and vanishes when its heartbeats have failed to come for some seconds; ask others then.`,
		Example: `  freshet members
  freshet members --json`,
	}
	return operate(cmd, func(ctx context.Context, c admin.Client, out *output) error {
		m, err := c.Members(ctx)
		if err != nil {
			return err
		}
		return out.print(m, func(w io.Writer) {
			fmt.Fprintln(w, "REPLICA\tADDRESS\tBEHIND\tBUDGET\tLOADS\tKNOWS\tSTATE\t")
			for _, r := range m.Replicas {
				name := r.Replica
				if name == m.Asked {
					name += " *"
				}
				budget, knows := roundSeconds(r.Budget).String(), fmt.Sprint(r.Members)
				if r.State == "silent" {
					budget, knows = "-", "-"
				}
				fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%d\t%s\t%s\t\n", name, r.Address, behind(r.PollAge), budget, r.Loads, knows, memberState(r))
			}
		})
	})
}

// memberState is a member's state in words.
func memberState(r admin.Member) string {
	switch r.State {
	case "lagging":
		return "lags: cannot reach Postgres"
	case "cut off":
		return "has no connection to NATS: learns of changes by polling"
	case "silent":
		return "no answer: " + r.Error
	}
	return r.State
}
