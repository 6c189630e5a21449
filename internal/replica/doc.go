// Package replica is one process of the example: the shop's API over a cache node, with an admin
// port beside it. `freshet serve` is this package with flags.
//
// The API port carries the shop's routes; every answer names the replica in Freshet-Replica. The admin port is
// package node/admin's: metrics, probes, and what operators see and steer. What only reads there asks for no
// credential, so it listens on loopback unless told otherwise. A replica has started when the node is open, both
// ports are served, and the first poll succeeded and the caches are warm, or StartTimeout went by: it starts with
// Redis, NATS and Postgres all down, too, and answers as the node promises then.
//
// A drain, begun by the end of [Replica.Run]'s context, is: /readyz 503; wait DrainDelay, so that
// load balancers notice; stop accepting, finish requests within DrainTimeout; close the node, which
// publishes what it still has to; send the last spans; close the admin port.
package replica
