// Package scale simulates many replicas that follow one log, to count what that costs Postgres and NATS
// and how old their knowledge is. The trackers, relays, hints and memberships are the real ones; the log
// and the message server are in memory, with latency, and time is a testing/synctest bubble's.
//
//	make scale REPLICAS=10,1000
package scale
