// Package replica is one process of the example: the shop's API over a cache node, with an admin
// port beside it. `freshet serve` is this package with flags.
//
// The API port carries the shop's routes; every answer names the replica in Freshet-Replica. The
// admin port carries /metrics (Prometheus), /stats (JSON of the node's counts) and the three probes,
// none of which asks for a credential, so it listens on loopback unless told otherwise.
//
//	probe      200 when                                          503 when
//	/startupz  the node is open, both ports are served, and the  before that
//	           first poll succeeded and the caches are warm,
//	           or StartTimeout went by
//	/readyz    started and not draining                          before, and from the first moment of a drain
//	/livez     the process answers                               never
//
// Readiness depends on neither Redis nor NATS nor Postgres: they fail for all replicas at once, and
// taking all replicas out of service because a cache tier is gone turns a slow minute into an
// outage. What is wrong with them is in the body of /readyz ("degraded" and which check) and in the
// metrics. A replica therefore starts with all three down, and answers as the node promises then.
//
// A drain, begun by the end of [Replica.Run]'s context, is: /readyz 503; wait DrainDelay, so that
// load balancers notice; stop accepting, finish requests within DrainTimeout; close the node, which
// publishes what it still has to; close the admin port.
package replica
