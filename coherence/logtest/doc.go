// Package logtest holds what tests of a node's coherence need: [Memory], a log in memory that can be
// made to fail, stall and crash, and [Exercise], the suite that every [coherence.Log] passes, Memory
// like the one in Postgres.
//
//	log := logtest.NewMemory()
//	tracker := coherence.NewTracker(coherence.TrackerConfig{Log: log, Boot: 1})
//	defer tracker.Close()
//	tx := log.Begin()
//	tx.Change(coherence.Entity("product", "42"))
//	tx.Commit()
//
// Memory waits with the time package only, so that it runs inside a bubble of testing/synctest.
package logtest
