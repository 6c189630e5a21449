package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"time"

	"github.com/spf13/cobra"

	"github.com/freshet-cache/freshet/node"
	"github.com/freshet-cache/freshet/node/admin"
)

func newQueue() *cobra.Command {
	return newGroup("queue", "See the puts that wait for Postgres, and settle those that it refused",
		`See the puts that are written behind: what waits in NATS JetStream, and what Postgres
would not have, the dead letters, to write them after all or to drop them.`,
		newQueueStatus(), newDeadLetters(), newDeadLetterRetry(), newDeadLetterDrop())
}

func newQueueStatus() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "status",
		Short: "Show what waits to be written to Postgres, on all replicas",
		Long: `Show what waits to be written to Postgres, by namespace, over all replicas that the
asked one knows. PENDING puts are not in Postgres yet, the OLDEST since so long; the
counts behind them are since the replicas were opened. IN HAND are with a flusher,
AGAIN not for the first time; IDLE flushers wait for work.`,
		Example: "  freshet queue status",
	}
	return operate(cmd, func(ctx context.Context, c admin.Client, out *output) error {
		q, err := c.Queue(ctx)
		if err != nil {
			return err
		}
		return out.print(q, func(w io.Writer) {
			fmt.Fprintln(w, "NAMESPACE\tPENDING\tOLDEST\tAPPLIED\tSUPERSEDED\tDEAD\tRETRIES\tIN HAND\tAGAIN\tIDLE")
			for _, n := range q.Namespaces {
				fmt.Fprintf(w, "%s\t%d\t%v\t%d\t%d\t%d\t%d\t%s\n",
					n.Namespace, n.Pending, roundSeconds(n.Oldest), n.Applied, n.Superseded, n.Dead, n.Retries, inStream(q.Stream, n.Namespace))
			}
			fmt.Fprintf(w, "\ndead letters: %s\n", deadLetters(q))
			switch s := q.Stream; {
			case s != nil:
				fmt.Fprintf(w, "stream %s: %d of %d messages, %d of %d bytes, the oldest of %v\n",
					s.Stream, s.Messages, s.MaxMessages, s.Bytes, s.MaxBytes, roundSeconds(s.Oldest))
			case q.StreamError != "":
				fmt.Fprintf(w, "stream: not known: %s\n", q.StreamError)
			default:
				fmt.Fprintln(w, "stream: none, no cache writes behind")
			}
			for _, r := range q.Replicas {
				if r.Answer == nil {
					fmt.Fprintf(w, "replica %s: no answer: %s\n", r.Replica, r.Error)
				}
			}
		})
	})
}

// inStream is a namespace's part of the stream, in the columns IN HAND, AGAIN and IDLE.
func inStream(s *node.QueueStats, namespace string) string {
	if s == nil {
		return "-\t-\t-"
	}
	at := slices.IndexFunc(s.Namespaces, func(n node.QueuedNamespace) bool { return n.Namespace == namespace })
	if at < 0 {
		return "-\t-\t-"
	}
	n := s.Namespaces[at]
	return fmt.Sprintf("%d\t%d\t%d", n.InHand, n.Again, n.IdleFlushers)
}

func deadLetters(q admin.Queue) string {
	if q.DeadLetters == nil {
		return "not known: " + q.DeadLettersError
	}
	return strconv.FormatInt(*q.DeadLetters, 10)
}

