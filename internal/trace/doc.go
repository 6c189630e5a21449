// Package trace supplies the accesses of a load test: from a file that a real system wrote, or from
// a seeded generator where there is none.
//
// # Model
//
// A trace is a sequence of keys, each a uint64 that means nothing but "the same thing as before".
// [Open] reads one from a file, key by key, in memory that does not grow with the file:
//
//	r, err := trace.Open("web07.trace.xz", trace.Detect)
//	if err != nil { ... }
//	defer r.Close()
//	ids, err := trace.NewMapping(100_000, 1)
//	for {
//		key, err := r.Next() // io.EOF after the last; trace.NewLoop(r) begins again instead
//		if err != nil { ... }
//		id := ids.ID(key) // 1..100_000
//	}
//
// Two formats are known, plain or compressed with xz (recognised by its magic number, whatever the
// file is called): [Cache2k], 32-bit big-endian keys, and [Lines], one key per line.
//
// [NewZipf] is the synthetic source: the scrambled Zipf distribution of YCSB.
//
// [Mapping] puts the keys of any source onto the ids 1..N that exist in the catalogue under test.
//
// Nothing here is safe for concurrent use; one goroutine schedules a load test.
//
// # Not promised
//
// Two lines of a Lines trace that have the same 64-bit hash count as one key. Traces hold reads
// only: who turns some of them into writes does so by a rule of their own and should say so.
package trace
