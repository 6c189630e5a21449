package node

import (
	"fmt"
	"strings"
	"time"

	"github.com/freshet-cache/freshet/coherence"
	"github.com/freshet-cache/freshet/tiers"
)

// reasoning puts an explanation into words.
type reasoning struct {
	*Explanation
	tiers   *tiers.Explanation
	failing bool   // the last poll failed
	drift   *drift // a problem of a watch that puts one of the scopes in doubt; nil = none
}

// why says what a read gets, why it is not FRESH, and where it would go.
func (e reasoning) why() string {
	var b strings.Builder
	if p := e.Pending; p != nil {
		what := "a put"
		if p.Removed {
			what = "a deletion"
		}
		fmt.Fprintf(&b, "PENDING: reads are answered with %s of %s ago, number %d of the queue, ", what, span(p.Ago), p.Seq)
		if p.Settled {
			b.WriteString("which is settled and goes with the next poll. ")
		} else {
			b.WriteString("which is not known to be in Postgres yet. ")
		}
		b.WriteString("Without it: ")
	}
	switch e.tiers.Label {
	case tiers.LabelFresh:
		fmt.Fprintf(&b, "FRESH: %s, and nothing that it depends on has changed as of the last poll, %s ago (budget %s).", e.held(), span(e.PollAge), span(e.Budget))
	case tiers.LabelGraced:
		fmt.Fprintf(&b, "STALE, in its grace: %s. It is answered from L1 while it is loaded anew.", e.problem())
	case tiers.LabelStale:
		fmt.Fprintf(&b, "STALE: %s. ", e.problem())
		if e.RetryIn > 0 {
			fmt.Fprintf(&b, "A load has just failed, so for %s more reads are answered from L1 at once", span(e.RetryIn))
		} else if e.tiers.Proven {
			fmt.Fprintf(&b, "A read looks further: %s. If that fails it is answered from L1", e.further())
		} else {
			b.WriteString("A read waits for a poll first; if none comes it is answered from L1")
		}
		fmt.Fprintf(&b, ", with what was so %s ago (max stale %s).", span(e.tiers.Age.Seconds()), span(e.MaxStale))
	case tiers.LabelNone:
		fmt.Fprintf(&b, "NOT ANSWERED BY L1: %s. A read looks further: %s.", e.problem(), e.further())
	}
	if e.Loading {
		b.WriteString(" It is being loaded now.")
	}
	return b.String()
}

// held says what L1 has.
func (e reasoning) held() string {
	if e.L1.Absent {
		return "L1 knows from " + span(e.L1.LoadedAgo) + " ago that there is no such thing"
	}
	return "L1 has it, loaded " + span(e.L1.LoadedAgo) + " ago"
}

// problem says why L1 has no FRESH answer.
func (e reasoning) problem() string {
	switch c := e.tiers.L1; {
	case c == nil:
		return "L1 does not have it"
	case c.Generation != e.tiers.Generation:
		return fmt.Sprintf("L1 has it of generation %s, which was given up: the present one is %s", e.L1.Generation, e.Generation)
	case c.Left <= 0:
		return fmt.Sprintf("in L1 it expired %s ago", span(-e.L1.ExpiresIn))
	case c.Standing.Refused == coherence.RefusedHistory && e.tiers.Known <= never:
		return "no poll of Postgres has come back, so nothing can be proven"
	case c.Standing.Refused != coherence.NotRefused:
		problem := e.refusal(c.Standing)
		if !e.tiers.Proven {
			problem += "; and " + e.unproven()
		}
		return problem
	}
	return e.unproven()
}

// unproven says why what is known is not enough.
func (e reasoning) unproven() string {
	text := fmt.Sprintf("the last poll of Postgres is %s old and the budget is %s", span(e.PollAge), span(e.Budget))
	if e.tiers.Known <= never {
		text = "no poll of Postgres counts, so nothing can be proven"
	}
	if e.failing {
		text += "; polls fail"
	}
	return text
}

// refusal says why an entry is not valid.
func (e reasoning) refusal(s coherence.Standing) string {
	by, scope, heard := s.By, "", ""
	if s.Scope >= 0 {
		scope = e.tiers.Scopes[s.Scope].Name
	}
	since := "some time"
	if by.Since > 0 {
		since = span(e.tiers.Now.Sub(by.Since).Seconds())
	}
	if by.Lacks != 0 && by.Lacks == by.Last && by.Heard != 0 {
		heard = fmt.Sprintf(", which this replica heard of %s ago", span(e.tiers.Now.Sub(by.Heard).Seconds()))
	}
	switch s.Refused {
	case coherence.RefusedChanged:
		return fmt.Sprintf("%s changed in transaction %d%s, after the entry was read", scope, by.Lacks, heard)
	case coherence.RefusedGrace:
		return fmt.Sprintf("%s changed in transaction %d%s, whose writer allows it as it was for %s more", scope, by.Lacks, heard, span(by.Grace.Until.Sub(e.tiers.Now).Seconds()))
	case coherence.RefusedDoubt:
		text := "changes of " + scope + " may go unlogged"
		if e.drift != nil {
			text += fmt.Sprintf(" (%s: %s; see freshet.drift())", e.drift.Relation, e.drift.Problem)
		}
		return text
	case coherence.RefusedNoted:
		return "this replica has served a newer one than the entry"
	case coherence.RefusedHistory:
		return "the entry is of another timeline than the present one: Postgres has crashed, failed over or been restored since, or it was read from a standby"
	case coherence.RefusedFlushed:
		return "the entry is older than what this replica knows all changes since: it started, or found that it had missed some, " + since + " ago"
	case coherence.RefusedEarlier:
		return scope + " has changed, more often than is told apart, and the entry is older than what was polled " + since + " ago"
	case coherence.RefusedForgotten:
		return "so many things have changed that it is not told which any more, and the entry is older than what was polled " + since + " ago"
	case coherence.NotRefused:
	}
	return "nothing is known against it"
}

