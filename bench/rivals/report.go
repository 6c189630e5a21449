package main

import (
	"fmt"
	"strings"
	"time"

	"github.com/freshet-cache/freshet/internal/verify"
)

// report is what a comparison found.
type report struct {
	seed    uint64
	began   time.Time
	results []result
}

// result is that of one system.
type result struct {
	rival
	phases   []verify.Phase
	failures []error // one for each fault that could not be run
}

// promised counts what Freshet broke.
func (r *report) promised() (n uint64) {
	for _, one := range r.results {
		if one.name == freshet {
			n += one.broken()
		}
	}
	return n
}

func (r result) broken() (n uint64) {
	for i := range r.phases {
		n += broken(&r.phases[i])
	}
	return n
}

// broken counts the answers that broke the promise. That an answer could not be given breaks none.
func broken(p *verify.Phase) (n uint64) {
	for _, count := range p.Violations {
		n += count
	}
	return n
}

func (r result) phase(fault string) *verify.Phase {
	for i := range r.phases {
		if r.phases[i].Fault == fault {
			return &r.phases[i]
		}
	}
	return nil
}

// markdown is the report: who was compared, violations by system and fault, and every line in full.
func (r *report) markdown() string {
	var b strings.Builder
	b.WriteString("| system | version | configured |\n|---|---|---|\n")
	for _, one := range r.results {
		name, version := one.name, one.version()
		if version != "" {
			name = fmt.Sprintf("[%s](%s)", one.module, one.link())
		} else {
			version = "this project's"
		}
		fmt.Fprintf(&b, "| %s | %s | %s |\n", name, version, one.setup)
	}
	b.WriteString("\nRivals wait 500 ms for an answer of Redis. Around each of them, reads go to Postgres when the cache fails, and an " +
		"invalidation that fails is tried three times.\n\nAnswers that broke the promise, and the longest staleness of an answer:\n\n| fault |")
	for _, one := range r.results {
		fmt.Fprintf(&b, " %s |", one.name)
	}
	b.WriteString("\n|---|" + strings.Repeat("---|", len(r.results)) + "\n")
	for _, fault := range r.faults() {
		fmt.Fprintf(&b, "| %s |", fault)
		for _, one := range r.results {
			if p := one.phase(fault); p != nil {
				fmt.Fprintf(&b, " %d, %s |", broken(p), seconds(p.Longest))
			} else {
				b.WriteString(" not run |")
			}
		}
		b.WriteString("\n")
	}
	b.WriteString("| **all** |")
	for _, one := range r.results {
		fmt.Fprintf(&b, " **%d** |", one.broken())
	}
	b.WriteString("\n\nIn full; I1: older than the budget of 1 s, in rows or lists; I2: a session, which goes to any replica with each step (Freshet: with its token), did not see what it wrote or had seen; " +
		"I3: a replica went back; I4: a state that never was; I5: still wrong after the end.\n\n" +
		"| system | fault | reads checked | I1 | I2 | I3 | I4 | I5 | staleness p99.9 | longest | reads without an answer |\n" +
		"|---|---|---|---|---|---|---|---|---|---|---|\n")
	for _, one := range r.results {
		for i := range one.phases {
			p := &one.phases[i]
			fmt.Fprintf(&b, "| %s | %s | %d |", one.name, p.Fault, p.Reads+p.Swept)
			for _, invariant := range []string{"I1", "I2", "I3", "I4", "I5"} {
				fmt.Fprintf(&b, " %d |", p.Violations[invariant])
			}
			fmt.Fprintf(&b, " %s | %s | %s |\n", seconds(p.P999), seconds(p.Longest), unanswered(p))
		}
		for _, err := range one.failures {
			fmt.Fprintf(&b, "| %s | not run: %s | | | | | | | | | |\n", one.name, strings.ReplaceAll(err.Error(), "\n", "; "))
		}
	}
	fmt.Fprintf(&b, "\nSeed %d, 3 replicas, %d rows in %d lists, at most %d reads and %d writes per second through each replica; %.0f s in all.\n",
		r.seed, rows, lists, reads, writes, time.Since(r.began).Seconds())
	return b.String()
}

// faults are those of the results, in their order.
func (r *report) faults() []string {
	var all []string
	seen := map[string]bool{}
	for _, one := range r.results {
		for i := range one.phases {
			if name := one.phases[i].Fault; !seen[name] {
				seen[name] = true
				all = append(all, name)
			}
		}
	}
	return all
}

func seconds(d time.Duration) string { return fmt.Sprintf("%.2f s", d.Seconds()) }

// unanswered is the share of reads that had no answer.
func unanswered(p *verify.Phase) string {
	var answered, failed uint64
	for _, s := range []verify.Share{p.Before, p.During, p.After} {
		answered += s.Reads
		failed += s.Failures
	}
	if failed == 0 {
		return "0"
	}
	return fmt.Sprintf("%.2f %%", 100*float64(failed)/float64(answered+failed))
}