func newDeadLetters() *cobra.Command {
	var after int64
	var limit int
	cmd := &cobra.Command{
		Use:   "dead-letters",
		Short: "List the puts that Postgres would not have",
		Long: `List the puts that Postgres, or the store, refused too often, by their numbers, with
their keys, the beginnings of their values, and why. --json prints all of each.`,
		Example: `  freshet queue dead-letters --admin-token-file admin-token
  freshet queue dead-letters --after 120 --limit 10 --json`,
	}
	f := cmd.Flags()
	f.Int64Var(&after, "after", 0, "only those with higher numbers")
	f.IntVar(&limit, "limit", 20, "so many letters, up to 1000")
	cmd.PreRunE = func(*cobra.Command, []string) error {
		var problems []error
		if after < 0 {
			problems = append(problems, fmt.Errorf("--after: %d; want 0 or more", after))
		}
		if limit < 1 || limit > node.MaxLetters {
			problems = append(problems, fmt.Errorf("--limit: %d; want 1 to %d", limit, node.MaxLetters))
		}
		return usage(errors.Join(problems...))
	}
	return operate(cmd, func(ctx context.Context, c admin.Client, out *output) error {
		letters, err := c.DeadLetters(ctx, after, limit)
		if err != nil {
			return err
		}
		return out.print(letters, func(w io.Writer) {
			fmt.Fprintln(w, "LETTER\tNAMESPACE\tID\tATTEMPTS\tDEAD SINCE\tVALUE\tWHY")
			for _, l := range letters {
				value := "(deletion)"
				if l.Value != nil {
					value = fmt.Sprintf("%.60q", *l.Value)
				}
				fmt.Fprintf(w, "%d\t%s\t%q\t%d\t%s\t%s\t%.120q\n", l.Letter, l.Namespace, l.ID, l.Attempts, l.DeadAt.Format(time.RFC3339), value, l.Error)
			}
		})
	})
}

// letters reads the numbers of dead letters.
func letters(cmd *cobra.Command, args []string) ([]int64, error) {
	if len(args) == 0 {
		return nil, usage(fmt.Errorf("%s takes LETTER..., got none; see `%s --help`", cmd.CommandPath(), cmd.CommandPath()))
	}
	numbers := make([]int64, len(args))
	var problems []error
	for i, arg := range args {
		var err error
		if numbers[i], err = strconv.ParseInt(arg, 10, 64); err != nil || numbers[i] < 1 {
			problems = append(problems, fmt.Errorf("LETTER: %.40q; want the number of a dead letter", arg))
		}
	}
	return numbers, usage(errors.Join(problems...))
}

// settledLetter is what became of a dead letter.
type settledLetter struct {
	Letter int64  `json:"letter"`
	Error  string `json:"error,omitempty"`
}

// settleAll settles the letters one by one and prints what became of them. Those that failed are the error.
func settleAll(out *output, letters []int64, became string, settle func(letter int64) error) error {
	settled := make([]settledLetter, len(letters))
	var problems []error
	for i, letter := range letters {
		settled[i].Letter = letter
		if err := settle(letter); err != nil {
			settled[i].Error = err.Error()
			problems = append(problems, fmt.Errorf("dead letter %d: %w", letter, err))
		}
	}
	problems = append(problems, out.print(settled, func(w io.Writer) {
		for _, s := range settled {
			if s.Error == "" {
				fmt.Fprintf(w, "dead letter %d is %s\n", s.Letter, became)
			}
		}
	}))
	return errors.Join(problems...)
}

func newDeadLetterRetry() *cobra.Command {
	var numbers []int64
	cmd := &cobra.Command{
		Use:   "retry LETTER...",
		Short: "Write puts that Postgres would not have after all",
		Long: `Write puts that Postgres would not have after all, each in a transaction of its own. If
a later put of its key is there, a letter is removed and nothing is written. One that
is refused again stays, with the new reason.`,
		Example: "  freshet queue retry 17 18 --admin-token-file admin-token",
		Args: func(cmd *cobra.Command, args []string) (err error) {
			numbers, err = letters(cmd, args)
			return err
		},
	}
	return operate(cmd, func(ctx context.Context, c admin.Client, out *output) error {
		return settleAll(out, numbers, "settled", func(letter int64) error { return c.RetryDeadLetter(ctx, letter) })
	})
}

func newDeadLetterDrop() *cobra.Command {
	var numbers []int64
	cmd := &cobra.Command{
		Use:     "drop LETTER...",
		Short:   "Drop puts that Postgres would not have, for good",
		Long:    "Drop puts that Postgres would not have, for good: their values are lost.",
		Example: "  freshet queue drop 17 --admin-token-file admin-token",
		Args: func(cmd *cobra.Command, args []string) (err error) {
			numbers, err = letters(cmd, args)
			return err
		},
	}
	confirmed(cmd, func(args []string) (string, error) {
		return fmt.Sprintf("the values of %d dead letters will be lost", len(args)), nil
	})
	return operate(cmd, func(ctx context.Context, c admin.Client, out *output) error {
		return settleAll(out, numbers, "dropped", func(letter int64) error { return c.DropDeadLetter(ctx, letter) })
	})
}
