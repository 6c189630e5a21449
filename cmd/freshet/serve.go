package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/freshet-cache/freshet/internal/replica"
)

func newServe() *cobra.Command {
	var withParent bool
	cmd := &cobra.Command{
		Use:   "serve",
		Short: "Run one replica of the shop",
		Long: `Run one replica of the shop: its API, and an admin port with /metrics, the probes
/startupz, /readyz and /livez, and what operators see and steer, as its
/admin/v1/openapi.yaml describes. It starts, and stays ready, also while Redis, NATS
or Postgres are down.

It prints one line on standard output when both ports are open:
  replica ID api http://HOST:PORT admin http://HOST:PORT
and logs to standard error, as text on a terminal and as JSON elsewhere. SIGTERM or
Ctrl-C drains it; a second one ends it at once.

It is configured by a YAML file, FRESHET_* variables and flags, each over the one before:
see ` + "`freshet config`" + `. Secrets are better in files, named by keys such as
redis.password_file, or in variables than in flags, which other users of the machine can
see.`,
		Example: `  freshet serve --postgres postgres://shop@db/shop --redis r1:6379,r2:6379 --nats nats://n1:4222
  freshet serve --config freshet.yaml --set caches.product.ttl=10m`,
		Args: noArguments,
	}
	c := configure(cmd)
	cmd.Flags().BoolVar(&withParent, "exit-with-parent", false, "exit at once when standard input ends, as it does when the parent process dies")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if err := c.load(cmd); err != nil {
			return err
		}
		c.Logger = newLogger(cmd.ErrOrStderr(), c.LogLevel, c.LogFormat)
		if withParent {
			go exitAtEOF(cmd.InOrStdin(), c.Logger)
		}
		return serve(cmd.Context(), c.Config, cmd.OutOrStdout())
	}
	return cmd
}

// serve runs a replica until ctx ends.
func serve(ctx context.Context, c replica.Config, stdout io.Writer) (err error) {
	r, err := replica.Listen(ctx, c)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, r.Close()) }()
	if _, err := fmt.Fprintf(stdout, announcement, r.ID(), r.API(), r.Admin()); err != nil {
		return err
	}
	return r.Run(ctx)
}

// announcement is the line that serve prints and up reads.
const announcement = "replica %s api http://%s admin http://%s\n"

// exitAtEOF ends the process when r ends. It is the one goroutine that outlives its caller: it ends with
// the process, which `freshet up` keeps r open for.
func exitAtEOF(r io.Reader, log *slog.Logger) {
	_, err := io.Copy(io.Discard, r)
	log.Error("standard input has ended, and with it, by --exit-with-parent, this replica", "err", err)
	os.Exit(exitFailed)
}

// newLogger logs to w as the format says, or by default as text when it is a terminal and as JSON otherwise.
func newLogger(w io.Writer, level slog.Level, format string) *slog.Logger {
	options := &slog.HandlerOptions{Level: level}
	if format == "text" || format == "" && isTerminal(w) {
		return slog.New(slog.NewTextHandler(w, options))
	}
	return slog.New(slog.NewJSONHandler(w, options))
}

func isTerminal(w io.Writer) bool {
	f, ok := w.(*os.File)
	return ok && term.IsTerminal(int(f.Fd()))
}
