package verify

import (
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/freshet-cache/freshet/internal/history"
)

// Report is what a run found.
type Report struct {
	Seed     uint64  `json:"seed"`
	Replicas int     `json:"replicas"`
	Keys     uint64  `json:"keys"`
	Phases   []Phase `json:"phases"`
}

// Phase is what one phase found. Shares are of all reads that were asked for, those without an answer
// among them.
type Phase struct {
	Fault string `json:"fault"`
	About string `json:"about"`

	Reads   uint64           `json:"reads"`   // answers that were judged, lists among them
	ByTier  map[uint8]uint64 `json:"by_tier"` // of them, by where they came from, as [Answer.Tier]
	Fresh   uint64           `json:"fresh"`   // of them, answers labelled FRESH
	Joints  uint64           `json:"joints"`  // of them, answers about several rows as of one moment
	Swept   uint64           `json:"swept"`   // answers after the end that were compared with Postgres
	Commits int              `json:"commits"` // of the run by the end of the phase
	// Lost are acknowledged changes that Postgres does not have. Only a failover that loses the tail may
	// lose some.
	Lost int `json:"lost"`

	// Violations counts broken promises by invariant; Kept are the first in words.
	Violations map[string]uint64 `json:"violations"`
	Kept       []string          `json:"kept,omitempty"`
	// Harm says what was still wrong long after the end; "" = nothing.
	Harm string `json:"harm,omitempty"`

	Before Share `json:"before"`
	During Share `json:"during"`
	After  Share `json:"after"`

	// Staleness of FRESH answers: how long a newer state had been there. In JSON all times are in ns.
	P50     time.Duration `json:"staleness_p50"`
	P999    time.Duration `json:"staleness_p99_9"`
	Longest time.Duration `json:"staleness_max"`
	// Recovery is the time from the end of the fault until at least 99 % of all reads were answered FRESH
	// and stayed so; Recovered says whether they did.
	Recovery  time.Duration `json:"recovery"`
	Recovered bool          `json:"recovered"`
	Converged time.Duration `json:"converged"` // from the last write until every replica answered everything FRESH
	Slowest   time.Duration `json:"slowest"`   // read
	FirstFail string        `json:"first_failure,omitempty"`

	Notes []string `json:"notes,omitempty"` // what the fault says of itself

	// Writes are those of the replicas' own load; a fault may well make some fail.
	// Verified are the entries of L1 that replicas compared with the source by themselves. What they took for wrong is
	// among the Violations, as "mismatch".
	Verified     uint64 `json:"verified"`
	Writes       uint64 `json:"writes"`
	WritesFailed uint64 `json:"writes_failed"`

	// SourceActive is the most backends that worked for loads at once, as Postgres saw it; SourcePeak the
	// most loads at once of one replica since it was opened, SourceBound what it promises.
	SourceActive int   `json:"source_active"`
	SourcePeak   int64 `json:"source_peak"`
	SourceBound  int64 `json:"source_bound"`
	// SourceRate is the mean rate of loads, of all replicas together, per second; SourceRateMost the
	// highest of a second.
	SourceRate     float64 `json:"source_rate"`
	SourceRateMost float64 `json:"source_rate_most"`
}

// Share is how reads of a part of a phase were answered.
type Share struct {
	Reads    uint64  `json:"reads"`
	Failures uint64  `json:"failures"`
	Fresh    float64 `json:"fresh"` // 0 to 1
	Stale    float64 `json:"stale"` // 0 to 1
}

func shareOf(c history.Counts) Share {
	s := Share{Reads: c.Reads, Failures: c.Failures, Fresh: c.FreshShare()}
	if all := c.Reads + c.Failures; all > 0 {
		s.Stale = float64(c.Stale) / float64(all)
	}
	return s
}

func newPhase(f fault, h *history.History, v *history.Report) *Phase {
	p := &Phase{
		Fault: f.name, About: f.about,
		Reads: v.Reads, Fresh: v.Fresh, Joints: v.Joints, Swept: v.Swept, ByTier: v.ByTier, Commits: len(h.Commits),
		Violations: map[string]uint64{},
		Before:     shareOf(v.Phases[0]), During: shareOf(v.Phases[1]), After: shareOf(v.Phases[2]),
	}
	p.P50, _ = v.Staleness(50)
	p.P999, p.Longest = v.Staleness(99.9)
	p.Recovery, p.Recovered = h.Recovered(h.Phases[2].From, h.Phases[2].To, 0.99)
	for i, n := range v.ByInvariant {
		p.Violations[i.String()] = n
	}
	for _, k := range v.Kept {
		p.Kept = append(p.Kept, k.String())
	}
	return p
}

// lost notes how many acknowledged changes the phase lost.
func (p *Phase) lost(f fault, n int) {
	if p.Lost = n; n > 0 && !f.lossy {
		p.Violations["lost"] = uint64(n)
	}
}

