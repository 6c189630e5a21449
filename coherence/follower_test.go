package coherence_test

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/freshet-cache/freshet/coherence"
)

var update = flag.Bool("update", false, "write the transcripts in testdata anew")

// ownBoot is the follower's own process in the transcripts.
const ownBoot = 1

// The transcripts in testdata say what a follower does: each line after ">" is an event, or a question
// to the directory, and what is indented below is what comes of it. Run the test with -update to write
// the answers anew, and review them as a diff.
//
//	> send                                    a poll goes out
//	> poll 1/100:100: horizon=1/9:9: 99=a     it comes back: snapshot, horizon, transaction=scope ...
//	> poll 1/100:100: overrun                 it comes back with too much
//	> poll 1/100:100: generations=v1          it comes back with the generations of a version
//	> poll 1/100:100: 99=a~5                  a change with a grace of 5 units of the clock, which counts polls
//	> hint boot=2 seq=1 1/99 a b              timeline/transaction and scopes, from a node's process
//	> peer boot=2 seq=5                       a node's heartbeat
//	> missed                                  the bus was down
//	> wrote 1/99 a                            an own write
//	> wrote 1/99 a~5                          one with a grace, counted from now
//	> serve a 1/100:100:                      a value is served if it is valid, or by its grace
//	> wait 5                                  the clock goes on
func TestFollowerTranscripts(t *testing.T) {
	files, err := filepath.Glob("testdata/*.txt")
	if err != nil || len(files) < 15 {
		t.Fatalf("%d transcripts, %v", len(files), err)
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".txt"), func(t *testing.T) {
			want, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			got := transcript(t, string(want))
			if *update {
				if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
					t.Fatal(err)
				}
			} else if got != string(want) {
				t.Errorf("%s differs; run with -update and look at the diff. Got:\n%s", file, got)
			}
		})
	}
}

// transcript runs the events of a text and returns it with what came of them.
func transcript(t *testing.T, text string) string {
	t.Helper()
	dir := coherence.NewDirectory(64)
	play := &play{t: t, dir: dir, follower: coherence.NewFollower(ownBoot, dir), names: map[coherence.ScopeHash]string{}}
	var out strings.Builder
	for line := range strings.Lines(text) {
		if strings.HasPrefix(line, "  ") {
			continue // an old answer
		}
		out.WriteString(line)
		event, is := strings.CutPrefix(strings.TrimSpace(line), "> ")
		if !is {
			continue
		}
		for _, answer := range play.event(strings.Fields(event)) {
			out.WriteString("  " + answer + "\n")
		}
	}
	return out.String()
}

type play struct {
	t        *testing.T
	dir      *coherence.Directory
	follower *coherence.Follower
	names    map[coherence.ScopeHash]string
	mark     uint64 // of the poll on its way
	sent     coherence.Instant
	now      coherence.Instant
}

func (p *play) event(words []string) []string {
	p.t.Helper()
	verb, args := words[0], words[1:]
	switch verb {
	case "send":
		since, mark := p.follower.Send()
		p.mark = mark
		p.now++
		p.sent = p.now
		return []string{fmt.Sprintf("since %s, mark %d", since, mark)}
	case "poll":
		e := coherence.PollReturned{Sent: p.sent, Mark: p.mark, Result: coherence.PollResult{Snapshot: p.snapshot(args[0])}}
		e.Result.Horizon = coherence.Snapshot{Timeline: e.Result.Snapshot.Timeline, Xmin: 1, Xmax: 1}
		for _, arg := range args[1:] {
			key, value, _ := strings.Cut(arg, "=")
			switch key {
			case "overrun":
				e.Result.Overrun = true
			case "generations":
				e.Result.Generations = coherence.NewGenerations(value, nil)
			case "horizon":
				e.Result.Horizon = p.snapshot(value)
			default:
				name, grace := p.graced(value)
				e.Result.Changes = append(e.Result.Changes, coherence.Change{XID: p.number(key), Scope: p.scope(name), Grace: grace})
			}
		}
		return p.step(e)
	case "hint":
		e := coherence.HintHeard{Hint: coherence.Hint{Boot: p.named("boot", args[0]), Seq: p.named("seq", args[1])}}
		e.Hint.Timeline, e.Hint.XID = p.transaction(args[2])
		e.Hint.Scopes = p.scopes(args[3:])
		return p.step(e)
	case "peer":
		return p.step(coherence.PeerHeard{Boot: p.named("boot", args[0]), Seq: p.named("seq", args[1])})
	case "missed":
		return p.step(coherence.HintsMissed{})
	case "wrote":
		name, grace := p.graced(args[1])
		e := coherence.Wrote{Scopes: p.scopes(append([]string{name}, args[2:]...)), Grace: grace, Since: p.now}
		e.Timeline, e.XID = p.transaction(args[0])
		return p.step(e)
	case "serve":
		scope, s := p.scope(args[0]), p.snapshot(args[1])
		grace, ok := p.dir.CheckGrace(scope, s, p.now)
		switch {
		case !p.dir.Check(scope, s) && ok:
			return []string{fmt.Sprintf("in its grace: since %d, until %d", grace.Since, grace.Until)}
		case !p.dir.Check(scope, s):
			return []string{"not valid"}
		case !p.dir.CheckNote(scope, s):
			return []string{"behind what was served"}
		}
		p.dir.Note(scope, s)
		return []string{"served"}
	case "wait":
		p.now += coherence.Instant(p.number(args[0]))
		return []string{fmt.Sprintf("now %d", p.now)}
	}
	p.t.Fatalf("unknown event %q", verb)
	return nil
}

