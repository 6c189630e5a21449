// Package cluster answers "who and where": under which key text an entity is cached and on which
// Redis Cluster slot, which replicas of the application are alive, and which of them is the owner of
// an entity.
//
// # Keys
//
// [Keys] writes the key text, which is
//
//	<app>:v<generation>:{<namespace>:<id>}:<view>             one representation of an entity
//	<app>:v<generation>:{<namespace>?<hash>}:<view>           the result of a query
//	<app>:v<generation>:{<namespace>:<id>}:<view>:lease       the load lease of either
//
// The [Generation] is two numbers, the application's and the namespace's: "3.1". The braces are Redis
// Cluster's hash tag, so every generation and view of an entity, and their leases, share one [Slot]. Two
// different entities, queries, views or generations never share a key: bytes of an id that mean something
// in this text are escaped, and [ParseKey] is the exact inverse. The usual views are detail
// for an entity, and list and count for the results of queries, whose hash is that of their [Params]. An
// entity that several columns name has the [ID] of their texts.
//
// # Membership
//
// Every replica says once a second on NATS that it is alive; [Membership] turns what it hears into a
// [View], and [Owner] picks one member for an entity such that all replicas with equal views agree.
//
// The authority on what is *correct* is never here. Views differ between replicas, lag behind the
// truth by seconds, and are empty but for oneself while NATS is away. They choose whom to ask first
// and what an operator is shown; a wrong choice costs a load from the source, never a wrong answer.
// Heartbeats are believed as they come: who may publish on the application's NATS subjects may
// invent members.
package cluster
