// Package model holds what Postgres and a Redis Cluster do, as far as Freshet depends on it, as plain
// state machines: no goroutine, clock, channel or lock. Each method is one atomic step; the caller
// decides the order of steps and, where time matters, says what time it is. Tests in this package run
// seeded schedules on the models and on the real servers and compare what both say after each step.
//
//	p := model.NewPostgres(model.Watch[Product]{Namespace: "product"}, model.FirstXID)
//	p.Renew(0)
//	tx := p.Begin()
//	if _, err := tx.Update([]uint64{42}, func(_ uint64, old Product) Product { ... }); err == model.ErrBlocked {
//		... // until tx.Waits() is nil, then tx.Resume()
//	}
//	tx.Commit()
//	at := p.Snapshot() // what a statement sent now sees,
//	row, ok := p.Get(42) // and the row in it
//
// # Postgres
//
// One database with one keyed table, READ COMMITTED writers, and the schema freshet: the log that the
// watch of the table writes in the writer's transaction, generations, horizon and timeline. Transaction ids,
// savepoints' included, are drawn at the same statements as on the server, so that snapshots agree to
// the number.
//
// Coarser than the server: a statement that must wait has changed nothing yet (the server may have locked
// some of several rows before it waits), who waits first does not come first, a deadlock ends the
// transaction that closes the circle, at once, and there are no locks but those of written rows and of
// TRUNCATE.
//
// # Redis
//
// The commands that the library sends, as each primary carries them out, with one replica each that is
// some commands behind. Memory has no bound; evicting a key is a step of its own.
package model
