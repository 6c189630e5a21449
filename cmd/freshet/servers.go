package main

import (
	"context"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/freshet-cache/freshet/node"
	"github.com/freshet-cache/freshet/node/admin"
)

func newShards() *cobra.Command {
	var one bool
	cmd := &cobra.Command{
		Use:   "shards",
		Short: "Show the breaker of every Redis shard, as each replica sees it",
		Long: `Show the breaker of every Redis shard, as each replica sees it. While one is open, the
keys of its slots are asked of the replica that owns them, or of Postgres; the other
shards go on. "unreached" alone means that no server has told who there is. What the
servers say of themselves: ` + "`freshet redis`.",
		Example: `  freshet shards`,
	}
	cmd.Flags().BoolVar(&one, "one", false, "as the asked replica alone sees them")
	return operate(cmd, func(ctx context.Context, c admin.Client, out *output) error {
		told, err := c.Shards(ctx, !one)
		if err != nil {
			return err
		}
		return out.print(told, func(w io.Writer) {
			fmt.Fprintln(w, "REPLICA\tSHARD\tSLOTS\tBREAKER\tREQUESTS\tFAILURES\tREFUSED\t")
			for _, a := range told {
				switch {
				case a.Answer == nil:
					fmt.Fprintf(w, "%s\tno answer: %s\t\n", a.Replica, a.Error)
				case len(a.Answer.Shards) == 0:
					fmt.Fprintf(w, "%s\tworks without Redis\t\n", a.Replica)
				default:
					for _, s := range a.Answer.Shards {
						state := s.State
						if !s.Connected {
							state = "open: no connection"
						}
						fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%d\t%d\t%d\t\n", a.Replica, s.Name, orDash(s.Slots), state, s.Requests, s.Failures, s.Refused)
					}
				}
			}
		})
	})
}

func newRedis() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "redis",
		Short: "Show what every server of the Redis Cluster says of itself",
		Long: `Show what every server of the Redis Cluster says of itself, asked by one replica within
3 seconds. A server that does not answer is listed with the reason, and with what the
others say of it. HITS counts all clients of the server, not Freshet alone. LINK is a
replica's to its primary.`,
		Example: `  freshet redis`,
	}
	return operate(cmd, func(ctx context.Context, c admin.Client, out *output) error {
		r, err := c.Redis(ctx)
		if err != nil {
			return err
		}
		return out.print(r, func(w io.Writer) {
			if r.State == "none" {
				fmt.Fprintln(w, "the replicas work without Redis")
				return
			}
			fmt.Fprintf(w, "cluster state %s, %d of 16384 slots are served\n\n", r.State, r.Slots)
			fmt.Fprintln(w, "SERVER\tROLE\tSLOTS\tVERSION\tUP\tMEMORY\tPOLICY\tKEYS\tHITS\tEVICTED\tOPS/S\tCLIENTS\tLINK\tSTATE\t")
			for _, s := range r.Servers {
				fmt.Fprintln(w, redisRow(s))
			}
		})
	})
}

// redisRow is a server in a line.
func redisRow(s node.RedisServer) string {
	var state []string
	for _, part := range []struct{ is, text string }{
		{s.Flags, "the cluster says: " + s.Flags}, {s.Error, "no answer: " + s.Error},
	} {
		if part.is != "" {
			state = append(state, part.text)
		}
	}
	if s.ClusterState == "fail" {
		state = append(state, "says that the cluster is down")
	}
	if state == nil {
		state = []string{"ok"}
	}
	columns := []string{s.Address, orDash(s.Role), orDash(s.Slots)}
	if s.Error != "" {
		columns = append(columns, slices.Repeat([]string{"-"}, 10)...)
	} else {
		limit := "no limit"
		if s.MemoryMax > 0 {
			limit = size(s.MemoryMax)
		}
		link := s.Link
		if s.Role == "primary" {
			link = fmt.Sprintf("replicas: %d", s.Replicas)
		} else if s.Behind > 0 {
			link += ", " + size(s.Behind) + " behind"
		}
		columns = append(columns, s.Version, roundSeconds(float64(s.UptimeSeconds)).String(), size(s.MemoryUsed)+" of "+limit, s.MemoryPolicy, fmt.Sprint(s.Keys),
			share(uint64(s.Hits), uint64(s.Hits+s.Misses)), fmt.Sprint(s.Evicted), fmt.Sprint(s.Operations), fmt.Sprint(s.Clients), link)
	}
	return strings.Join(append(columns, strings.Join(state, "; ")), "\t") + "\t"
}

