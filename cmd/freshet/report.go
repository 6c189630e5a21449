package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"text/tabwriter"

	"github.com/freshet-cache/freshet/internal/replay"
)

// conclude writes the report and the summary, and returns what was wrong with the answers.
func (o upOptions) conclude(w io.Writer, end outcome) error {
	if end.err != nil {
		return end.err
	}
	r := end.report
	if o.report != "" {
		if err := writeReport(o.report, r); err != nil {
			return fmt.Errorf("--report: %w", err)
		}
	}
	if err := summarise(w, r); err != nil {
		return err
	}
	var problems []error
	for _, p := range r.Problems() {
		problems = append(problems, errors.New(p))
	}
	if len(problems) > 0 {
		return &exitError{exitVerdict, errors.Join(problems...)}
	}
	verdict := "every promise was kept"
	if r.Interrupted {
		verdict += " until the run was interrupted"
	}
	_, err := fmt.Fprintf(w, "%s\n\n", verdict)
	return err
}

// writeReport writes beside the file and then puts the whole in its place.
func writeReport(path string, r replay.Report) error {
	part := path + ".part"
	f, err := os.OpenFile(part, os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o644)
	if err != nil {
		return err
	}
	if err := errors.Join(r.WriteJSON(f), f.Close()); err != nil {
		return errors.Join(err, os.Remove(part))
	}
	return os.Rename(part, path)
}

// summarise prints the report for people.
func summarise(w io.Writer, r replay.Report) error {
	fmt.Fprintf(w, `
  requests   %d in %.1f s, %.0f/s of %.0f/s asked for, %d dropped
  answers    %d: %d fresh, %d stale; %d of them lists
  hits       %.1f%% of product reads from l1 or l2
  replicas   %d running; l1 %d, l2 %d, owner %d, loads from Postgres %d, negative hits %d
  writes     %d acknowledged: %d by the API, %d directly in Postgres; %d of unknown outcome
  errors     %d, of which %d during a fault
  promises   %d broken, %d answers judged; %d written products compared with Postgres at every replica

`,
		r.Scheduled, r.DurationS, r.AchievedS, r.Rate, r.Dropped,
		r.Reads, r.Fresh, r.Stale, r.Lists,
		100*r.HitRatio,
		r.Replicas, r.HitsL1, r.HitsL2, r.OwnerFills, r.SourceLoads, r.NegativeHits,
		r.Writes, r.WritesHTTP, r.WritesSQL, r.WritesUnknown,
		r.Errors, r.ErrorsExcused,
		r.Violations, r.Checked, r.Comparison.Compared)

	t := tabwriter.NewWriter(w, 0, 0, 3, ' ', tabwriter.AlignRight)
	fmt.Fprintln(t, "milliseconds\tp50\tp99\tmax\tcount\t")
	row := func(name string, p50, p99, top float64, count int64) {
		if count > 0 {
			fmt.Fprintf(t, "%s\t%.2f\t%.2f\t%.2f\t%d\t\n", name, p50, p99, top, count)
		}
	}
	row("staleness of FRESH answers", r.StalenessMS.P50, r.StalenessMS.P99, r.StalenessMS.Max, r.StalenessMS.Count)
	row("change until every replica shows it", r.ChangeLatencyMS.P50, r.ChangeLatencyMS.P99, r.ChangeLatencyMS.Max, r.ChangeLatencyMS.Count)
	for _, l := range []struct{ key, name string }{
		{"http", "GET product"},
		{"l1", "answered by l1"},
		{"l2", "by l2"},
		{"owner", "by its owner"},
		{"source", "by Postgres"},
		{"list", "GET list"},
		{"write_http", "PATCH product"},
		{"write_sql", "update in Postgres"},
	} {
		m := r.LatencyUS[l.key]
		row(l.name, float64(m.P50)/1000, float64(m.P99)/1000, float64(m.Max)/1000, m.Count)
	}
	fmt.Fprintln(t)
	if err := t.Flush(); err != nil {
		return err
	}
	for _, f := range r.Faults {
		if f.HealedS == nil {
			fmt.Fprintf(w, "  fault      %s from %.1f s on\n", f.Name, f.BeganS)
			continue
		}
		fmt.Fprintf(w, "  fault      %s from %.1f s to %.1f s\n", f.Name, f.BeganS, *f.HealedS)
	}
	for _, s := range r.Restarts {
		fmt.Fprintf(w, "  restart    %s\n", describeRestart(s))
	}
	for _, text := range r.Warnings() {
		fmt.Fprintf(w, "  warning    %s\n", text)
	}
	return nil
}
