package main

import (
	"os"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/freshet-cache/freshet/internal/replica"
	"github.com/freshet-cache/freshet/node/nodeconfig"
)

// configuration is that of a replica, by a file, the environment and flags.
type configuration struct {
	replica.Config

	settings *nodeconfig.Settings
	file     string
	set      []string
}

// flagsOfKeys are the keys that have a flag of their own; --set reaches the others.
func flagsOfKeys() [][2]string {
	return [][2]string{
		{"app", "app"},
		{"id", "id"},
		{"listen", "listen"},
		{"address", "advertise"},
		{"postgres.dsn", "postgres"},
		{"redis.addrs", "redis"},
		{"redis.username", "redis-user"},
		{"redis.password", "redis-password"},
		{"nats.urls", "nats"},
		{"budget", "budget"},
		{"max_stale", "max-stale"},
		{"start_timeout", "start-timeout"},
		{"drain_delay", "drain-delay"},
		{"drain_timeout", "drain-timeout"},
		{"admin.listen", "admin"},
		{"admin.token_file", "admin-token-file"},
		{"log.level", "log-level"},
	}
}

// keyOfFlag is the annotation of the flags that are keys of the configuration: they and their variables are read by
// [configuration.load], under the file.
const keyOfFlag = "freshet_key"

// configure gives the command the flags of a replica's configuration.
func configure(cmd *cobra.Command) *configuration {
	c := &configuration{settings: nodeconfig.New(prefix)}
	c.Declare(c.settings)
	c.settings.Preset("app", "shop")
	for _, f := range flagsOfKeys() {
		c.settings.Flag(f[0], f[1])
	}
	flags := cmd.Flags()
	flags.StringVar(&c.file, "config", "", "YAML `file` of the configuration; 'freshet config defaults' prints one with all keys")
	flags.StringArrayVar(&c.set, "set", nil, "`key=value` of any key of the configuration, such as caches.product.ttl=10m; may be repeated")
	for _, f := range c.settings.Flags() {
		flags.Var(&given{text: f.Default, kind: f.Kind}, f.Name, usageOf(f.Doc))
		flags.Lookup(f.Name).Annotations = map[string][]string{keyOfFlag: {f.Key}}
	}
	flags.Lookup("set").Annotations = map[string][]string{keyOfFlag: nil}
	must(cmd.MarkFlagFilename("config", "yaml", "yml"))
	must(cmd.RegisterFlagCompletionFunc("set", func(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
		var keys []string
		for _, key := range c.settings.Keys() {
			keys = append(keys, key+"=")
		}
		return keys, cobra.ShellCompDirectiveNoSpace | cobra.ShellCompDirectiveNoFileComp
	}))
	return c
}

// usageOf is the meaning of a key as the help of a flag: without a capital, unless its first word is an abbreviation, and
// without its full stop.
func usageOf(doc string) string {
	if first, _, _ := strings.Cut(doc, " "); len(first) == 1 || strings.ToLower(first[1:]) == first[1:] {
		doc = strings.ToLower(doc[:1]) + doc[1:]
	}
	return strings.TrimSuffix(doc, ".")
}

// must panics at a mistake in the declaration of a command.
func must(err error) {
	if err != nil {
		panic(err)
	}
}

// load reads the configuration and validates it.
func (c *configuration) load(cmd *cobra.Command) error {
	flags := map[string]string{}
	cmd.Flags().Visit(func(f *pflag.Flag) {
		if len(f.Annotations[keyOfFlag]) > 0 {
			flags[f.Name] = f.Value.String()
		}
	})
	return usage(c.settings.Load(nodeconfig.Layers{
		File: c.file, Environ: os.Environ(), Variables: variables(cmd.Root()), Flags: flags, Set: c.set,
	}))
}

// variables are those of the flags of all commands: what is for one is no mistake for another.
func variables(cmd *cobra.Command) []string {
	var names []string
	cmd.Flags().VisitAll(func(f *pflag.Flag) { names = append(names, variable(f.Name)) })
	for _, sub := range cmd.Commands() {
		names = append(names, variables(sub)...)
	}
	return names
}

// given is the text of a flag that is a key of the configuration, before it is looked at. One that is a list may be
// repeated.
type given struct {
	text, kind string
	changed    bool
}

func (g *given) String() string { return g.text }
func (g *given) Type() string   { return g.kind }

func (g *given) Set(text string) error {
	if g.changed && g.kind == "list" {
		text = g.text + "," + text
	}
	g.text, g.changed = text, true
	return nil
}
