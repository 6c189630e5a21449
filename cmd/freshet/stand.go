package main

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/freshet-cache/freshet/internal/balance"
	"github.com/freshet-cache/freshet/internal/devstack"
)

// stand is everything that `up` runs: the servers, the replicas, and the load balancer in front.
type stand struct {
	options  upOptions
	say      io.Writer // progress, one line a step
	stack    *devstack.Stack
	balancer *balance.Balancer
	front    *http.Server
	url      string // of the balancer
	token    string // path of the file with the token of the admin ports
	serving  sync.WaitGroup
	failed   chan error // what ends the run from inside: the front server, or a replica that died; see fail
	client   *http.Client

	mu       sync.Mutex
	replicas []*child // by number; one that a fault killed stays until its successor is there
	logs     []io.Closer
}

// raise starts everything, in this order; lower ends it in the reverse. When it fails or ctx ends,
// all that was started is ended before it returns.
func raise(ctx context.Context, o upOptions, say io.Writer) (_ *stand, err error) {
	s := &stand{
		options: o, say: say,
		failed:   make(chan error, 1),
		client:   &http.Client{Timeout: 2 * time.Second, Transport: &http.Transport{MaxIdleConnsPerHost: 2}},
		replicas: make([]*child, o.replicas),
	}
	defer func() { //nolint:contextcheck // lower ends everything although, or because, ctx has ended
		if err != nil {
			err = errors.Join(err, s.lower())
		}
	}()
	front, err := s.takePort(ctx)
	if err != nil {
		return nil, err
	}
	for _, step := range []struct {
		name string
		do   func(context.Context) error
	}{
		{"starting Redis Cluster, Postgres and NATS", s.startServers},
		{fmt.Sprintf("migrating and seeding %d products", o.products), s.seed},
		{fmt.Sprintf("starting %d replicas and the load balancer", o.replicas), func(ctx context.Context) error {
			return s.startReplicas(ctx, front)
		}},
	} {
		began := time.Now()
		fmt.Fprintf(say, "%s ... ", step.name)
		if err := step.do(ctx); err != nil {
			fmt.Fprintln(say, "failed")
			front.Close() // the step's error is the one to tell
			if cause := context.Cause(ctx); cause != nil {
				return nil, cause
			}
			return nil, err
		}
		fmt.Fprintf(say, "%.1f s\n", time.Since(began).Seconds())
	}
	return s, nil
}

// portTries is how many ports are tried when the default one is taken.
const portTries = 50

// takePort listens for the load balancer. A port that the user chose must be free; from the default
// one it goes on to the next free one.
func (s *stand) takePort(ctx context.Context) (net.Listener, error) {
	var config net.ListenConfig
	l, err := config.Listen(ctx, "tcp", s.options.listen)
	if err == nil {
		return l, nil
	}
	if s.options.listenChosen {
		return nil, fmt.Errorf("--listen: %w", err)
	}
	host, text, serr := net.SplitHostPort(s.options.listen)
	port, nerr := strconv.Atoi(text)
	if serr != nil || nerr != nil {
		return nil, fmt.Errorf("--listen: %w", err)
	}
	for next := port + 1; next <= port+portTries; next++ {
		if l, err := config.Listen(ctx, "tcp", net.JoinHostPort(host, strconv.Itoa(next))); err == nil {
			fmt.Fprintf(s.say, "port %d is taken; the load balancer takes %d\n", port, next)
			return l, nil
		}
	}
	return nil, fmt.Errorf("--listen: ports %d to %d are taken; choose a free one", port, port+portTries)
}

func (s *stand) startServers(ctx context.Context) error {
	log, err := s.log("servers")
	if err != nil {
		return err
	}
	if s.stack, err = devstack.Start(ctx, devstack.Options{Log: log}); err != nil {
		return err
	}
	s.token = filepath.Join(s.stack.Folder(), "admin-token")
	return os.WriteFile(s.token, []byte(rand.Text()+rand.Text()+"\n"), 0o600)
}

func (s *stand) seed(ctx context.Context) error {
	return migrate(ctx, s.stack.Postgres.DSN(), true, s.options.products)
}

