package main

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

func newRoot() *cobra.Command {
	root := &cobra.Command{
		Use:   "freshet",
		Short: "Coherent caches in front of Postgres",
		Long: `Freshet keeps values from Postgres in the memory of every replica and in a Redis
Cluster, and knows of each answer whether it is still what Postgres says.

` + "`freshet up`" + ` shows it: three replicas of a product catalogue on real servers, behind
a load balancer, in one command. Every flag can also be given as an environment
variable, FRESHET_ and the flag in capitals (--max-stale: FRESHET_MAX_STALE); the
flag wins.`,
		SilenceErrors:     true,
		SilenceUsage:      true,
		PersistentPreRunE: func(cmd *cobra.Command, _ []string) error { return usage(environment(cmd.Flags())) },
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) > 0 {
				return usage(fmt.Errorf("unknown command %q; `freshet help` lists the commands", args[0]))
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error {
		return usage(fmt.Errorf("%w; see `%s --help`", err, cmd.CommandPath()))
	})
	root.AddCommand(newUp(), newServe(), newMigrate(), newVerify(), newVersion(), newMembers(), newConfig())
	root.AddCommand(newInvalidate(), newGeneration(), newBatch(), newQueue(), newClean())
	root.AddCommand(newExplain(), newTop(), newStats(), newSummary(), newNamespaces(), newShards(), newRedis(), newPostgres(), newWatches(), newSample())
	group(root)
	return root
}

// group puts the commands into groups for the help, by what they are for. One that is in none is listed at the end.
func group(root *cobra.Command) {
	for _, g := range []struct {
		id, title string
		commands  []string
	}{
		{"see", "See running replicas:", []string{"explain", "top", "members", "stats", "summary", "namespaces", "shards", "redis", "postgres", "watches", "sample"}},
		{"steer", "Steer running replicas:", []string{"invalidate", "generation", "batch", "queue", "clean"}},
		{"run", "Run:", []string{"up", "serve", "migrate", "config", "verify"}},
	} {
		for _, cmd := range root.Commands() {
			if slices.Contains(g.commands, cmd.Name()) {
				cmd.GroupID = g.id
			}
		}
		if slices.ContainsFunc(root.Commands(), func(cmd *cobra.Command) bool { return cmd.GroupID == g.id }) {
			root.AddGroup(&cobra.Group{ID: g.id, Title: g.title})
		}
	}
}

// noArguments refuses arguments, which no command but completion takes.
func noArguments(cmd *cobra.Command, args []string) error {
	if len(args) == 0 {
		return nil
	}
	return usage(fmt.Errorf("%s takes no argument, got %q; see `%s --help`", cmd.CommandPath(), args[0], cmd.CommandPath()))
}

// environment sets the flags that the command line left alone from their variables, but for the keys of a configuration. It
// reports all unusable variables at once.
func environment(flags *pflag.FlagSet) error {
	var problems []error
	flags.VisitAll(func(f *pflag.Flag) {
		name := variable(f.Name)
		value, given := os.LookupEnv(name)
		if _, isKey := f.Annotations[keyOfFlag]; isKey || f.Changed || !given || f.Name == "help" {
			return
		}
		if err := flags.Set(f.Name, value); err != nil {
			// pflag's text names the flag; the user wrote the variable.
			cause := err
			if invalid, ok := errors.AsType[*pflag.InvalidValueError](err); ok {
				cause = invalid.Unwrap()
			}
			problems = append(problems, fmt.Errorf("%s: %w", name, cause))
		}
	})
	return errors.Join(problems...)
}

// prefix begins the variables of Freshet.
const prefix = "FRESHET_"

// variable is the environment variable of a flag.
func variable(flag string) string {
	return prefix + strings.ToUpper(strings.ReplaceAll(flag, "-", "_"))
}
