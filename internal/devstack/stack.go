package devstack

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"

	"golang.org/x/sync/errgroup"
)

// ErrClosed is what every control of a server returns after [Stack.Close].
var ErrClosed = errors.New("devstack: the stack is closed")

// Options say what to start. The zero value starts all three parts in the
// system's folder for temporary files.
type Options struct {
	// Dir is the parent of the stack's own temporary folder. It must exist.
	// "" means os.TempDir(). When the caller is root, Postgres and Redis run as
	// an unprivileged user, who must be able to enter Dir.
	Dir string

	// Redis, Postgres and NATS choose the parts to start. When all are false,
	// all three are started.
	Redis, Postgres, NATS bool

	// RedisSecure makes Redis take TLS from known clients and known users only:
	// see [Redis.Access].
	RedisSecure bool

	// Log also receives what the Redis and Postgres processes print, each line
	// after the name of its server. Writes are serialised and their errors
	// ignored. nil: output goes only to the log files in the stack's folder,
	// which are removed with it.
	Log io.Writer
}

// Stack is a set of running servers. All methods of a stack and of its parts
// are safe for concurrent use.
type Stack struct {
	Redis    *Redis    // nil when not asked for
	Postgres *Postgres // nil when not asked for
	NATS     *NATS     // nil when not asked for

	site  *site
	close sync.Once
	err   error // of Close
}

// Start starts the parts that o asks for, concurrently, and returns when all of
// them are ready; on two cores that takes about four seconds. ctx bounds the
// start only. When anything fails or ctx ends, everything that was started is
// stopped and removed before Start returns; the error then names the server and
// holds the end of its log. When a server's program is not installed, the error
// is a [MissingError].
func Start(ctx context.Context, o Options) (*Stack, error) {
	if !o.Redis && !o.Postgres && !o.NATS {
		o.Redis, o.Postgres, o.NATS = true, true, true
	}
	programs, err := findPrograms(o)
	if err != nil {
		return nil, err
	}
	site, err := openSite(o, programs)
	if err != nil {
		return nil, err
	}
	s := &Stack{site: site}
	if err := s.start(ctx, o, programs); err != nil {
		return nil, errors.Join(err, s.Close())
	}
	return s, nil
}

// Folder is the stack's temporary folder, which Close removes with all that is in it.
func (s *Stack) Folder() string { return s.site.folder }

// start creates the parts, then brings them up side by side.
func (s *Stack) start(ctx context.Context, o Options, programs programs) error {
	var err error
	if o.Redis {
		if s.Redis, err = newRedis(s.site, programs.redis, o.RedisSecure); err != nil {
			return err
		}
	}
	if o.Postgres {
		if s.Postgres, err = newPostgres(s.site, programs.postgres); err != nil {
			return err
		}
	}
	if o.NATS {
		s.NATS = newNATS(s.site)
	}
	g, ctx := errgroup.WithContext(ctx)
	if s.Redis != nil {
		g.Go(func() error { return s.Redis.bootstrap(ctx) })
	}
	if s.Postgres != nil {
		g.Go(func() error { return s.Postgres.bootstrap(ctx) })
	}
	if s.NATS != nil {
		g.Go(s.NATS.Start)
	}
	return g.Wait()
}

// Close ends every server at once and removes the stack's folder. Controls that
// are still running (a Start of a node, say) are interrupted and return
// [ErrClosed]. Close waits for everything the stack owns to be gone; it takes
// well under a second on an idle machine. Later calls return the first
// call's error.
func (s *Stack) Close() error {
	s.close.Do(func() { s.err = s.end() })
	return s.err
}

// end undoes Start in reverse: servers, then their thread, folder, reaper and
// ports.
func (s *Stack) end() error {
	s.site.cancel(ErrClosed)
	var g sync.WaitGroup
	var redis, postgres, nats error
	if s.Redis != nil {
		g.Go(func() { redis = s.Redis.end() })
	}
	if s.Postgres != nil {
		g.Go(func() { postgres = s.Postgres.end() })
	}
	if s.NATS != nil {
		g.Go(func() { nats = s.NATS.Stop() })
	}
	g.Wait()
	if err := errors.Join(redis, postgres, nats, s.site.close()); err != nil {
		return fmt.Errorf("devstack: close: %w", err)
	}
	return nil
}