func newPostgres() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "postgres",
		Short: "Show what Postgres says of itself, its clients and the log of changes",
		Long: `Show what Postgres says of itself, of its clients and standbys, and of freshet.log,
asked by one replica within 5 seconds. What the replica's role may not see is missing:
grant it pg_read_all_stats.`,
		Example: `  freshet postgres`,
	}
	return operate(cmd, func(ctx context.Context, c admin.Client, out *output) error {
		p, err := c.Postgres(ctx)
		if err != nil {
			return err
		}
		return out.print(p, func(w io.Writer) { printPostgres(w, p) })
	})
}

func printPostgres(w io.Writer, p node.PostgresSurvey) {
	for _, problem := range p.Problems {
		fmt.Fprintf(w, "problem\t%s\t\n", problem)
	}
	if !p.Answers {
		return
	}
	role := "primary"
	if !p.Primary {
		role = "STANDBY: what is read here cannot be FRESH"
	}
	schema := fmt.Sprint(p.Schema)
	if p.Schema != p.WantedSchema {
		schema += fmt.Sprintf("; the replica wants %d: run `freshet migrate`", p.WantedSchema)
	}
	timeline := p.Timeline
	if timeline == "0" || timeline == "" {
		timeline = "none has begun"
	}
	for _, row := range [][2]string{
		{"server", fmt.Sprintf("%s, database %s, up since %s", p.Version, p.Database, p.Started.Local().Format("2006-01-02 15:04:05"))},
		{"role", role},
		{"connections", fmt.Sprintf("%d of %d", p.Connections, p.MaxConnections)},
		{"oldest transaction", roundSeconds(p.OldestTransaction).String()},
		{"schema version", schema},
		{"timeline", timeline},
		{"log of changes", fmt.Sprintf("%s, about %d rows, the oldest of %v ago", size(p.Log.Bytes), p.Log.Rows, roundSeconds(p.Log.Oldest))},
		{"horizon", fmt.Sprintf("transaction %s; the next was taken %v ago", orDash(p.Log.Horizon), roundSeconds(p.Log.HorizonNext))},
	} {
		fmt.Fprintf(w, "%s\t%s\t\n", row[0], row[1])
	}
	fmt.Fprintln(w, "\nCLIENT\tCONNECTIONS\tACTIVE\tIDLE IN TRANSACTION\t")
	for _, c := range p.Clients {
		fmt.Fprintf(w, "%s\t%d\t%d\t%d\t\n", orDash(c.Application), c.Connections, c.Active, c.InWait)
	}
	if len(p.Standbys) > 0 {
		fmt.Fprintln(w, "\nSTANDBY\tSTATE\tSYNC\tLAG\tBEHIND\t")
	}
	for _, s := range p.Standbys {
		fmt.Fprintf(w, "%s\t%s\t%s\t%v\t%s\t\n", orDash(s.Application), s.State, s.Sync, roundSeconds(s.Lag), size(s.Behind))
	}
}

func newWatches() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "watches",
		Short: "List the watched tables, and what is wrong with their triggers",
		Long: `List the tables that tell of their changes (freshet.watch), and what the replicas found
wrong when they last checked. While there is a problem, changes may go unlogged, and
nothing cached of its namespace is FRESH: ` + "`select freshet.rewatch('TABLE')`" + ` mends it.`,
		Example: `  freshet watches`,
	}
	return operate(cmd, func(ctx context.Context, c admin.Client, out *output) error {
		v, err := c.Watches(ctx, true)
		if err != nil {
			return err
		}
		return out.print(v, func(w io.Writer) {
			if v.Error != "" {
				fmt.Fprintf(w, "the tables cannot be listed: %s\n\n", v.Error)
			} else {
				fmt.Fprintln(w, "TABLE\tNAMESPACE\tID\tTAGS\t")
			}
			for _, t := range v.Tables {
				fmt.Fprintf(w, "%s\t%s\t%s\t%s\t\n", t.Table, t.Namespace, orDash(strings.Join(t.ID, ", ")), orDash(strings.Join(t.Tags, " ")))
			}
			fmt.Fprintln(w, "\nREPLICA\tCHECKED\tPROBLEM\t")
			for _, a := range v.Replicas {
				switch {
				case a.Answer == nil:
					fmt.Fprintf(w, "%s\t-\tno answer: %s\t\n", a.Replica, a.Error)
				case len(a.Answer.Drift) == 0:
					fmt.Fprintf(w, "%s\t%s ago\tnone\t\n", a.Replica, behind(a.Answer.Age))
				default:
					for _, d := range a.Answer.Drift {
						fmt.Fprintf(w, "%s\t%s ago\t%s (%s): %s\t\n", a.Replica, behind(a.Answer.Age), d.Relation, d.Namespace, d.Problem)
					}
				}
			}
		})
	})
}
