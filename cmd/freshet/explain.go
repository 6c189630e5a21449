package main

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"slices"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/freshet-cache/freshet/node"
	"github.com/freshet-cache/freshet/node/admin"
)

func newExplain() *cobra.Command {
	var view string
	var one bool
	cmd := &cobra.Command{
		Use:   "explain NAMESPACE ID",
		Short: "Say where an entry is on every replica, and why it is served as it is",
		Long: `Say of one entry how a read of it would be answered by every replica, and why: where
it is, under which snapshot of Postgres it was read, what it depends on and what of
that changed last, why the last read missed, which Redis shard serves it and whether
that is in; and then what to do. Nothing is loaded or changed for it.

The ID of a query's result is all of its parameters as in a URL, in quotes, in any
order: 'category=7&limit=10'; of a query without any it is '?'.
` + "`freshet namespaces`" + ` lists namespaces and views.`,
		Example: `  freshet explain product 42
  freshet explain product 'category=1&status=active&offset=0&limit=3' --view page
  freshet explain product 42 --json | jq '.[].answer.scopes'`,
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) == 2 && args[0] != "" && args[1] != "" {
				return nil
			}
			return usage(fmt.Errorf("explain takes NAMESPACE and ID, got %d arguments; see `%s --help`", len(args), cmd.CommandPath()))
		},
	}
	cmd.Flags().StringVar(&view, "view", "", "view of the namespace (default: detail)")
	cmd.Flags().BoolVar(&one, "one", false, "on the asked replica alone")
	return operate(cmd, func(ctx context.Context, c admin.Client, out *output) error {
		namespace, id := cmd.Flags().Arg(0), cmd.Flags().Arg(1)
		told, err := c.Explain(ctx, namespace, view, id, !one)
		if err != nil {
			return err
		}
		return out.print(told, func(w io.Writer) { explained(told).print(w) })
	})
}

// explained is what the replicas say of one entry.
type explained []node.Answer[node.Explanation]

// print writes the report: the verdict, what each replica says, all of them in a table, where the entry belongs, and what to do.
func (x explained) print(out io.Writer) {
	fmt.Fprintf(out, "%s\n\n", x.verdict())
	for _, a := range x {
		if e := a.Answer; e != nil {
			fmt.Fprintf(out, "%s: %s\n", a.Replica, e.Why)
			if e.Miss != nil {
				fmt.Fprintf(out, "%s: the last miss: %s\n", a.Replica, e.Miss.Why)
			}
		}
	}
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "\nREPLICA\tLABEL\tAGE\tL1\tL2\tSNAPSHOT\tLAST CHANGE\tLAST MISS\t")
	for _, a := range x {
		if a.Answer == nil {
			fmt.Fprintf(w, "%s\t-\t-\tno answer: %s\t\n", a.Replica, a.Error)
			continue
		}
		fmt.Fprintln(w, explainedRow(a.Replica, *a.Answer))
	}
	_ = w.Flush() // its writer keeps its error
	fmt.Fprintln(out)
	for _, line := range x.places() {
		fmt.Fprintln(out, line)
	}
	fmt.Fprintln(out, "\nWhat to do:")
	for _, advice := range x.advice() {
		fmt.Fprintf(out, "  - %s\n", advice)
	}
}

// verdict says in a sentence how reads are answered.
func (x explained) verdict() string {
	words := []struct{ label, text string }{
		{"fresh", "FRESH from memory on"},
		{"grace", "STALE within a grace on"},
		{"stale", "STALE on"},
		{"pending", "PENDING on"},
		{"none", "not answered from memory on"},
		{"", "unknown, for want of an answer, on"},
	}
	var parts []string
	subject := "the entry"
	for _, word := range words {
		var on []string
		for _, a := range x {
			label := ""
			if a.Answer != nil {
				label = a.Answer.Label
				subject = fmt.Sprintf("%s %s (%s)", a.Answer.Namespace, a.Answer.ID, a.Answer.View)
			}
			if label == word.label {
				on = append(on, a.Replica)
			}
		}
		if on != nil {
			parts = append(parts, word.text+" "+strings.Join(on, ", "))
		}
	}
	return subject + " is " + strings.Join(parts, "; ") + "."
}

// explainedRow is a replica in a line.
func explainedRow(replica string, e node.Explanation) string {
	age := "-"
	if e.Label != "none" && e.Label != "pending" {
		age = behind(e.Age)
	}
	l1, snapshot := "nothing", "-"
	if c := e.L1; c != nil {
		l1, snapshot = fmt.Sprintf("loaded %v ago, by way of %s", roundSeconds(c.LoadedAgo), c.From), c.Snapshot
		if c.Absent {
			l1 += ", as not there"
		}
		switch {
		case c.Refused != "":
			l1 += ": " + c.Refused
		case c.ExpiresIn <= 0:
			l1 += ": expired"
		case c.Generation != e.Generation:
			l1 += ": of generation " + c.Generation
		}
	}
	change, miss := "none known", "none remembered"
	if s := lastChange(e); s != nil {
		change = fmt.Sprintf("%s, heard %v ago", s.Scope, roundSeconds(s.HeardAgo))
	}
	if m := e.Miss; m != nil {
		miss = fmt.Sprintf("%v ago: %s", roundSeconds(m.Ago), cmp.Or(m.Failure, m.Tier))
	}
	return strings.Join([]string{replica, strings.ToUpper(e.Label), age, l1, orDash(e.L2), snapshot, change, miss}, "\t") + "\t"
}

