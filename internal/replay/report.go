package replay

import (
	"cmp"
	"encoding/json"
	"fmt"
	"io"
	"runtime"
	"time"

	"github.com/freshet-cache/freshet/internal/check"
)

// SchemaVersion is the version of [Report]'s JSON: it goes up when a field changes its meaning or
// goes away.
const SchemaVersion = 1

// Report is the outcome of a run. In JSON, names end in their unit.
type Report struct {
	SchemaVersion int     `json:"schema_version"`
	Machine       Machine `json:"machine"`

	Rate        float64 `json:"rate"`       // accesses per second asked for
	AchievedS   float64 `json:"rate_done"`  // accesses per second that were not dropped
	DurationS   float64 `json:"duration_s"` // until the last answer
	Replicas    int     `json:"replicas"`   // running at the end
	Products    int     `json:"products"`
	Seed        uint64  `json:"seed"`
	Interrupted bool    `json:"interrupted"`

	Scheduled  uint64       `json:"scheduled"`          // accesses that were due
	Dropped    uint64       `json:"dropped"`            // not made, since MaxInFlight were under way
	LatenessUS Microseconds `json:"driver_lateness_us"` // from due until the driver came to it

	Reads  uint64 `json:"reads"`  // answered; of products and lists; without probes and the final comparison
	Lists  uint64 `json:"lists"`  // of them
	Absent uint64 `json:"absent"` // of them, answered that there is no such product
	Fresh  uint64 `json:"fresh"`
	Stale  uint64 `json:"stale"`

	Writes        uint64 `json:"writes"` // acknowledged
	WritesHTTP    uint64 `json:"writes_http"`
	WritesSQL     uint64 `json:"writes_sql"`
	WritesUnknown uint64 `json:"writes_unknown"` // may or may not have happened
	WritesForeign uint64 `json:"writes_foreign"` // revisions in Postgres that nobody here wrote

	Errors        uint64            `json:"errors"`         // failed requests and updates
	ErrorsExcused uint64            `json:"errors_excused"` // of them, during a fault
	ErrorsByKind  map[string]uint64 `json:"errors_by_kind"`
	ErrorSamples  []string          `json:"error_samples"` // of those not excused, the first ten

	Violations      uint64                     `json:"violations"`
	ViolationsBy    map[check.Invariant]uint64 `json:"violations_by"` // none = 0
	FirstViolations []check.Violation          `json:"first_violations"`
	Checked         uint64                     `json:"checked"`       // answers judged, probes and products in lists included
	CheckedEarly    uint64                     `json:"checked_early"` // of them, leniently, before all was known

	// HitRatio is the share of l1 and l2 among the answers of single products to the load's reads. The
	// counts below it are the replicas' own, of everything they did meanwhile, probes and lists
	// included; or, when CountsFrom is "answers", taken from the load's answers.
	HitRatio     float64 `json:"hit_ratio"`
	CountsFrom   string  `json:"counts_from"`
	HitsL1       uint64  `json:"hits_l1"`
	HitsL2       uint64  `json:"hits_l2"`
	OwnerFills   uint64  `json:"owner_fills"`
	SourceLoads  uint64  `json:"source_loads"`
	NegativeHits uint64  `json:"negative_hits"`

	// StalenessMS is of FRESH answers: how long before the read was sent the first commit that the
	// answer lacks had been acknowledged.
	StalenessMS Milliseconds `json:"staleness_ms"`
	// ChangeLatencyMS is from the acknowledgement of a write until a replica first showed it, over
	// sampled writes and all replicas; below it for the writes of each way alone.
	ChangeLatencyMS     Milliseconds `json:"change_latency_ms"`
	ChangeLatencyHTTPMS Milliseconds `json:"change_latency_http_ms"`
	ChangeLatencySQLMS  Milliseconds `json:"change_latency_sql_ms"`
	Probes              ProbeReport  `json:"probes"`

	// LatencyUS has, by name: http (single products), http_intended (everything over HTTP, from when
	// it was due), each tier (l1, l2, owner, source), list, write_http, write_sql.
	LatencyUS map[string]Microseconds `json:"latency_us"`

	Faults     []FaultReport    `json:"faults"`
	Restarts   []RestartReport  `json:"restarts"`
	Comparison ComparisonReport `json:"comparison"`
}

