package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strconv"
	"time"

	"github.com/spf13/cobra"

	"github.com/freshet-cache/freshet/node"
	"github.com/freshet-cache/freshet/node/admin"
)

func newGeneration() *cobra.Command {
	return newGroup("generation", "See and change generations: have everything of a namespace loaded again",
		`See and change generations, the numbers that entries are kept under: one of the whole
application, and one of each namespace. Under another number everything is loaded
again; under one of before, what still holds is used again.`,
		newGenerationList(), newGenerationHistory(), newGenerationNext(), newGenerationSet(), newGenerationRollback())
}

func newGenerationList() *cobra.Command {
	cmd := &cobra.Command{
		Use:     "list",
		Short:   "List the present generations",
		Long:    "List the generations of the application and of each namespace, as the asked replica\nknows them.",
		Example: "  freshet generation list",
	}
	return operate(cmd, func(ctx context.Context, c admin.Client, out *output) error {
		g, err := c.Generations(ctx)
		if err != nil {
			return err
		}
		return out.print(g, func(w io.Writer) {
			fmt.Fprintln(w, "NAMESPACE\tGENERATION")
			fmt.Fprintf(w, "(application)\t%d\n", g.Application)
			for _, n := range g.Namespaces {
				fmt.Fprintf(w, "%s\t%d\n", n.Namespace, n.Generation)
			}
		})
	})
}

// whose is the namespace that a command is about, or the application.
type whose struct {
	application bool
	namespace   string // "" = the application
}

// flag gives the command --application.
func (v *whose) flag(cmd *cobra.Command) {
	cmd.Args = cobra.ArbitraryArgs
	cmd.Flags().BoolVar(&v.application, "application", false, "the whole application, instead of a NAMESPACE")
}

// take reads the command's arguments: the namespace, unless it is the application, and more, which it returns.
func (v *whose) take(cmd *cobra.Command, args []string, more ...string) ([]string, error) {
	if v.application {
		return args, arguments(cmd, args, more...)
	}
	if err := arguments(cmd, args, append([]string{"NAMESPACE"}, more...)...); err != nil {
		return nil, err
	}
	v.namespace = args[0]
	return args[1:], nil
}

func (v *whose) String() string {
	if v.application {
		return "the application"
	}
	return v.namespace
}

func newGenerationHistory() *cobra.Command {
	var v whose
	var limit int
	cmd := &cobra.Command{
		Use:   "history {NAMESPACE | --application}",
		Short: "Who changed a generation when and why, the latest first",
		Long:  "Who changed the generation of a namespace, or of the application, when and why, the\nlatest change first.",
		Example: `  freshet generation history product
  freshet generation history --application --limit 5`,
	}
	v.flag(cmd)
	cmd.Flags().IntVar(&limit, "limit", 20, "so many changes, up to 1000")
	cmd.PreRunE = func(cmd *cobra.Command, args []string) error {
		if limit < 1 || limit > 1000 {
			return usage(fmt.Errorf("--limit: %d; want 1 to 1000", limit))
		}
		_, err := v.take(cmd, args)
		return err
	}
	return operate(cmd, func(ctx context.Context, c admin.Client, out *output) error {
		events, err := c.GenerationHistory(ctx, v.namespace, limit)
		if err != nil {
			return err
		}
		return out.print(events, func(w io.Writer) {
			fmt.Fprintln(w, "AT\tFROM\tTO\tACTION\tBY\tWHY")
			for _, e := range events {
				fmt.Fprintf(w, "%s\t%d\t%d\t%s\t%q\t%q\n", e.At.Format(time.RFC3339), e.Previous, e.Generation, e.Action, e.By, e.Why)
			}
		})
	})
}

// generationChange is what the commands have in common that change one.
type generationChange struct {
	whose
	node.GenerationChange
}