func (p *play) step(e coherence.Event) []string {
	do := p.follower.Step(e)
	var answers []string
	if len(do.Raised) > 0 {
		line := "raised"
		for _, scope := range do.Raised {
			line += " " + p.names[scope]
		}
		answers = append(answers, line)
	}
	if do.Generations != nil {
		answers = append(answers, "generations "+do.Generations.Version())
	}
	if do.Flush != "" {
		answers = append(answers, "flush: "+string(do.Flush))
	}
	if do.Unproven {
		answers = append(answers, "unproven")
	}
	if do.Latest != nil {
		answers = append(answers, fmt.Sprintf("latest %s, sent at %d", do.Latest, do.Latest.Sent))
	}
	if do.Renew != 0 {
		answers = append(answers, fmt.Sprintf("renew timeline %x", do.Renew))
	}
	if do.Missed > 0 {
		answers = append(answers, fmt.Sprintf("missed %d", do.Missed))
	}
	if do.Refused > 0 {
		answers = append(answers, fmt.Sprintf("refused %d", do.Refused))
	}
	if do.Poll {
		answers = append(answers, "poll soon")
	}
	if answers == nil {
		answers = []string{"nothing"}
	}
	return answers
}

func (p *play) snapshot(text string) coherence.Snapshot {
	p.t.Helper()
	timeline, text, _ := strings.Cut(text, "/")
	s, err := coherence.ParseSnapshot(p.number(timeline), text)
	if err != nil {
		p.t.Fatal(err)
	}
	return s
}

func (p *play) transaction(text string) (timeline, xid uint64) {
	p.t.Helper()
	before, after, _ := strings.Cut(text, "/")
	return p.number(before), p.number(after)
}

// graced is a name with the grace behind it.
func (p *play) graced(text string) (name string, grace time.Duration) {
	p.t.Helper()
	name, after, graced := strings.Cut(text, "~")
	if graced {
		grace = time.Duration(p.number(after))
	}
	return name, grace
}

func (p *play) named(name, text string) uint64 {
	p.t.Helper()
	key, value, _ := strings.Cut(text, "=")
	if key != name {
		p.t.Fatalf("%q: want %s=number", text, name)
	}
	return p.number(value)
}

func (p *play) number(text string) uint64 {
	p.t.Helper()
	n, err := strconv.ParseUint(text, 10, 64)
	if err != nil {
		p.t.Fatal(err)
	}
	return n
}

func (p *play) scopes(names []string) []coherence.ScopeHash {
	var scopes []coherence.ScopeHash
	for _, name := range names {
		scopes = append(scopes, p.scope(name))
	}
	return scopes
}

func (p *play) scope(name string) coherence.ScopeHash {
	hash := coherence.Entity("n", name).Hash()
	if name == "generations" {
		hash = coherence.AllGenerations().Hash()
	}
	p.names[hash] = name
	return hash
}
