package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"text/tabwriter"
	"time"
)

// experiment measures one number.
type experiment struct {
	name   string // for -only
	title  string
	target float64 // the most that the value may be
	unit   string  // "x" = a ratio
	// measure sets Value and Detail.
	measure func(ctx context.Context, l *lab) (number, error)
}

// experiments are all of them, in the order of the table.
func experiments() []experiment {
	return []experiment{
		{"l1-allocations", "allocations of an L1 hit through Cache.Get", 0, "per read", l1Allocations},
		{"l1-hit", "L1 hit through Cache.Get / hit in a bare sharded simplelru", 2.5, "x", l1Hit},
		{"l1-two", "L1 hit with two goroutines / with one, time per read", 1, "x", l1Two},
		{"l1-telemetry", "L1 hit with metrics and spans of everything, less one without", 5, "ns", l1Telemetry},
		{"l2-hit", "L2 hit through Cache.Lookup / bare rueidis GET and decoding", 1.3, "x", l2Hit},
		{"barrier-alone", "Tracker.Barrier / bare prepared select 1", 3, "x", barrierAlone},
		{"barrier-read", "Lookup Within(0) of an entry in L1 / bare prepared select 1", 3, "x", barrierRead},
		{"barrier-polls", "polls for 1,000 concurrent reads Within(0), worst round", 20, "polls", barrierPolls},
		{"change-nats", "a write until a peer serves it, with NATS, p99", 5, "ms", changeNATS},
		{"change-polling", "a write until a peer serves it, without NATS, p99", 2, "intervals", changePolling},
		{"one-load", "loads when 100 goroutines on each of 3 replicas miss a key, worst key", 1, "loads", oneLoad},
	}
}

func names() []string {
	var all []string
	for _, e := range experiments() {
		all = append(all, e.name)
	}
	return all
}

// number is what an experiment found.
type number struct {
	Name    string  `json:"name"`
	Title   string  `json:"title"`
	Value   float64 `json:"value"`
	Target  float64 `json:"target"` // the most that Value may be
	Unit    string  `json:"unit"`
	Met     bool    `json:"met"`
	Detail  string  `json:"detail"` // how Value came about
	Command string  `json:"command"`
}

// report is what one run found.
type report struct {
	Began   time.Time `json:"began"`
	Seconds float64   `json:"seconds"`
	Machine machine   `json:"machine"`
	Numbers []number  `json:"numbers"`
}

// missed counts the numbers above their targets.
func (r *report) missed() int {
	n := 0
	for i := range r.Numbers {
		if !r.Numbers[i].Met {
			n++
		}
	}
	return n
}

// print writes the table.
func (r *report) print(w io.Writer) {
	fmt.Fprintf(w, "\n%s\n\n", r.Machine)
	table := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(table, "\tMEASURED\tAT MOST\tNUMBER\tHOW\tALONE")
	for _, n := range r.Numbers {
		verdict := "pass"
		if !n.Met {
			verdict = "MISS"
		}
		fmt.Fprintf(table, "%s\t%s\t%s\t%s\t%s\t%s\n",
			verdict, quantity(n.Value, n.Unit), quantity(n.Target, n.Unit), n.Title, n.Detail, n.Command)
	}
	_ = table.Flush() // as with the lines above, the reader may have gone
	fmt.Fprintf(w, "\n%d of %d targets met in %.0f s\n", len(r.Numbers)-r.missed(), len(r.Numbers), r.Seconds)
}

func quantity(v float64, unit string) string {
	if unit == "x" {
		return fmt.Sprintf("%.2fx", v)
	}
	return fmt.Sprintf("%.3g %s", v, unit)
}

// save writes the report as JSON.
func (r *report) save(path string) error {
	b, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return err
	}
	return os.WriteFile(path, append(b, '\n'), 0o644)
}