// change gives the command its flags, reads its arguments, and has it ask before it does what the text says.
func (v *generationChange) change(cmd *cobra.Command, text string, more []string, take func(rest []string) error) {
	v.flag(cmd)
	f := cmd.Flags()
	f.StringVar(&v.Why, "why", "", "the reason, for the history (required)")
	f.StringVar(&v.By, "by", "", "who does it, for the history; not given = whom the credential names")
	f.Uint32Var(&v.Expect, "expect", 0, "do nothing unless the generation is this one; 0 = whatever it is")
	confirmed(cmd, func(args []string) (string, error) {
		rest, err := v.take(cmd, args, more...)
		if err == nil {
			err = take(rest)
		}
		if v.Why == "" {
			err = errors.Join(err, errors.New("--why: missing; want the reason, for the history"))
		}
		return fmt.Sprintf(text, v.whose.String()), usage(err)
	})
}

// show prints what the generation has become.
func (v *generationChange) show(out *output, is admin.ChangedGeneration, err error) error {
	if err != nil {
		return err
	}
	return out.print(is, func(w io.Writer) {
		fmt.Fprintf(w, "the generation of %s is %d\ntoken %s\n", v.whose.String(), is.Generation, is.Token)
	})
}

func newGenerationNext() *cobra.Command {
	var v generationChange
	cmd := &cobra.Command{
		Use:   "next {NAMESPACE | --application}",
		Short: "Have everything of a namespace, or of the application, loaded again",
		Long: `Give a namespace, or the whole application, a generation that it has never had:
everything that is cached of it is loaded again, which costs the source as much as a
cold start. ` + "`freshet generation rollback`" + ` goes back.`,
		Example: `  freshet generation next product --why "prices were imported twice" --admin-token-file admin-token
  freshet generation next product --why "the same" --expect 3 --yes
  freshet generation next --application --why "another encoding"`,
	}
	v.change(cmd, "everything that is cached of %s will be loaded again", nil, func([]string) error { return nil })
	return operate(cmd, func(ctx context.Context, c admin.Client, out *output) error {
		is, err := c.NextGeneration(ctx, v.namespace, v.GenerationChange)
		return v.show(out, is, err)
	})
}

func newGenerationSet() *cobra.Command {
	var v generationChange
	var number uint32
	cmd := &cobra.Command{
		Use:   "set {NAMESPACE | --application} NUMBER",
		Short: "Give a namespace, or the application, a generation of your choice",
		Long: `Give a namespace, or the whole application, a generation of your choice. One that it
has had before comes back as by ` + "`freshet generation rollback`" + `; under another one
everything is loaded again.`,
		Example: `  freshet generation set product 7 --why "as in the other region" --admin-token-file admin-token`,
	}
	v.change(cmd, "everything that is cached of %s under the present generation will not be used any more", []string{"NUMBER"}, func(rest []string) error {
		var err error
		number, err = generationNumber("NUMBER", rest[0])
		return err
	})
	return operate(cmd, func(ctx context.Context, c admin.Client, out *output) error {
		is, err := c.SetGeneration(ctx, v.namespace, number, v.GenerationChange)
		return v.show(out, is, err)
	})
}

func newGenerationRollback() *cobra.Command {
	var v generationChange
	var to uint32
	cmd := &cobra.Command{
		Use:   "rollback {NAMESPACE | --application}",
		Short: "Go back to a generation of before",
		Long: `Go back to the generation before the present one, or to an earlier one. Of its entries
those are used that still hold: what has changed meanwhile is loaded again.`,
		Example: `  freshet generation rollback product --why "they were right" --admin-token-file admin-token
  freshet generation rollback product --to 3 --why "they were right"`,
	}
	v.change(cmd, "everything that is cached of %s under the present generation will not be used any more", nil, func([]string) error { return nil })
	cmd.Flags().Uint32Var(&to, "to", 0, "a generation that it has had; 0 = the one before the present one")
	return operate(cmd, func(ctx context.Context, c admin.Client, out *output) error {
		is, err := c.RollbackGeneration(ctx, v.namespace, to, v.GenerationChange)
		return v.show(out, is, err)
	})
}

func generationNumber(name, text string) (uint32, error) {
	n, err := strconv.ParseUint(text, 10, 32)
	if err != nil || n == 0 {
		return 0, fmt.Errorf("%s: %.40q; want 1 to 4294967295", name, text)
	}
	return uint32(n), nil
}