// Broken counts the broken promises of the phase.
func (p *Phase) Broken() (n uint64) {
	for _, v := range p.Violations {
		n += v
	}
	if p.Harm != "" {
		n++
	}
	return n
}

// Broken counts the broken promises of the run.
func (r *Report) Broken() (n uint64) {
	for i := range r.Phases {
		n += r.Phases[i].Broken()
	}
	return n
}

// Fresh counts the FRESH answers that were judged.
func (r *Report) Fresh() (n uint64) {
	for i := range r.Phases {
		n += r.Phases[i].Fresh
	}
	return n
}

// line is the phase in one line of text, and one more for each thing that is worth it.
func (p *Phase) line() string {
	lines := []string{fmt.Sprintf("%-28s %8d reads, %d violations, FRESH %s / %s / %s, staleness p99.9 %v max %v, recovery %s",
		p.Fault, p.Reads, p.Broken(), percent(p.Before), percent(p.During), percent(p.After), short(p.P999), short(p.Longest), p.recovery())}
	lines = append(lines, p.Notes...)
	lines = append(lines, p.Kept...)
	if p.Lost > 0 {
		lines = append(lines, fmt.Sprintf("%d acknowledged changes are lost", p.Lost))
	}
	if p.Harm != "" {
		lines = append(lines, "lasting harm: "+p.Harm)
	}
	if p.FirstFail != "" {
		lines = append(lines, fmt.Sprintf("%d reads failed, the first: %s", p.failures(), p.FirstFail))
	}
	return strings.Join(lines, "\n      ")
}

func (p *Phase) failures() uint64 { return p.Before.Failures + p.During.Failures + p.After.Failures }

func (p *Phase) recovery() string {
	if !p.Recovered {
		return "never"
	}
	return fmt.Sprintf("%.1f s", p.Recovery.Seconds())
}

func percent(s Share) string {
	if s.Reads+s.Failures == 0 {
		return "-"
	}
	return fmt.Sprintf("%.2f%%", float64(int(s.Fresh*10000))/100) // 100 % is all
}

func short(d time.Duration) time.Duration {
	if d > 10*time.Millisecond {
		return d.Round(time.Millisecond)
	}
	return d.Round(10 * time.Microsecond)
}

// WriteJSON writes the report as JSON.
func (r *Report) WriteJSON(to io.Writer) error {
	e := json.NewEncoder(to)
	e.SetIndent("", "  ")
	return e.Encode(r)
}

// WriteMarkdown writes the report as a table with a line for each fault.
func (r *Report) WriteMarkdown(to io.Writer) error {
	var b strings.Builder
	b.WriteString("| fault | reads checked | FRESH reads | violations | staleness p50 | p99.9 | max | FRESH before | during (STALE) | after | failed | recovery to 99 % | converged | loads at once | loads/s, most |\n")
	b.WriteString("|---|---|---|---|---|---|---|---|---|---|---|---|---|---|---|\n")
	var reads, fresh, joints, failed, swept, verified uint64
	for i := range r.Phases {
		p := &r.Phases[i]
		fmt.Fprintf(&b, "| %s | %d | %d | %d | %v | %v | %v | %s | %s (%.2f%%) | %s | %d | %s | %.1f s | %d of %d | %.0f |\n",
			p.Fault, p.Reads, p.Fresh, p.Broken(), short(p.P50), short(p.P999), short(p.Longest),
			percent(p.Before), percent(p.During), 100*p.During.Stale, percent(p.After), p.failures(), p.recovery(), p.Converged.Seconds(), p.SourcePeak, p.SourceBound, p.SourceRateMost)
		reads, fresh, joints, failed, swept = reads+p.Reads, fresh+p.Fresh, joints+p.Joints, failed+p.failures(), swept+p.Swept
		verified += p.Verified
	}
	fmt.Fprintf(&b, "| **all** | **%d** | **%d** | **%d** | | | | | | | %d | | | | |\n\n", reads, fresh, r.Broken(), failed)
	fmt.Fprintf(&b, "%d replicas, %d rows, seed %d; %d answers were about several rows as of one moment; %d answers after the end of a fault were compared with Postgres; replicas compared %d of their entries with Postgres themselves.\n",
		r.Replicas, r.Keys, r.Seed, joints, swept, verified)
	for i := range r.Phases {
		p := &r.Phases[i]
		if p.Broken() == 0 {
			continue
		}
		fmt.Fprintf(&b, "\n%s: %v", p.Fault, p.Violations)
		if p.Harm != "" {
			fmt.Fprintf(&b, ", lasting harm: %s", p.Harm)
		}
		b.WriteString("\n")
		for _, k := range p.Kept {
			fmt.Fprintf(&b, "- %s\n", k)
		}
	}
	_, err := io.WriteString(to, b.String())
	return err
}
