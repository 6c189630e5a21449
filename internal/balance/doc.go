// Package balance is the HTTP load balancer of the local stack: it spreads requests over replicas
// by fewest requests in flight, asks each replica's readiness several times a second, and hides the
// death of one from readers.
//
// What it promises: a GET or HEAD without a body that fails on one replica, up to the last byte of
// an answer of at most [Config].Buffer bytes, is sent again to another replica before the client
// sees anything. A write is sent again only when the connection was never made; when it broke
// later, the client gets 502, because nobody knows whether the write happened.
//
// What it does not: it keeps no sessions, speaks neither TLS nor WebSocket, and changes no header
// but X-Forwarded-*. It is for a demonstration and for tests on one machine, not for production;
// there a Kubernetes Service or Envoy stands in its place.
//
// When no replica is ready, requests are still tried on the ones that are not (readiness can be
// late on a starved machine); only a replica that cannot be reached at all yields 503.
package balance
