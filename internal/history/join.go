package history

// Audited is a change of one key as Postgres has it.
type Audited struct {
	Key, Op uint64
	Group   uint64
	Absent  bool
}

// Join makes the history of a run out of what its processes noted, what other writers know of their writes, and what
// Postgres says was committed, those of each key in their order. Of several changes of a key by one write, the last
// counts: no other was ever visible. A change whose write nobody noted happened at any time, for all that is known.
func Join(files []*File, writes []Write, audit []Audited) *History {
	h := &History{}
	known := map[uint64]Write{}
	learn := func(all []Write) {
		for _, w := range all {
			if old, ok := known[w.Op]; !ok || old.Acked == Never {
				known[w.Op] = w
			}
		}
	}
	learn(writes)
	for _, f := range files {
		h.Reads = append(h.Reads, f.Reads...)
		h.Lists = append(h.Lists, f.Lists...)
		h.Joints = append(h.Joints, f.Joints...)
		h.Failures = append(h.Failures, f.Failures...)
		learn(f.Writes)
	}
	last := map[Entry]int{} // key and op -> index of its last change in audit
	happened := map[uint64]bool{}
	for i, a := range audit {
		last[Entry{a.Key, a.Op}] = i
		happened[a.Op] = true
	}
	for i, a := range audit {
		if last[Entry{a.Key, a.Op}] != i {
			continue
		}
		c := Commit{Key: a.Key, Op: a.Op, Group: a.Group, Absent: a.Absent, Sent: Always, Acked: Never}
		if w, ok := known[a.Op]; ok {
			c.Sent, c.Acked, c.Session = w.Sent, w.Acked, w.Session
		}
		h.Commits = append(h.Commits, c)
	}
	for _, w := range known {
		if happened[w.Op] {
			continue
		}
		gone := &h.Lost
		if w.Acked == Never || w.Idle {
			gone = &h.Unsettled
		}
		keys := w.Keys
		if keys == nil {
			keys = []uint64{0}
		}
		for _, key := range keys {
			*gone = append(*gone, Commit{Key: key, Op: w.Op, Sent: w.Sent, Acked: w.Acked, Session: w.Session})
		}
	}
	return h
}
