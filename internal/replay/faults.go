package replay

import (
	"slices"
	"sync"
	"time"
)

// afterFault is how long behind a fault's end the errors that it caused may go on: retries under way,
// breakers that are still open.
const afterFault = 2 * time.Second

// maxFaults bounds those reported; more are in force but not named.
const maxFaults = 100

// Fault is something that was broken on purpose during a run.
type Fault struct {
	d     *Driver
	name  string
	began time.Duration
	ended time.Duration // 0 = in force
}

// faults are those of one run, in the order of their beginnings.
type faults struct {
	mu  sync.Mutex
	all []*Fault
}

// Fault says that something is being broken, from now until [Fault.Healed]. Meanwhile, and for two
// seconds more, failed requests are counted as excused. Broken promises never are.
func (d *Driver) Fault(name string) *Fault {
	f := &Fault{d: d, name: name}
	if d.tally.started.Load() {
		f.began = d.clock()
	}
	d.faults.mu.Lock()
	defer d.faults.mu.Unlock()
	d.faults.all = append(d.faults.all, f)
	return f
}

// Healed says that the fault is over: all that was broken works again. Only the first call counts.
func (f *Fault) Healed() {
	f.d.faults.mu.Lock()
	defer f.d.faults.mu.Unlock()
	if f.ended == 0 {
		f.ended = max(1, f.d.clock())
	}
}

// excuse reports whether a fault was in force, or its traces were, at any time in between.
func (fs *faults) excuse(from, to time.Duration) bool {
	fs.mu.Lock()
	defer fs.mu.Unlock()
	for _, f := range fs.all {
		if f.began <= to && (f.ended == 0 || from <= f.ended+afterFault) {
			return true
		}
	}
	return false
}

// current names the fault in force that began last, "" if there is none.
func (fs *faults) current() string {
	fs.mu.Lock()
	defer fs.mu.Unlock()
	for _, f := range slices.Backward(fs.all) {
		if f.ended == 0 {
			return f.name
		}
	}
	return ""
}

func (fs *faults) reports() []FaultReport {
	fs.mu.Lock()
	defer fs.mu.Unlock()
	reports := []FaultReport{}
	for _, f := range fs.all[:min(len(fs.all), maxFaults)] {
		r := FaultReport{Name: f.name, BeganS: f.began.Seconds()}
		if f.ended > 0 {
			healed := f.ended.Seconds()
			r.HealedS = &healed
		}
		reports = append(reports, r)
	}
	return reports
}
