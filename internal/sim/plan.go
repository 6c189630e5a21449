package sim

import (
	"fmt"
	"strconv"
	"strings"
	"time"
)

// Plan is everything that decides one history: the setup, what clients do, and the faults. It is data,
// so that a history that fails can be made smaller by leaving out elements.
type Plan struct {
	// Seed decides every latency and every fate of a call: each is drawn from the seed and the call's
	// own name, so that a call keeps its latency when others are left out.
	Seed uint64
	Setup
	Ops []Op // in the order of At
}

// Setup is the size of the simulated system and its settings.
type Setup struct {
	Replicas int // that run at once, 1 to 8
	Keys     int // rows, 1 to 64
	Groups   int // lists, 1 to 8
	// Interval, Retention, MaxChanges and Scopes are those of [coherence.TrackerConfig].
	Interval, Retention time.Duration
	MaxChanges, Scopes  int
	// PollTimeout bounds a poll as [coherence.LogConfig] does.
	PollTimeout time.Duration
	// TTL of entries; MaxEntries of each L1.
	TTL        time.Duration
	MaxEntries int
	// Slow: one call in so many takes up to 100 times as long; 0 = none.
	Slow int
	// Func: rows are loaded by a function instead of SQL; 0 = no.
	Func int
}

// Op is one thing that happens at a time of its own: a read, a write or a fault.
type Op struct {
	At   time.Duration // since the start
	Kind OpKind
	// Replica that it goes to; a fault of all replicas, or a writer beside them, has -1.
	Replica int
	Key     int // row; of a list its group
	Session int // 0 = none
	Budget  time.Duration
	Stale   time.Duration // MaxStale
	For     time.Duration // how long a fault lasts or a transaction stays open
	Grace   time.Duration // of a write; of a read: it takes values in their grace, if not 0
	N       int           // how many, or which: see the kind
}

// OpKind says what an [Op] does.
type OpKind uint8

// The kinds of Op. Those up to lastRead are reads, those up to lastWrite writes, the others faults.
const (
	_ OpKind = iota

	ReadRow    // one row
	ReadDetail // the other view of a row
	ReadMany   // several rows, from Key on
	ReadList   // the rows of a group
	lastRead

	Put       // writes a row, in group N
	Delete    // deletes a row
	Detail    // changes what only the detail view shows
	Bulk      // writes every row in one statement
	Truncate  // deletes every row; one change for the namespace and one for everything
	Rekey     // gives a row the next key
	Replace   // deletes a row and inserts it anew, in one transaction, in group N
	Savepoint // writes Key, then the next key behind a savepoint to which it goes back
	Abort     // writes a row and rolls back
	lastWrite

	PostgresDown     // connections are refused
	PostgresSilent   // nothing is answered
	PostgresCrash    // and restarts: open transactions are gone, their ids may come again
	PostgresFailover // to a standby that lacks the last N commits
	PollsLost        // of the replica
	PollsSlow        // of the replica
	LoadsSlow        // of the replica
	LoadsFromStandby // of the replica: they are answered from a state of some commits ago
	CommitsUnknown   // the replies of commits are lost
	TrimLog          // all of the log that may go, goes
	Regenerate       // the namespace, or everything if N is odd, goes to another generation, or back to one

	RedisDown     // refused at once
	RedisSilent   // commands run into their time-outs
	ShardSilent   // those to one shard do
	RedisLate     // commands run into their time-outs and are carried out up to a second later
	RedisFailover // the last N writes are lost
	RedisDump     // comes back with a state of long ago
	RedisFlush    // loses everything
	RedisEvict    // loses one key in N
	RedisMixed    // has values under other keys, and cut ones

	HintsLost       // to the replica
	HintsLate       // to the replica
	HintsTwice      // to the replica
	HintsAbsurd     // the replica hears a hint of a transaction that is far ahead
	HintsOfAnother  // the replica hears a hint of another timeline
	HintsFromBefore // the replica hears an old hint again

	Stop    // the replica, as by SIGSTOP
	Restart // the replica, as by SIGKILL
	lastOp
)

var opNames = [lastOp]string{
	ReadRow: "read", ReadDetail: "read-detail", ReadMany: "read-many", ReadList: "list",
	Put: "put", Delete: "delete", Detail: "detail", Bulk: "bulk", Truncate: "truncate", Rekey: "rekey", Replace: "replace",
	Savepoint: "savepoint", Abort: "abort",
	PostgresDown: "postgres-down", PostgresSilent: "postgres-silent", PostgresCrash: "postgres-crash",
	PostgresFailover: "postgres-failover", PollsLost: "polls-lost", PollsSlow: "polls-slow", LoadsSlow: "loads-slow", LoadsFromStandby: "loads-from-standby",
	CommitsUnknown: "commits-unknown", TrimLog: "trim-log", Regenerate: "regenerate",
	RedisDown: "redis-down", RedisSilent: "redis-silent", ShardSilent: "shard-silent", RedisLate: "redis-late",
	RedisFailover: "redis-failover", RedisDump: "redis-dump", RedisFlush: "redis-flush", RedisEvict: "redis-evict", RedisMixed: "redis-mixed",
	HintsLost: "hints-lost", HintsLate: "hints-late", HintsTwice: "hints-twice", HintsAbsurd: "hints-absurd",
	HintsOfAnother: "hints-of-another", HintsFromBefore: "hints-from-before",
	Stop: "stop", Restart: "restart",
}

