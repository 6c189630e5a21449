package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/freshet-cache/freshet/internal/replica"
)

func newServe() *cobra.Command {
	var c replica.Config
	var level slog.Level
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

Secrets are better given as FRESHET_POSTGRES and FRESHET_REDIS_PASSWORD than as
flags, which other users of the machine can see.`,
		Example: `  freshet serve --postgres postgres://shop@db/shop --redis r1:6379,r2:6379 --nats nats://n1:4222`,
		Args:    noArguments,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c.Logger = newLogger(cmd.ErrOrStderr(), level)
			if withParent {
				go exitAtEOF(cmd.InOrStdin(), c.Logger)
			}
			return serve(cmd.Context(), c, cmd.OutOrStdout())
		},
	}
	f := cmd.Flags()
	f.StringVar(&c.App, "app", "shop", "name of the application: part of keys and subjects, shared by its replicas")
	f.StringVar(&c.ID, "id", "", "name of this replica among its peers (default: host name and process id)")
	f.StringVar(&c.Listen, "listen", "127.0.0.1:8080", "address of the API; port 0 takes any free one")
	f.StringVar(&c.Admin, "admin", "127.0.0.1:9090", "address of metrics, probes and what operators see and steer; reading asks for no credential")
	f.StringVar(&c.AdminTokenFile, "admin-token-file", "", "file with the token, 32 bytes or more, for what changes anything on the admin port (default: nothing can be changed there)")
	f.StringVar(&c.AdminTLS.CertFile, "admin-tls-cert", "", "certificate of the admin port with its chain, PEM, read anew when it changes (default: plain HTTP)")
	f.StringVar(&c.AdminTLS.KeyFile, "admin-tls-key", "", "private key of that certificate, PEM")
	f.StringVar(&c.AdminTLS.ClientCAFile, "admin-tls-client-ca", "", "authorities, PEM: a client certificate of theirs may do what the admin token allows")
	f.StringVar(&c.Advertise, "advertise", "", "address at which peers and operators reach the API (default: what --listen became)")
	f.StringVar(&c.Postgres, "postgres", "", "DSN of the source, such as postgres://user@host:5432/shop (required)")
	f.StringSliceVar(&c.Redis, "redis", nil, "addresses of servers of the Redis Cluster (default: no L2)")
	f.StringVar(&c.RedisUser, "redis-user", "", "user name at Redis")
	f.StringVar(&c.RedisPassword, "redis-password", "", "password at Redis")
	f.StringSliceVar(&c.NATS, "nats", nil, "URLs of NATS servers (default: no bus)")
	f.DurationVar(&c.Budget, "budget", time.Second, "how old a FRESH answer may be, where a request does not say")
	f.DurationVar(&c.MaxStale, "max-stale", 0, "how old a STALE answer may be while Postgres is away; 0 = answer none")
	f.DurationVar(&c.StartTimeout, "start-timeout", 10*time.Second, "longest wait for Postgres before the replica starts degraded")
	f.DurationVar(&c.DrainDelay, "drain-delay", 0, "time between /readyz turning 503 and the end of accepting")
	f.DurationVar(&c.DrainTimeout, "drain-timeout", 30*time.Second, "longest wait for requests in flight in a drain")
	f.TextVar(&level, "log-level", slog.LevelInfo, "DEBUG, INFO, WARN or ERROR")
	f.BoolVar(&withParent, "exit-with-parent", false, "exit at once when standard input ends, as it does when the parent process dies")
	return cmd
}

// serve runs a replica until ctx ends.
func serve(ctx context.Context, c replica.Config, stdout io.Writer) (err error) {
	r, err := replica.Listen(ctx, c)
	if err != nil {
		return namingFlags(err)
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

// newLogger logs to w, as text when it is a terminal and as JSON otherwise.
func newLogger(w io.Writer, level slog.Level) *slog.Logger {
	options := &slog.HandlerOptions{Level: level}
	if isTerminal(w) {
		return slog.New(slog.NewTextHandler(w, options))
	}
	return slog.New(slog.NewJSONHandler(w, options))
}

func isTerminal(w io.Writer) bool {
	f, ok := w.(*os.File)
	return ok && term.IsTerminal(int(f.Fd()))
}
