// Package sim runs histories of a simulated cluster: the real [coherence.Tracker] and the real
// [tiers.Cache] of several replicas, over models of Postgres, Redis and NATS, under one scheduler that
// a seed decides. See [Plan] and [Run].
//
// Each call to a server waits until the scheduler carries it out and then until it delivers the answer;
// between two steps all goroutines of the product are durably blocked ([synctest.Wait]). Time is
// virtual and passes only while all wait.
package sim