// lastChange is the scope that was heard to have changed last; nil = none was.
func lastChange(e node.Explanation) *node.ExplainedScope {
	var last *node.ExplainedScope
	for i, s := range e.Scopes {
		if s.Last != 0 && (last == nil || s.HeardAgo < last.HeardAgo) {
			last = &e.Scopes[i]
		}
	}
	return last
}

// places say where the entry belongs, once if the replicas agree.
func (x explained) places() []string {
	var lines []string
	said := map[string][]string{} // what -> who says so
	for _, a := range x {
		e := a.Answer
		if e == nil {
			continue
		}
		shard := "no Redis shard is known for it"
		if e.Shard != nil {
			shard = fmt.Sprintf("shard %s (slots %s), breaker %s", e.Shard.Name, e.Shard.Slots, e.Shard.State)
		}
		line := fmt.Sprintf("key %s, slot %d: %s; owner %s; generation %s; budget %v, max stale %v", e.Key, e.Slot, shard, e.Owner, e.Generation,
			roundSeconds(e.Budget), roundSeconds(e.MaxStale))
		if said[line] == nil {
			lines = append(lines, line)
		}
		said[line] = append(said[line], a.Replica)
	}
	if len(lines) > 1 {
		for i, line := range lines {
			lines[i] = strings.Join(said[line], ", ") + ": " + line
		}
	}
	return lines
}

// advice is what an operator may do about it, each once.
func (x explained) advice() []string {
	var all []string
	say := func(format string, args ...any) {
		if text := fmt.Sprintf(format, args...); !slices.Contains(all, text) {
			all = append(all, text)
		}
	}
	generations := map[string]bool{}
	out := map[string][]string{} // shard -> for whom it is out
	for _, a := range x {
		if e := a.Answer; e != nil && e.Shard != nil && e.Shard.State != "closed" {
			out[e.Shard.Name] = append(out[e.Shard.Name], a.Replica)
		}
	}
	for _, a := range x {
		e := a.Answer
		if e == nil {
			say("%s gave no answer: `freshet members` says how it does.", a.Replica)
			continue
		}
		generations[e.Generation] = true
		if e.PollAge > e.Budget {
			say("%s lags: its last poll of Postgres is %s old. `freshet postgres`, asked at its admin port, says why it does not come through.", a.Replica, behind(e.PollAge))
		}
		for _, s := range e.Scopes {
			if s.Doubted {
				say("Changes of %s may go unlogged: `freshet watches` names the table, `select freshet.rewatch('TABLE')` mends it.", s.Scope)
			}
		}
		if e.Shard != nil && e.Shard.State != "closed" {
			say("Shard %s is out for %s: `freshet redis` says what its servers do. Until it is back, the owner %s or Postgres is asked; nothing needs to be done for freshness.", e.Shard.Name, strings.Join(out[e.Shard.Name], ", "), e.Owner)
		} else if e.L2 == "silent" {
			say("Redis did not answer %s in time: `freshet redis` says what its servers do.", a.Replica)
		}
		if e.L2 == "unreadable" {
			say("%s cannot read what Redis has (%s): another build may have written it. The next load replaces it.", a.Replica, e.L2Error)
		}
		if m := e.Miss; m != nil && (m.Source == "failed" || m.Failure == "postgres" || m.Failure == "source" || m.Failure == "timeout") {
			say("Loads have failed on %s, last %v ago: its log says why, and `freshet postgres` how the database does.", a.Replica, roundSeconds(m.Ago))
		} else if m != nil && (m.Source == "overloaded" || m.Failure == "overloaded") {
			say("%s has more loads than it may run: `freshet top` shows LOADING.", a.Replica)
		}
		if e.Label == "pending" {
			say("A put waits to be written: `freshet queue status` shows what is in its way.")
		}
	}
	if len(generations) > 1 {
		say("The replicas are at different generations, as they are for a moment after a change: ask again.")
	}
	if all == nil {
		say("Nothing.")
		if namespace := x.namespace(); namespace != "" {
			say("If the value is wrong all the same, somebody has changed it without a watch: `freshet watches` lists the watched tables, `freshet invalidate %s ID` has it loaded anew.", namespace)
		}
	}
	return all
}

// namespace is that of the entry; "" if nobody answered.
func (x explained) namespace() string {
	for _, a := range x {
		if a.Answer != nil {
			return a.Answer.Namespace
		}
	}
	return ""
}
