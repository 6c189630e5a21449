package replica

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"

	"github.com/freshet-cache/freshet/examples/shop"
	"github.com/freshet-cache/freshet/node"
	"github.com/freshet-cache/freshet/node/admin"
)

// Replica is the process as a value: [Listen], then [Replica.Run], then [Replica.Close].
type Replica struct {
	config   Config
	id       string
	log      *slog.Logger
	registry *prometheus.Registry

	apiListener, adminListener net.Listener
	api, admin                 *http.Server

	certificates *certificates             // of the admin port; nil = it speaks plain HTTP
	seen         *admin.API                // what the admin port serves
	traces       *tracer                   // nil = none
	node         atomic.Pointer[node.Node] // nil until it is open
	started      atomic.Bool
	draining     atomic.Bool
	unused       unused // of the connections to both servers
}

// Listen validates the configuration and takes both ports, so that [Replica.API] and
// [Replica.Admin] are known. It talks to no other server.
func Listen(ctx context.Context, c Config) (*Replica, error) {
	if err := c.Validate(); err != nil {
		return nil, err
	}
	r := &Replica{config: c, id: c.id(), registry: prometheus.NewRegistry()}
	r.log = c.logger().With("replica", r.id)
	r.registry.MustRegister(
		collectors.NewGoCollector(),
		collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}),
	)
	var err error
	seen := admin.Config{
		TokenFile: c.AdminTokenFile, ClientCertificates: c.AdminTLS.ClientCAFile != "", Gatherer: r.registry, Logger: r.log,
	}
	if r.seen, err = admin.New(seen); err != nil {
		return nil, err
	}
	if c.AdminTLS.enabled() {
		if r.certificates, err = newCertificates(c.AdminTLS, r.log); err != nil {
			return nil, fmt.Errorf("replica: %w", err)
		}
	}
	var listen net.ListenConfig
	if r.apiListener, err = listen.Listen(ctx, "tcp", c.listen()); err != nil {
		return nil, fmt.Errorf("replica: API port: %w", err)
	}
	if r.adminListener, err = listen.Listen(ctx, "tcp", c.admin()); err != nil {
		return nil, errors.Join(fmt.Errorf("replica: admin port: %w", err), r.apiListener.Close())
	}
	if r.certificates != nil {
		r.adminListener = tls.NewListener(r.adminListener, r.certificates.server())
	}
	return r, nil
}

// ID is the replica's name among its peers.
func (r *Replica) ID() string { return r.id }

// API is the host:port of the shop's routes.
func (r *Replica) API() string { return r.apiListener.Addr().String() }

// Admin is the host:port of metrics, probes, and what operators see and steer.
func (r *Replica) Admin() string { return r.adminListener.Addr().String() }

// Run serves until ctx ends, drains, and returns nil; or returns earlier with what went wrong. Call
// it once.
func (r *Replica) Run(ctx context.Context) error {
	var serving sync.WaitGroup
	failed := make(chan error, 2) // from the two servers, each at most once

	// Start: admin port, node, API port. Stop, in stop: API port, node, admin port.
	r.admin = r.server(r.seen)
	serving.Go(func() { failed <- serve(r.admin, r.adminListener) })

	err := r.open(ctx)
	if err == nil {
		serving.Go(func() { failed <- serve(r.api, r.apiListener) })
		err = r.waitReady(ctx, failed)
	}
	if err == nil && ctx.Err() == nil {
		r.started.Store(true)
		r.seen.Started()
		r.log.Info("replica started", "api", r.API(), "admin", r.Admin())
		select {
		case <-ctx.Done():
		case err = <-failed:
		}
	}
	err = errors.Join(err, r.stop(context.WithoutCancel(ctx)))
	serving.Wait()
	return err
}

// open opens the node and builds the shop on it.
func (r *Replica) open(ctx context.Context) error {
	options := shop.Options{Logger: r.log, WarmUp: true, WriteBehind: len(r.config.Node.NATS.URLs) > 0, Registry: r.registry}
	c := r.config.node(r.id, r.API(), r.log, r.registry)
	if r.config.Trace.Endpoint != "" {
		var err error
		if r.traces, err = startTracer(ctx, r.config.Trace, r.config.Node.App, r.id, r.log); err != nil {
			return err
		}
		c.Tracer, options.Tracer = r.traces, r.traces
	}
	n, err := node.Open(ctx, c)
	if err != nil {
		return err
	}
	r.node.Store(n)
	r.seen.Use(n)
	api, err := shop.New(n, options) //nolint:contextcheck // what a cache starts lives as long as its node
	if err != nil {
		return err
	}
	routes := api.Handler()
	r.api = r.server(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		w.Header().Set("Freshet-Replica", r.id)
		if r.draining.Load() {
			w.Header().Set("Connection", "close")
		}
		routes.ServeHTTP(w, req)
	}))
	return nil
}

// waitReady waits for the first poll and the warm-ups, for at most StartTimeout. Its error is that of a server.
func (r *Replica) waitReady(ctx context.Context, failed <-chan error) error {
	ctx, cancel := context.WithTimeout(ctx, r.config.startTimeout())
	defer cancel()
	ready := make(chan error, 1)
	var waiting sync.WaitGroup
	waiting.Go(func() { ready <- r.node.Load().Ready(ctx) })
	defer waiting.Wait()
	defer cancel()
	select {
	case err := <-ready:
		if err != nil && errors.Is(context.Cause(ctx), context.DeadlineExceeded) {
			r.log.Warn("starting degraded", "waited", r.config.startTimeout(), "error", err)
		}
		return nil
	case err := <-failed:
		return err
	}
}

// Close gives the ports back when Run was never called; after Run it does nothing.
func (r *Replica) Close() error {
	return errors.Join(closeOnce(r.apiListener), closeOnce(r.adminListener))
}

func closeOnce(l net.Listener) error {
	if err := l.Close(); err != nil && !errors.Is(err, net.ErrClosed) {
		return err
	}
	return nil
}

// server is an HTTP server with every wait and size bounded.
func (r *Replica) server(h http.Handler) *http.Server {
	return &http.Server{
		Handler:           h,
		ConnState:         r.unused.follow,
		ReadHeaderTimeout: 5 * time.Second,
		ReadTimeout:       15 * time.Second,
		WriteTimeout:      30 * time.Second,
		IdleTimeout:       2 * time.Minute,
		MaxHeaderBytes:    32 << 10,
		ErrorLog:          slog.NewLogLogger(r.log.Handler(), slog.LevelWarn),
	}
}

func serve(s *http.Server, l net.Listener) error {
	if err := s.Serve(l); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("replica: %w", err)
	}
	return nil
}