// String is the kind's name in the text of a plan.
func (k OpKind) String() string {
	if k < lastOp && opNames[k] != "" {
		return opNames[k]
	}
	return "op" + strconv.Itoa(int(k))
}

// IsRead and the others say what sort of operation the kind is.
func (k OpKind) IsRead() bool { return k < lastRead }

// IsWrite reports whether the kind is a write.
func (k OpKind) IsWrite() bool { return k > lastRead && k < lastWrite }

// IsFault reports whether the kind is a fault.
func (k OpKind) IsFault() bool { return k > lastWrite }

// String is the text of the plan, one line for the setup and one for each operation; [Parse] reads it.
func (p Plan) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "seed=%d", p.Seed)
	for _, f := range p.fields() {
		fmt.Fprintf(&b, " %s=%s", f.name, f.text())
	}
	b.WriteByte('\n')
	for i := range p.Ops {
		b.WriteString(p.Ops[i].String())
		b.WriteByte('\n')
	}
	return b.String()
}

// String is the operation's line: when, what, and the fields that are not zero.
func (o Op) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%v %v", o.At, o.Kind)
	for _, f := range o.fields() {
		if text := f.text(); text != "0" && text != "0s" {
			fmt.Fprintf(&b, " %s=%s", f.name, text)
		}
	}
	return b.String()
}

// Parse reads the text of a plan. Empty lines and those that begin with # are left out.
func Parse(text string) (Plan, error) {
	var p Plan
	first := true
	for line := range strings.Lines(text) {
		line = strings.TrimSpace(line)
		if line == "" || line[0] == '#' {
			continue
		}
		words := strings.Fields(line)
		var err error
		if first {
			first = false
			fields := append([]field{{"seed", nil, nil, &p.Seed}}, p.fields()...)
			err = parseFields(fields, words)
		} else {
			var op Op
			op, err = parseOp(words)
			p.Ops = append(p.Ops, op)
		}
		if err != nil {
			return Plan{}, fmt.Errorf("sim: %q: %w", line, err)
		}
	}
	return p, p.check()
}

func (p Plan) check() error {
	if p.Replicas < 1 || p.Replicas > 8 || p.Keys < 1 || p.Keys > 64 || p.Groups < 1 || p.Groups > 8 {
		return fmt.Errorf("sim: a plan of %d replicas, %d keys, %d groups: want 1 to 8, 1 to 64, 1 to 8", p.Replicas, p.Keys, p.Groups)
	}
	return nil
}

func parseOp(words []string) (Op, error) {
	var op Op
	if len(words) < 2 {
		return op, fmt.Errorf("want a time and an operation")
	}
	var err error
	if op.At, err = time.ParseDuration(words[0]); err != nil {
		return op, err
	}
	for kind, name := range opNames {
		if name == words[1] {
			op.Kind = OpKind(kind)
		}
	}
	if op.Kind == 0 {
		return op, fmt.Errorf("unknown operation %q", words[1])
	}
	return op, parseFields(op.fields(), words[2:])
}

// field is one named number of a plan or an operation; one of the pointers is set.
type field struct {
	name   string
	number *int
	span   *time.Duration
	seed   *uint64
}

func (f field) text() string {
	if f.span != nil {
		return f.span.String()
	}
	return strconv.Itoa(*f.number)
}

func (f field) parse(text string) (err error) {
	switch {
	case f.span != nil:
		*f.span, err = time.ParseDuration(text)
	case f.seed != nil:
		*f.seed, err = strconv.ParseUint(text, 10, 64)
	default:
		*f.number, err = strconv.Atoi(text)
	}
	return err
}

func parseFields(fields []field, words []string) error {
	for _, word := range words {
		name, text, ok := strings.Cut(word, "=")
		if !ok {
			return fmt.Errorf("%q: want name=value", word)
		}
		found := false
		for _, f := range fields {
			if f.name == name {
				found = true
				if err := f.parse(text); err != nil {
					return fmt.Errorf("%q: %w", word, err)
				}
			}
		}
		if !found {
			return fmt.Errorf("%q: unknown", word)
		}
	}
	return nil
}

func (s *Setup) fields() []field {
	return []field{
		{name: "replicas", number: &s.Replicas},
		{name: "keys", number: &s.Keys},
		{name: "groups", number: &s.Groups},
		{name: "interval", span: &s.Interval},
		{name: "retention", span: &s.Retention},
		{name: "changes", number: &s.MaxChanges},
		{name: "scopes", number: &s.Scopes},
		{name: "poll-timeout", span: &s.PollTimeout},
		{name: "ttl", span: &s.TTL},
		{name: "entries", number: &s.MaxEntries},
		{name: "slow", number: &s.Slow},
		{name: "func", number: &s.Func},
	}
}

func (o *Op) fields() []field {
	return []field{
		{name: "replica", number: &o.Replica},
		{name: "key", number: &o.Key},
		{name: "session", number: &o.Session},
		{name: "budget", span: &o.Budget},
		{name: "stale", span: &o.Stale},
		{name: "for", span: &o.For},
		{name: "grace", span: &o.Grace},
		{name: "n", number: &o.N},
	}
}