// further says what L1's neighbours have.
func (e reasoning) further() string {
	shard := "the shard"
	if e.Shard != nil {
		shard = "shard " + e.Shard.Name
	}
	source := ", so the source is asked"
	switch e.tiers.InL2 {
	case tiers.StepFound:
		return "L2 has an entry that it can use"
	case tiers.StepNothing:
		return "L2 does not have it" + source
	case tiers.StepExpired:
		return "the entry in L2 has expired" + source
	case tiers.StepChanged:
		return "the entry in L2 is refused, too (" + e.refusal(e.tiers.L2.Standing) + ")" + source
	case tiers.StepUnreadable:
		return "what L2 has cannot be read (" + e.L2Error + ")" + source
	case tiers.StepUnavailable, tiers.StepSilent:
		out := shard + " does not answer"
		if e.tiers.InL2 == tiers.StepUnavailable {
			out = shard + " is out (its breaker is open, or there is no connection)"
		}
		if e.OwnedHere {
			return out + ", and this replica is the owner" + source
		}
		return out + ", so the owner " + e.Owner + " is asked, and then the source"
	default: // there is no L2
		return "the source is asked"
	}
}

// why says how the read went.
func (m *ExplainedMiss) why() string {
	steps := []string{m.nearest()}
	say := func(step string, texts map[string]string) {
		if text := texts[step]; text != "" {
			steps = append(steps, text)
		}
	}
	say(m.L2, map[string]string{
		"found": "L2 had it", "nothing": "L2 did not have it", "expired": "the entry in L2 had expired", "changed": "the entry in L2 had changed",
		"generation": "the entry in L2 was of another generation", "unreadable": "the entry in L2 could not be read",
		"unavailable": "its shard of L2 was out", "silent": "L2 did not answer", "doubt": "L2 was not asked, since changes may go unlogged",
	})
	say(m.Owner, map[string]string{
		"found": "the owner had it", "here": "this replica was the owner", "silent": "the owner did not answer",
		"changed": "the owner's entry had changed", "expired": "the owner's entry had expired", "generation": "the owner's entry was of another generation",
		"unreadable": "the owner's entry could not be read",
	})
	say(m.Lease, map[string]string{
		"waited": "another replica loaded it meanwhile", "cut_through": "another replica took too long to load it",
	})
	say(m.Source, map[string]string{
		"found": "the source had it", "nothing": "the source had no such thing", "overloaded": "too many loads were under way", "failed": "the source failed",
	})
	end := "answered " + strings.ToUpper(m.Label) + " from " + m.Tier
	switch {
	case m.Failure != "":
		end = "not answered (" + m.Failure + ")"
	case m.Label == "grace":
		end = "answered STALE, in its grace, from " + m.Tier
	}
	return span(m.Ago) + " ago: " + strings.Join(append(steps, end), "; ") + "."
}

// nearest says why L1 was not enough.
func (m *ExplainedMiss) nearest() string {
	switch m.L1 {
	case "nothing":
		return "L1 did not have it"
	case "expired":
		return "L1's entry had expired"
	case "generation":
		return "L1's entry was of another generation"
	case "just":
		return "it came into L1 while the read looked"
	case "unproven":
		return "L1 had it, and what was known was too old: of a poll " + span(m.PollAge) + " before"
	}
	switch {
	case m.Refused == "doubt":
		return "L1 had it, and changes of " + m.Scope + " might go unlogged"
	case m.Lacks != 0:
		return fmt.Sprintf("L1 had it from before %s changed in transaction %d", m.Scope, m.Lacks)
	}
	return "L1's entry was refused (" + m.Refused + ")"
}

// span is a time in seconds for people.
func span(seconds float64) string {
	switch {
	case seconds < 0.9995:
		return fmt.Sprintf("%.0f ms", max(seconds, 0)*1000)
	case seconds < 10:
		return fmt.Sprintf("%.2f s", seconds)
	case seconds < 60:
		return fmt.Sprintf("%.1f s", seconds)
	}
	return time.Duration(seconds * float64(time.Second)).Round(time.Second).String()
}
