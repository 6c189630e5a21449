package replica

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"sync"
	"time"
)

// stop drains and closes; see the package's doc. It is bounded by the drain's delay and timeout, and what the node's
// Close takes.
func (r *Replica) stop(ctx context.Context) error {
	r.seen.Draining()
	r.draining.Store(true)
	began := time.Now()
	var errs []error
	if r.started.Load() {
		r.log.Info("draining", "delay", r.config.DrainDelay)
		wait(ctx, r.config.DrainDelay)
	}
	ctx, cancel := context.WithCancel(ctx)
	var closing sync.WaitGroup
	closing.Go(func() { r.unused.close(ctx) })
	if r.api != nil {
		errs = append(errs, shutdown(ctx, "API", r.api, r.config.drainTimeout()))
	}
	if n := r.node.Load(); n != nil {
		errs = append(errs, n.Close())
	}
	if r.traces != nil {
		r.traces.stop(ctx)
	}
	if err := shutdown(ctx, "admin", r.admin, adminPatience); err != nil {
		r.log.Warn("operators are cut off", "error", err)
	}
	cancel()
	closing.Wait()
	r.log.Info("replica stopped", "took", time.Since(began))
	return errors.Join(errs...)
}

// adminPatience is how long requests on the admin port may go on when all else has ended; a profile takes longer.
const adminPatience = 2 * time.Second

// shutdown finishes the server's requests within the timeout and then cuts off what is left.
func shutdown(ctx context.Context, what string, s *http.Server, timeout time.Duration) error {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	if err := s.Shutdown(ctx); err != nil {
		return errors.Join(fmt.Errorf("replica: %s port: requests were still in flight after %v: %w", what, timeout, err), s.Close())
	}
	return nil
}

// unused are the connections on which nothing has been asked yet. http.Server.Shutdown cannot tell whether a request is
// coming on them, and waits until they are 5 s old; proxies keep such connections: those that they opened for a
// request which another connection then took.
type unused struct {
	connections sync.Map // net.Conn -> time.Time, when it came
}

// unusedFor is how old such a connection must be in a drain to be closed: whoever opens one for a request sends it at
// once.
const unusedFor = time.Second

// follow is the hook of http.Server.ConnState.
func (u *unused) follow(c net.Conn, s http.ConnState) {
	if s == http.StateNew {
		u.connections.Store(c, time.Now())
		return
	}
	u.connections.Delete(c)
}

// close closes those that are there, as soon as they are old enough, until ctx ends.
func (u *unused) close(ctx context.Context) {
	tick := time.NewTicker(unusedFor / 10)
	defer tick.Stop()
	for {
		u.connections.Range(func(c, came any) bool {
			if since, ok := came.(time.Time); ok && time.Since(since) > unusedFor {
				if conn, ok := c.(net.Conn); ok {
					conn.Close()
				}
			}
			return true
		})
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

func wait(ctx context.Context, d time.Duration) {
	if d <= 0 {
		return
	}
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
	case <-timer.C:
	}
}