// Machine says where the numbers come from.
type Machine struct {
	Go   string `json:"go"`
	OS   string `json:"os"`
	Arch string `json:"arch"`
	CPUs int    `json:"cpus"`
}

// Microseconds are points of a distribution; all are 0 when Count is.
type Microseconds struct {
	Count int64 `json:"count"`
	P50   int64 `json:"p50"`
	P99   int64 `json:"p99"`
	P999  int64 `json:"p999"`
	Max   int64 `json:"max"`
}

// Milliseconds are points of a distribution; all are 0 when Count is.
type Milliseconds struct {
	Count int64   `json:"count"`
	P50   float64 `json:"p50"`
	P99   float64 `json:"p99"`
	Max   float64 `json:"max"`
}

// ProbeReport counts what was done for the change latency.
type ProbeReport struct {
	Writes        uint64 `json:"writes"` // sampled
	Reads         uint64 `json:"reads"`
	Failed        uint64 `json:"failed"`  // reads without an answer; they are repeated
	Skipped       uint64 `json:"skipped"` // (write, replica) not followed: too many at a time
	Gone          uint64 `json:"gone"`    // (write, replica) given up because the replica was taken away
	Unseen        uint64 `json:"unseen"`  // (write, replica) not shown within the limit
	UnseenExcused uint64 `json:"unseen_excused"`
}

// FaultReport is something that was broken on purpose. Times are since the run began.
type FaultReport struct {
	Name    string   `json:"name"`
	BeganS  float64  `json:"began_s"`
	HealedS *float64 `json:"healed_s"` // null = it never was
}

// ComparisonReport is how the end state was compared with Postgres.
type ComparisonReport struct {
	Written    int    `json:"written"`    // products
	Compared   int    `json:"compared"`   // of them, at every replica
	Answers    uint64 `json:"answers"`    // (product, replica)
	Unanswered uint64 `json:"unanswered"` // (product, replica)
	Problem    string `json:"problem"`    // why it is not complete; "" = it is
}

func microseconds(h histogram) Microseconds {
	return Microseconds{
		Count: h.h.TotalCount(), P50: h.at(50).Microseconds(), P99: h.at(99).Microseconds(),
		P999: h.at(99.9).Microseconds(), Max: h.max().Microseconds(),
	}
}

func milliseconds(h histogram) Milliseconds {
	return Milliseconds{Count: h.h.TotalCount(), P50: ms(h.at(50)), P99: ms(h.at(99)), Max: ms(h.max())}
}

func ms(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }

// report puts everything together. Nothing runs any more.
func (d *Driver) report(s *schedule, c comparison, lasted time.Duration, interrupted bool) Report {
	sum := d.checker.Summary()
	r := Report{
		SchemaVersion: SchemaVersion,
		Machine:       Machine{Go: runtime.Version(), OS: runtime.GOOS, Arch: runtime.GOARCH, CPUs: runtime.NumCPU()},
		Rate:          d.config.rate(),
		DurationS:     lasted.Seconds(),
		Replicas:      len(d.config.replicas()),
		Products:      len(d.products),
		Seed:          d.config.Seed,
		Interrupted:   interrupted,
		Scheduled:     s.scheduled,
		LatenessUS:    microseconds(s.late),
		WritesUnknown: sum.Unknown,
		WritesForeign: sum.ForeignWrites,
		Violations:    sum.Violations,
		ViolationsBy:  sum.Counts,
		Checked:       sum.Reads,
		CheckedEarly:  sum.Early,
		StalenessMS:   Milliseconds{Count: sum.Staleness.Count, P50: ms(sum.Staleness.P50), P99: ms(sum.Staleness.P99), Max: ms(sum.Staleness.Max)},
		Faults:        d.faults.reports(),
		Restarts:      d.restarts.reports(),
		Comparison: ComparisonReport{
			Written: c.written, Compared: c.compared, Answers: sum.Swept, Unanswered: c.unanswered, Problem: c.problem,
		},
	}
	r.FirstViolations = append([]check.Violation{}, sum.First...)
	if r.ViolationsBy == nil {
		r.ViolationsBy = map[check.Invariant]uint64{}
	}
	d.tally.fill(&r)
	d.servers.fill(&r)
	r.AchievedS = float64(s.scheduled-s.dropped) / max(lasted.Seconds(), 1e-9)
	return r
}

