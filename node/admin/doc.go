// Package admin is the HTTP API by which operators see and steer a node, for a port of its own: metrics, probes,
// what the caches hold and do, on this replica or on all, and what changes that.
//
//	a, err := admin.New(admin.Config{TokenFile: "/run/secrets/admin-token", Gatherer: registry})
//	go http.Serve(listener, a)  // before the node is open: /startupz says so
//	n, err := node.Open(ctx, config)
//	a.Use(n)
//	...                         // once it can serve
//	a.Started()
//	...                         // when it is to end
//	a.Draining()
//
// openapi.yaml describes every route; it is served as /admin/v1/openapi.yaml. What only reads asks for no
// credential, so the port belongs on loopback or into a network of operators. What changes anything, profiles, or
// shows values asks for one: a bearer token, compared in constant time, or a client certificate. Without either
// being configured these routes are closed.
//
// The probes are for an orchestrator:
//
//	probe      200 when               503 when
//	/startupz  [API.Started]          before
//	/readyz    started, not draining  before, and from [API.Draining] on
//	/livez     the process answers    never
//
// Readiness depends on neither Redis nor NATS nor Postgres: they fail for all replicas at once, and taking all
// replicas out of service because a tier is gone turns a slow minute into an outage. What is wrong with them is in
// the body of /readyz ("degraded" and which check) and in the metrics. With ?verbose a probe answers in plain text, a
// line for each check with its figures: [+]redis ok (3 shards; 512 requests, 0 failed, 0 refused).
//
// Errors are problems of RFC 9457, with a type that docs/admin.md describes. Bodies are bounded to [MaxBody],
// requests to [Timeout], and a request of which anything is not understood changes nothing.
package admin
