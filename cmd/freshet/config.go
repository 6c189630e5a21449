package main

import (
	"fmt"
	"slices"

	"github.com/spf13/cobra"
)

func newConfig() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "config",
		Short: "Show and check the configuration of a replica",
		Long: `Show and check the configuration that ` + "`freshet serve`" + ` would run with: from defaults, a YAML
file, FRESHET_* variables and flags, each over the one before.`,
		Args: noArguments,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(newConfigPrint(), newConfigCheck(), newConfigDefaults())
	return cmd
}

func newConfigPrint() *cobra.Command {
	var format string
	cmd := &cobra.Command{
		Use:   "print",
		Short: "Print the configuration, without secrets, and where each value is from",
		Long: `Print every key of the configuration with the value that it has and where that is from:
default, FILE:LINE, env VARIABLE or flag --NAME. Secrets, and passwords in URLs, are
not shown. It takes the flags of ` + "`freshet serve`" + `.`,
		Example: `  freshet config print --config freshet.yaml
  freshet config print --config freshet.yaml -o json`,
		Args: noArguments,
	}
	c := configure(cmd)
	cmd.Flags().StringVarP(&format, "output", "o", "yaml", "yaml or json")
	formats := []string{"yaml", "json"}
	must(cmd.RegisterFlagCompletionFunc("output", cobra.FixedCompletions(formats, cobra.ShellCompDirectiveNoFileComp)))
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if !slices.Contains(formats, format) {
			return usage(fmt.Errorf("--output: %q; want yaml or json", format))
		}
		if err := c.load(cmd); err != nil {
			return err
		}
		if format == "json" {
			return c.settings.PrintJSON(cmd.OutOrStdout())
		}
		return c.settings.PrintYAML(cmd.OutOrStdout())
	}
	return cmd
}

func newConfigCheck() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "check",
		Short: "Check the configuration, and report all that is wrong with it",
		Long: `Check the configuration as ` + "`freshet serve`" + ` does before it starts, the files that it names
among it, and report all problems at once: with line, column and excerpt those of the
file, with their names those of variables and flags. It connects to no server. It takes
the flags of ` + "`freshet serve`" + `.

Exit codes: 0 nothing is wrong; 2 something is.`,
		Example: `  freshet config check --config freshet.yaml`,
		Args:    noArguments,
	}
	c := configure(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if err := c.load(cmd); err != nil {
			return err
		}
		said := 0
		for _, key := range c.settings.Shown() {
			if key.Origin != "default" {
				said++
			}
		}
		_, err := fmt.Fprintf(cmd.OutOrStdout(), "the configuration is right: %d keys are given, the others have their defaults\n", said)
		return err
	}
	return cmd
}

func newConfigDefaults() *cobra.Command {
	return &cobra.Command{
		Use:   "defaults",
		Short: "Print a configuration file with every key, its meaning and its default",
		Long: `Print a configuration file with every key as a comment: what it means, what it may be,
and its default. As it is, it says nothing; take the # away before what shall be
another.`,
		Example: `  freshet config defaults > freshet.yaml`,
		Args:    noArguments,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return configure(&cobra.Command{}).settings.PrintDefaults(cmd.OutOrStdout())
		},
	}
}