// Problems are the reasons to call the run a failure, for an operator; none = it went well. They are:
// a broken promise (a FRESH answer older than its budget, an acknowledged write that is lost, and the
// like), requests that failed without a fault, a restarted replica whose caches stayed cold, and an end state that could
// not be compared.
func (r Report) Problems() []string {
	var all []string
	bad := func(format string, args ...any) { all = append(all, fmt.Sprintf(format, args...)) }
	if r.Violations > 0 {
		bad("%d broken promises %v; the first: %s", r.Violations, r.ViolationsBy, firstOf(r.FirstViolations))
	}
	if n := r.Errors - r.ErrorsExcused; n > 0 {
		bad("%d requests failed without a fault %v; the first: %s", n, r.ErrorsByKind, firstOf(r.ErrorSamples))
	}
	if n := r.Probes.Unseen - r.Probes.UnseenExcused; n > 0 {
		bad("%d times a replica did not show a write in time, without a fault", n)
	}
	for _, s := range r.Restarts {
		if s.Measured && !r.Interrupted && (s.RecoveredS == nil || s.AllRecoveredS == nil) {
			bad("the restart of %s: the hit ratios were not back within %v: l1 %.1f %% and hits %.1f %% before, %.1f %% and %.1f %% after", s.Replica,
				RecoveryLimit, 100*s.Before.L1, 100*s.Before.Hits, 100*s.After.L1, 100*s.After.Hits)
		}
	}
	if r.Comparison.Problem != "" && !r.Interrupted {
		bad("the end state was not compared in full: %s", r.Comparison.Problem)
	}
	if r.Reads == 0 && !r.Interrupted {
		bad("no read was answered, so nothing was shown")
	}
	return all
}

func firstOf[T any](all []T) string {
	if len(all) == 0 {
		return "none was kept"
	}
	return fmt.Sprint(all[0])
}

// Bounds of what counts as keeping up.
const lateLimit = 10 * time.Millisecond

// Warnings are what to know before believing the numbers, for an operator.
func (r Report) Warnings() []string {
	var all []string
	warn := func(format string, args ...any) { all = append(all, fmt.Sprintf(format, args...)) }
	if r.Dropped > 0 {
		warn("the shop fell behind: %d of %d accesses (%.2f %%) were dropped because all slots were busy; lower the rate, or read latency_us.http_intended",
			r.Dropped, r.Scheduled, 100*float64(r.Dropped)/float64(cmp.Or(r.Scheduled, 1)))
	}
	if p99 := time.Duration(r.LatenessUS.P99) * time.Microsecond; p99 > lateLimit {
		warn("the driver itself fell behind: p99 of its lateness is %v (service times leave that out, intended ones hold it)", p99)
	}
	if r.WritesForeign > 0 {
		warn("%d updates came from writers other than this run; phantoms of those products are excused", r.WritesForeign)
	}
	if r.CheckedEarly > 0 {
		warn("%d answers were judged leniently, before the writes around them had ended", r.CheckedEarly)
	}
	for _, s := range r.Restarts {
		if !s.Measured {
			warn("the restart of %s: there were too few reads to tell when its hit ratio was back", s.Replica)
		}
	}
	if r.Interrupted {
		warn("the run was interrupted: the end state was not compared")
	}
	return all
}

// WriteJSON writes the report, indented, with a final newline.
func (r Report) WriteJSON(w io.Writer) error {
	e := json.NewEncoder(w)
	e.SetIndent("", "  ")
	return e.Encode(r)
}
