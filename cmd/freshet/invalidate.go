package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"

	"github.com/freshet-cache/freshet/node/admin"
)

func newInvalidate() *cobra.Command {
	var v admin.Invalidation
	var after, grace time.Duration
	cmd := &cobra.Command{
		Use:   "invalidate {NAMESPACE ID... | NAMESPACE --all | --tag TAG...}",
		Short: "Say what has changed, at once or later",
		Long: `Say that entities have changed, or everything of a namespace, or every entry with a
tag, whatever its namespace: what is cached of it is loaded again. With neither --after
nor --batch it counts when the command returns. --after delays it; --batch has it wait
in a named batch, which ` + "`freshet batch run`" + ` runs, or the time of --after. --grace lets
values from before be served a while longer, labelled, while they are loaded anew.

It prints a token: a read with it knows of the change on whichever replica.`,
		Example: `  freshet invalidate product 42 43 --admin-token-file admin-token
  freshet invalidate product 42 --view detail --grace 5s
  freshet invalidate --tag category:7 --batch nightly --after 6h
  freshet invalidate product --all`,
		Args: cobra.ArbitraryArgs,
	}
	f := cmd.Flags()
	f.StringArrayVar(&v.Tags, "tag", nil, "a tag of entries, instead of a namespace; may be given several times")
	f.BoolVar(&v.All, "all", false, "everything of the namespace")
	f.StringVar(&v.View, "view", "", "only this view of the ids")
	f.DurationVar(&after, "after", 0, "delay, up to a year")
	f.DurationVar(&grace, "grace", 0, "how long values from before may still be served, up to an hour")
	f.StringVar(&v.Batch, "batch", "", "named batch that it waits in")
	confirmed(cmd, func(args []string) (string, error) {
		var problems []error
		switch {
		case len(v.Tags) > 0 && (len(args) > 0 || v.All):
			problems = append(problems, errors.New("--tag: tags are of all namespaces; want neither NAMESPACE nor --all with it"))
		case len(v.Tags) > 0:
		case len(args) == 0:
			problems = append(problems, errors.New("NAMESPACE is missing; want it with an ID or --all, or --tag"))
		case v.All && len(args) > 1:
			problems = append(problems, errors.New("--all: is everything of the namespace; want no ID with it"))
		case !v.All && len(args) == 1:
			problems = append(problems, errors.New("ID is missing; want one, or --all for everything of the namespace"))
		}
		if after < 0 {
			problems = append(problems, fmt.Errorf("--after: %v; want more than 0", after))
		}
		if grace < 0 {
			problems = append(problems, fmt.Errorf("--grace: %v; want more than 0", grace))
		}
		if len(args) > 0 {
			v.Namespace = args[0]
		}
		if len(args) > 1 {
			v.IDs = args[1:]
		}
		v.After, v.Grace = after.Seconds(), grace.Seconds()
		if err := errors.Join(problems...); err != nil || !v.All {
			return "", usage(err)
		}
		return fmt.Sprintf("everything that is cached of %q will be loaded again", v.Namespace), nil
	})
	return operate(cmd, func(ctx context.Context, c admin.Client, out *output) error {
		is, err := c.Invalidate(ctx, v)
		if err != nil {
			return err
		}
		return out.print(is, func(w io.Writer) {
			how := "has changed"
			switch {
			case v.Batch != "":
				how = fmt.Sprintf("waits in the batch %q", v.Batch)
			case after > 0:
				how = fmt.Sprintf("changes in %v", after)
			}
			fmt.Fprintf(w, "%s %s\ntoken %s\n", subject(v), how, is.Token)
		})
	})
}

// subject is what an invalidation is about, in a few words.
func subject(v admin.Invalidation) string {
	switch {
	case v.All:
		return "everything of " + v.Namespace
	case len(v.Tags) == 1:
		return "what has the tag"
	case v.Tags != nil:
		return fmt.Sprintf("what has any of %d tags", len(v.Tags))
	case len(v.IDs) == 1:
		return v.Namespace + " " + v.IDs[0]
	}
	return fmt.Sprintf("each of %d ids of %s", len(v.IDs), v.Namespace)
}
