// Package replica is one process of the example: the shop's API over a cache node, with an admin
// port beside it. `freshet serve` is this package with flags.
//
// The API port carries the shop's routes; every answer names the replica in Freshet-Replica. The admin port is
// package node/admin's: metrics, probes, and what operators see and steer. What only reads there asks for no
// credential, so it listens on loopback unless told otherwise; [AdminTLS] has it speak TLS. A replica has started when the
// node is open, both ports are served, and the first poll succeeded and the caches are warm, or StartTimeout went by: it
// starts with Redis, NATS and Postgres all down, too, and answers as the node promises then.
//
// A drain, begun by the end of [Replica.Run]'s context, is:
//
//  1. /readyz is 503, and every answer says Connection: close, so that whoever sent the request opens its next
//     connection elsewhere and no connection is closed under a request that is being sent on it;
//  2. for DrainDelay all else goes on, so that load balancers notice;
//  3. the API accepts no more; idle connections, which nobody has used meanwhile, are closed, those in use behind
//     their answers, within DrainTimeout;
//  4. the node closes: writes end, what it holds of later puts is flushed, hints are sent, peers hear that it leaves,
//     and Redis, NATS and Postgres are left; the last spans are sent;
//  5. the admin port closes.
//
// No request fails that was sent before the balancer could know, unless it takes longer than DrainTimeout.
package replica
