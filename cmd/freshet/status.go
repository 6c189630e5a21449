package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"strings"
	"sync"
	"time"

	"golang.org/x/term"

	"github.com/freshet-cache/freshet/node"
)

// board shows the status: a few lines, redrawn in place on a terminal, one long line each time
// elsewhere. It is used from one goroutine.
type board struct {
	out      io.Writer
	terminal *os.File // nil when out is none
	drawn    int      // lines of status on the terminal, above the cursor
}

func newBoard(out io.Writer) *board {
	b := &board{out: out}
	if f, ok := out.(*os.File); ok && isTerminal(f) {
		b.terminal = f
	}
	return b
}

// status shows where the run is and the lines about it in place of those before. total is 0 when
// the run has no end.
func (b *board) status(elapsed, total time.Duration, lines ...string) {
	at := fmt.Sprintf("%3.0f s", elapsed.Seconds())
	if b.terminal == nil {
		fmt.Fprintf(b.out, "%s  %s\n", at, strings.Join(lines, "  "))
		return
	}
	if total > 0 {
		at += fmt.Sprintf(" of %.0f s  %s", total.Seconds(), bar(elapsed.Seconds()/total.Seconds()))
	}
	b.redraw(append([]string{at}, lines...))
}

// redraw shows the lines in place of those before, on a terminal. What has no place there is left out.
func (b *board) redraw(lines []string) {
	width, height := 80, 24
	if w, h, err := term.GetSize(int(b.terminal.Fd())); err == nil && w > 1 && h > 1 {
		width, height = w, h
	}
	lines = lines[:min(len(lines), height-1)]
	var text strings.Builder
	if b.drawn > 0 {
		fmt.Fprintf(&text, "\x1b[%dA\r\x1b[J", b.drawn) // up to the first drawn line, and clear from there
	}
	for _, line := range lines {
		if runes := []rune(line); len(runes) >= width { // a wrapped line would break the counting
			line = string(runes[:width-1])
		}
		text.WriteString(line + "\n")
	}
	fmt.Fprint(b.out, text.String())
	b.drawn = len(lines)
}

// barWidth is the length of the progress bar.
const barWidth = 40

// bar is a progress bar; done is from 0 to 1.
func bar(done float64) string {
	n := min(max(int(done*barWidth), 0), barWidth)
	return "[" + strings.Repeat("=", n) + strings.Repeat(" ", barWidth-n) + "]"
}

// event shows a line that stays, below the status so far.
func (b *board) event(elapsed time.Duration, text string) {
	fmt.Fprintf(b.out, "%3.0f s  %s\n", elapsed.Seconds(), text)
	b.drawn = 0
}

// counts are what the replicas counted, all namespaces together.
type counts struct {
	reads, l1, l2, owner, loads, negative, stale, errors uint64
}

func countsOf(s node.Stats) (c counts) {
	for _, n := range s.Namespaces {
		c.reads += n.Reads
		c.l1 += n.L1Hits
		c.l2 += n.L2Hits
		c.owner += n.OwnerHits
		c.loads += n.Loads
		c.negative += n.Negative
		c.stale += n.Stale
		c.errors += n.Errors
	}
	return c
}

// add adds what came after an earlier count of the same process.
func (c *counts) add(now, before counts) {
	c.reads += now.reads - before.reads
	c.l1 += now.l1 - before.l1
	c.l2 += now.l2 - before.l2
	c.owner += now.owner - before.owner
	c.loads += now.loads - before.loads
	c.negative += now.negative - before.negative
	c.stale += now.stale - before.stale
	c.errors += now.errors - before.errors
}

// reading is the replicas' state at one moment.
type reading struct {
	at       time.Time
	counts   map[uint64]counts // boot of a replica -> its
	answered int               // replicas that told their stats
	replicas int               // that there should be
	pollAge  float64           // seconds, of the replica that is furthest behind
	breakers map[string]string
}

// read asks all running replicas for their stats.
func (s *stand) read(ctx context.Context) reading {
	running := s.running()
	stats := make([]*node.Stats, len(running))
	var asking sync.WaitGroup
	for i, c := range running {
		asking.Go(func() { stats[i] = s.stats(ctx, c) })
	}
	asking.Wait()
	r := reading{at: time.Now(), replicas: s.options.replicas, breakers: map[string]string{}, counts: map[uint64]counts{}}
	for _, st := range stats {
		if st == nil {
			continue
		}
		r.answered++
		r.counts[st.Boot] = countsOf(*st)
		r.pollAge = max(r.pollAge, st.PollAge)
		for _, shard := range st.Shards {
			if r.breakers[shard.Name] == "" || shard.State != "closed" {
				r.breakers[shard.Name] = shard.State
			}
		}
	}
	return r
}

// stats are one replica's; nil when it does not answer.
func (s *stand) stats(ctx context.Context, c *child) *node.Stats {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+c.admin+"/admin/v1/stats", nil)
	if err != nil {
		return nil
	}
	resp, err := s.client.Do(req)
	if err != nil {
		return nil
	}
	defer resp.Body.Close()
	var st node.Stats
	if err := json.NewDecoder(io.LimitReader(resp.Body, 1<<20)).Decode(&st); err != nil || resp.StatusCode != http.StatusOK {
		return nil
	}
	return &st
}

// line is what the replicas counted since the last reading.
func (r reading) line(last reading) string {
	var d counts
	for boot, now := range r.counts {
		d.add(now, last.counts[boot])
	}
	seconds := max(r.at.Sub(last.at).Seconds(), 0.001)
	var b strings.Builder
	fmt.Fprintf(&b, "%.0f reads/s  l1 %s  l2 %s  owner %s  loads %.0f/s",
		float64(d.reads)/seconds, share(d.l1, d.reads), share(d.l2, d.reads), share(d.owner, d.reads), float64(d.loads)/seconds)
	if d.stale > 0 {
		fmt.Fprintf(&b, "  stale %s", share(d.stale, d.reads))
	}
	fmt.Fprintf(&b, "  behind %s  breakers %s", r.behind(), r.breakerText())
	if r.answered < r.replicas {
		fmt.Fprintf(&b, "  replicas %d/%d", r.answered, r.replicas)
	}
	return b.String()
}

// behind bounds how far the replicas' knowledge lies behind Postgres.
func (r reading) behind() string {
	if r.pollAge > time.Hour.Seconds() {
		return "unknown" // the node's word for it is a day
	}
	return fmt.Sprintf("<= %.0f ms", r.pollAge*1000)
}

func (r reading) breakerText() string {
	if len(r.breakers) == 0 {
		return "-"
	}
	counted := map[string]int{}
	for _, state := range r.breakers {
		counted[state]++
	}
	if counted["closed"] == len(r.breakers) {
		return "closed"
	}
	var parts []string
	for _, state := range []string{"open", "half-open", "closed"} {
		if n := counted[state]; n > 0 {
			parts = append(parts, fmt.Sprintf("%d %s", n, state))
		}
	}
	return strings.Join(parts, ", ")
}

// share is part of whole as a percentage, "-" of nothing.
func share(part, whole uint64) string {
	if whole == 0 {
		return "-"
	}
	return fmt.Sprintf("%.1f%%", 100*float64(part)/float64(whole))
}