// startReplicas starts all replicas side by side and then serves.
func (s *stand) startReplicas(ctx context.Context, front net.Listener) error {
	s.balancer = balance.New(balance.Config{CheckInterval: checkInterval})
	errs := make([]error, s.options.replicas)
	var starting sync.WaitGroup
	for i := range s.options.replicas {
		starting.Go(func() { errs[i] = s.startReplica(ctx, i, replicaID(i)) })
	}
	starting.Wait()
	if err := errors.Join(errs...); err != nil {
		return err
	}
	s.url = "http://" + front.Addr().String()
	s.front = &http.Server{
		Handler:           s.balancer,
		ReadHeaderTimeout: 5 * time.Second,
		ReadTimeout:       15 * time.Second,
		WriteTimeout:      time.Minute,
		IdleTimeout:       2 * time.Minute,
		MaxHeaderBytes:    32 << 10,
		ErrorLog:          slog.NewLogLogger(slog.DiscardHandler, slog.LevelError),
	}
	s.serving.Go(func() {
		if err := s.front.Serve(front); !errors.Is(err, http.ErrServerClosed) {
			s.fail(fmt.Errorf("load balancer: %w", err))
		}
	})
	return nil
}

// The balancer checks its replicas every checkInterval, and a replica that drains goes on for drainDelay, in which the
// balancer notices it.
const (
	checkInterval = 200 * time.Millisecond
	drainDelay    = 5 * checkInterval / 2
)

// startReplica starts replica number i, or its successor, and puts it behind the balancer, in the place of one with its id.
func (s *stand) startReplica(ctx context.Context, i int, id string) error {
	log, err := s.log(id)
	if err != nil {
		return err
	}
	o := s.options
	c, err := startChild(ctx, s.client, id, []string{
		"--app", "shop",
		"--listen", "127.0.0.1:0",
		"--admin", "127.0.0.1:0",
		"--admin-token-file", s.token,
		"--redis", strings.Join(s.stack.Redis.Addrs(), ","),
		"--nats", s.stack.NATS.URL(),
		"--budget", o.budget.String(),
		"--max-stale", o.maxStale.String(),
		"--drain-delay", drainDelay.String(),
		"--drain-timeout", "10s",
	}, childEnvironment(s.stack.Postgres.DSN()), log)
	if err != nil {
		return err
	}
	s.mu.Lock()
	s.replicas[i] = c
	s.mu.Unlock()
	s.serving.Go(func() { s.guard(c) })
	//nolint:contextcheck // the checks of the target live as long as the balancer
	return s.balancer.Set(balance.Target{Name: id, Address: c.api, Admin: c.admin})
}

// guard waits for a replica's end and reports one that nobody meant.
func (s *stand) guard(c *child) {
	<-c.done
	if c.meant.Load() {
		return
	}
	s.fail(fmt.Errorf("replica %s ended by itself: %w\n%s", c.id, c.ended(), c.output.prefixed(c.id)))
}

// fail ends the run; the first error counts.
func (s *stand) fail(err error) {
	select {
	case s.failed <- err:
	default:
	}
}

func replicaID(i int) string { return "replica-" + strconv.Itoa(i+1) }

// childEnvironment is this process's, without its FRESHET_* settings, which are for `up`, and with
// the DSN, whose password a flag would show to everybody.
func childEnvironment(dsn string) []string {
	var environment []string
	for _, v := range os.Environ() {
		if !strings.HasPrefix(v, "FRESHET_") {
			environment = append(environment, v)
		}
	}
	return append(environment, variable("postgres")+"="+dsn)
}

// log is where the output of the named part goes, nil when nobody wants it.
func (s *stand) log(name string) (io.Writer, error) {
	if s.options.logs == "" {
		return nil, nil
	}
	f, err := os.OpenFile(filepath.Join(s.options.logs, name+".log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return nil, fmt.Errorf("--logs: %w", err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.logs = append(s.logs, f)
	return f, nil
}

// replica is replica number i, dead or alive.
func (s *stand) replica(i int) *child {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.replicas[i]
}

// running are the replicas that are there now, by number.
func (s *stand) running() []*child {
	s.mu.Lock()
	defer s.mu.Unlock()
	var running []*child
	for _, c := range s.replicas {
		if c != nil && !c.over() {
			running = append(running, c)
		}
	}
	return running
}

// lower ends what is there, in the reverse order of raise.
func (s *stand) lower() error {
	var errs []error
	if s.front != nil {
		ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
		if err := s.front.Shutdown(ctx); err != nil {
			s.front.Close() //nolint:errcheck // clients that hold on are cut off
		}
		cancel()
	}
	if s.balancer != nil {
		errs = append(errs, s.balancer.Close())
	}
	running := s.running()
	stops := make([]error, len(running))
	var stopping sync.WaitGroup
	for i, c := range running {
		stopping.Go(func() { stops[i] = c.stop() })
	}
	stopping.Wait()
	errs = append(errs, stops...)
	s.serving.Wait()
	s.client.CloseIdleConnections()
	if s.stack != nil {
		errs = append(errs, s.stack.Close())
	}
	for _, l := range s.logs {
		errs = append(errs, l.Close())
	}
	return errors.Join(errs...)
}
