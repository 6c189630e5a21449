package replay

import (
	"maps"
	"sync"
	"sync/atomic"
	"time"

	hdr "github.com/HdrHistogram/hdrhistogram-go"
)

// histogram is of durations, 1 µs to 2 min, to three digits. It is not safe for concurrent use.
type histogram struct{ h *hdr.Histogram }

func newHistogram() histogram { return histogram{hdr.New(1, (2 * time.Minute).Microseconds(), 3)} }

func (h histogram) add(d time.Duration) {
	// The clamp makes every value one that the histogram takes.
	_ = h.h.RecordValue(min(max(d.Microseconds(), 0), (2 * time.Minute).Microseconds()))
}

func (h histogram) at(q float64) time.Duration {
	return time.Duration(h.h.ValueAtQuantile(q)) * time.Microsecond
}

func (h histogram) max() time.Duration { return time.Duration(h.h.Max()) * time.Microsecond }

// Names of latencies in the report that are not tiers.
const (
	overHTTP     = "http"          // service time of single products
	overHTTPDue  = "http_intended" // the same from when they were due
	listOverHTTP = "list"
	patchOver    = "write_http"
	updateOver   = "write_sql"
)

// maxKinds bounds the names counted one by one: failures and tiers come from answers.
const maxKinds = 64

// tally counts what the clients saw.
type tally struct {
	started atomic.Bool
	dropped atomic.Uint64

	mu           sync.Mutex
	reads, lists uint64
	fresh, stale uint64
	absent       uint64               // answers that there is no such product
	negative     uint64               // those from a cache
	tiers        map[string]uint64    // tier -> answers, lists aside
	latencies    map[string]histogram // tier or one of the names above -> service time
	writesHTTP   uint64
	writesSQL    uint64
	errors       map[string]uint64 // kind -> failures
	failures     uint64
	excused      uint64
	samples      []string           // of failures that are not excused, the first few in full
	change       map[bool]histogram // by SQL? -> change latency
	changes      histogram
	probes       ProbeReport
}

func newTally() *tally {
	return &tally{
		tiers: make(map[string]uint64), latencies: make(map[string]histogram), errors: make(map[string]uint64),
		changes: newHistogram(), change: map[bool]histogram{false: newHistogram(), true: newHistogram()},
	}
}

// latency adds to the named histogram. The lock is held.
func (t *tally) latency(name string, d time.Duration) {
	h, known := t.latencies[name]
	if !known {
		if len(t.latencies) >= maxKinds {
			return
		}
		h = newHistogram()
		t.latencies[name] = h
	}
	h.add(d)
}

func (t *tally) label(a answer) {
	t.reads++
	if a.fresh {
		t.fresh++
	} else {
		t.stale++
	}
}

// answered counts the answer to a read of one product.
func (t *tally) answered(a answer, r read) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.label(a)
	if _, known := t.tiers[a.tier]; known || len(t.tiers) < maxKinds {
		t.tiers[a.tier]++
	}
	if a.Revision == 0 {
		t.absent++
		if a.tier != "source" {
			t.negative++
		}
	}
	service := a.returned - a.invoked
	t.latency(a.tier, service)
	t.latency(overHTTP, service)
	if r.due >= 0 {
		t.latency(overHTTPDue, a.returned-r.due)
	}
}

func (t *tally) listed(a answer, due time.Duration) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.label(a)
	t.lists++
	t.latency(listOverHTTP, a.returned-a.invoked)
	t.latency(overHTTPDue, a.returned-due)
}

func (t *tally) wrote(k kind, service, intended time.Duration) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if k == writeSQL {
		t.writesSQL++
		t.latency(updateOver, service)
		return
	}
	t.writesHTTP++
	t.latency(patchOver, service)
	t.latency(overHTTPDue, intended)
}

// maxSamples is how many failures are reported in full.
const maxSamples = 10

func (t *tally) failed(kind, text string, excused bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.failures++
	if _, known := t.errors[kind]; !known && len(t.errors) >= maxKinds {
		kind = "other"
	}
	t.errors[kind]++
	if excused {
		t.excused++
	} else if len(t.samples) < maxSamples {
		t.samples = append(t.samples, text[:min(len(text), 500)])
	}
}

// unexcused are the failures so far that no fault excuses.
func (t *tally) unexcused() uint64 {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.failures - t.excused
}

func (t *tally) changed(after time.Duration, bySQL bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.changes.add(after)
	t.change[bySQL].add(after)
}

func (t *tally) probe(count func(*ProbeReport)) {
	t.mu.Lock()
	defer t.mu.Unlock()
	count(&t.probes)
}

func (t *tally) progress(p *Progress) {
	t.mu.Lock()
	defer t.mu.Unlock()
	p.Reads, p.Writes, p.Fresh, p.Stale = t.reads, t.writesHTTP+t.writesSQL, t.fresh, t.stale
	p.Errors, p.Dropped = t.failures, t.dropped.Load()
	p.L1, p.L2, p.Owner, p.Source = t.tiers["l1"], t.tiers["l2"], t.tiers["owner"], t.tiers["source"]
	if h, known := t.latencies[overHTTP]; known {
		p.Latency = h.at(99)
	}
	p.Change = t.changes.at(99)
}

// fill puts the counts into the report. Everything has ended.
func (t *tally) fill(r *Report) {
	t.mu.Lock()
	defer t.mu.Unlock()
	r.Reads, r.Lists, r.Fresh, r.Stale, r.Absent = t.reads, t.lists, t.fresh, t.stale, t.absent
	r.Writes, r.WritesHTTP, r.WritesSQL = t.writesHTTP+t.writesSQL, t.writesHTTP, t.writesSQL
	r.Errors, r.ErrorsExcused, r.ErrorsByKind, r.ErrorSamples = t.failures, t.excused, maps.Clone(t.errors), append([]string{}, t.samples...)
	r.Dropped = t.dropped.Load()
	if all := t.reads - t.lists; all > 0 {
		r.HitRatio = float64(t.tiers["l1"]+t.tiers["l2"]) / float64(all)
	}
	r.HitsL1, r.HitsL2, r.OwnerFills, r.SourceLoads = t.tiers["l1"], t.tiers["l2"], t.tiers["owner"], t.tiers["source"]
	r.NegativeHits = t.negative
	r.LatencyUS = make(map[string]Microseconds, len(t.latencies))
	for name, h := range t.latencies {
		r.LatencyUS[name] = microseconds(h)
	}
	r.ChangeLatencyMS = milliseconds(t.changes)
	r.ChangeLatencyHTTPMS, r.ChangeLatencySQLMS = milliseconds(t.change[false]), milliseconds(t.change[true])
	r.Probes = t.probes
}
