package main

import (
	"context"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	"github.com/freshet-cache/freshet/node"
	"github.com/freshet-cache/freshet/node/admin"
)

func newNamespaces() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "namespaces",
		Short: "List the caches of a replica with the settings in effect",
		Long: `List the caches of the asked replica, by namespace and view, with the settings in
effect: defaults are filled in. A STALE of 0s means that no STALE answer is given.`,
		Example: `  freshet namespaces
  freshet namespaces --json | jq '.[] | select(.namespace == "product")'`,
	}
	return operate(cmd, func(ctx context.Context, c admin.Client, out *output) error {
		caches, err := c.Namespaces(ctx)
		if err != nil {
			return err
		}
		return out.print(caches, func(w io.Writer) {
			fmt.Fprintln(w, "NAMESPACE\tVIEW\tKIND\tGENERATION\tTTL\tNEGATIVE\tBUDGET\tSTALE\tLOAD TIMEOUT\tENTRIES\tMEMORY\tCODEC\tREFRESH\tWRITES\tWARM-UP\t")
			for _, s := range caches {
				fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%v\t%v\t%v\t%v\t%v\t%d\t%s\t%s\t%s\t%s\t%s\t\n", s.Namespace, s.View, s.Kind, s.Generation,
					roundSeconds(s.TTL), roundSeconds(s.NegativeTTL), roundSeconds(s.Budget), roundSeconds(s.MaxStale), roundSeconds(s.LoadTimeout),
					s.MaxEntries, size(s.MaxBytes), s.Codec+" "+s.Compression, refreshText(s), writesText(s), orDash(strings.Join(s.WarmUp, " ")))
			}
		})
	})
}

func refreshText(s node.CacheDescription) string {
	var rules []string
	if s.RefreshAhead > 0 {
		rules = append(rules, fmt.Sprintf("at %.0f%%", 100*s.RefreshAhead))
	}
	if s.RefreshBeta > 0 {
		rules = append(rules, fmt.Sprintf("xfetch %g", s.RefreshBeta))
	}
	return orDash(strings.Join(rules, " "))
}

func writesText(s node.CacheDescription) string {
	var ways []string
	if s.WriteThrough {
		ways = append(ways, "through")
	}
	if s.WriteBehind {
		ways = append(ways, "behind")
	}
	return orDash(strings.Join(ways, " "))
}
