package admin

import (
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/freshet-cache/freshet/node"
)

// Health is the body of the probes.
type Health struct {
	// Status is "starting", "ready", "degraded" (ready, but not every check is ok), "draining" or "alive".
	Status string `json:"status"`
	// Checks are what degrades: a part's name -> "ok" or what is wrong. None of them makes a replica unready.
	Checks map[string]string `json:"checks,omitempty"`
}

// probe is an answer to a probe.
type probe struct {
	status  int // of HTTP
	is      string
	checked []check
}

// check is how one part is. Figures are told only when "verbose" is asked for.
type check struct {
	part     string
	problems []string // none = it is ok
	figures  string
}

func (c *check) wrong(format string, args ...any) {
	c.problems = append(c.problems, fmt.Sprintf(format, args...))
}

func (c check) said() string {
	if len(c.problems) == 0 {
		return "ok"
	}
	return strings.Join(c.problems, "; ")
}

func (a *API) probePaths() map[string]methods {
	answer := func(see func() probe) methods {
		return methods{"GET": {do: func(w http.ResponseWriter, r *http.Request) error {
			p := see()
			if r.URL.Query().Has("verbose") { // what else is there is no reason to fail a probe
				p.list(w)
				return nil
			}
			return send(w, p.status, p.health())
		}}}
	}
	return map[string]methods{
		"/startupz": answer(a.startup),
		"/readyz":   answer(a.ready),
		"/livez":    answer(func() probe { return probe{status: http.StatusOK, is: "alive"} }),
	}
}

func (a *API) startup() probe {
	if !a.started.Load() {
		return probe{status: http.StatusServiceUnavailable, is: "starting"}
	}
	return probe{status: http.StatusOK, is: "ready"}
}

func (a *API) ready() probe {
	n := a.node.Load()
	switch {
	case a.draining.Load():
		return probe{status: http.StatusServiceUnavailable, is: "draining"}
	case !a.started.Load() || n == nil:
		return probe{status: http.StatusServiceUnavailable, is: "starting"}
	}
	return healthOf(n.Stats())
}

func (p probe) health() Health {
	h := Health{Status: p.is}
	for _, c := range p.checked {
		if h.Checks == nil {
			h.Checks = map[string]string{}
		}
		h.Checks[c.part] = c.said()
	}
	return h
}

// list answers as plain text with a line for each check, in the form of kube-apiserver's: [+] is ok, [-] is not.
func (p probe) list(w http.ResponseWriter) {
	var b strings.Builder
	for _, c := range p.checked {
		mark := "[+]"
		if len(c.problems) > 0 {
			mark = "[-]"
		}
		fmt.Fprintf(&b, "%s%s %s", mark, c.part, c.said())
		if c.figures != "" {
			fmt.Fprintf(&b, " (%s)", c.figures)
		}
		b.WriteByte('\n')
	}
	b.WriteString(p.is + "\n")
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	w.WriteHeader(p.status)
	_, _ = w.Write([]byte(b.String())) // a client that has gone needs no answer
}

const (
	// latePuts is how long a later put may wait for its flush before that is told as a problem: longer than a batch
	// and the death of a flusher take together.
	latePuts = 30 * time.Second
	// maxNamed bounds the shards and caches that a check names.
	maxNamed = 3
)

// healthOf is the answer of /readyz of a replica in service, with checks of the parts that the node has. It asks no
// server: it tells what the node's own work has met with. Dead letters are none of the checks, since they stay until
// somebody looks at them, and the replica is none the worse for them; metrics count them.
func healthOf(s node.Stats) probe {
	p := probe{status: http.StatusOK, is: "ready", checked: []check{checkPostgres(s)}}
	if s.HasRedis {
		p.checked = append(p.checked, checkRedis(s))
	}
	if s.HasNATS {
		p.checked = append(p.checked, checkNATS(s), checkPuts(s))
	}
	p.checked = append(p.checked, checkWatches(s), checkWarmUps(s))
	if slices.ContainsFunc(p.checked, func(c check) bool { return len(c.problems) > 0 }) {
		p.is = "degraded"
	}
	return p
}

func checkPostgres(s node.Stats) check {
	c := check{part: "postgres", figures: fmt.Sprintf("last poll %v ago, took %v; %d polls, %d failed; %d of %d loads running, %d waiting",
		seconds(s.PollAge), seconds(s.PollSeconds), s.Polls, s.PollErrors, s.Source.Running, s.Source.Places, s.Source.Waiting)}
	if s.PollAge > s.Budget {
		c.wrong("last poll %v ago, more than the budget of %v", seconds(s.PollAge), seconds(s.Budget))
	}
	return c
}

// checkRedis tells of open breakers. One that is half-open is none: it waits for the next call, and on a replica that
// answers from L1 that may take long.
func checkRedis(s node.Stats) check {
	c := check{part: "redis"}
	var requests, failures, refused uint64
	var out []string // of service
	for _, shard := range s.Shards {
		requests, failures, refused = requests+shard.Requests, failures+shard.Failures, refused+shard.Refused
		if shard.State == "open" {
			out = append(out, shard.Name)
		}
	}
	switch {
	case len(s.Shards) == 0:
		c.wrong("no shard is known yet")
	case len(out) > 0:
		c.wrong("%d of %d breakers are open: %s", len(out), len(s.Shards), some(out))
	}
	c.figures = fmt.Sprintf("%d shards; %d requests, %d failed, %d refused", len(s.Shards), requests, failures, refused)
	return c
}

func checkNATS(s node.Stats) check {
	c := check{part: "nats", figures: fmt.Sprintf("%d members; %d hints sent, %d unsent, %d received, %d gaps",
		len(s.Members), s.HintsSent, s.HintsUnsent, s.HintsReceived, s.HintGaps)}
	if !s.Connected {
		c.wrong("there is no connection: changes of other replicas are found by polling")
	}
	return c
}

func checkPuts(s node.Stats) check {
	c := check{part: "puts"}
	var pending int
	var dead uint64
	for _, n := range s.Namespaces {
		pending, dead = pending+n.PutsPending, dead+n.PutsDead
		if n.PutsOldest > latePuts.Seconds() {
			c.wrong("%d of %s wait to be flushed, the oldest for %v", n.PutsPending, n.Namespace, seconds(n.PutsOldest).Round(time.Second))
		}
	}
	c.figures = fmt.Sprintf("%d pending, %d given up", pending, dead)
	return c
}

func checkWatches(s node.Stats) check {
	c := check{part: "watches", figures: "not checked yet"}
	if s.WatchAge < (24 * time.Hour).Seconds() {
		c.figures = fmt.Sprintf("checked %v ago", seconds(s.WatchAge).Round(time.Second))
	}
	if len(s.WatchDrift) > 0 {
		d := s.WatchDrift[0]
		c.wrong("%d problems, the first is of table %s: %s", len(s.WatchDrift), d.Relation, d.Problem)
	}
	return c
}

// checkWarmUps tells of warm-ups that readiness has not waited for, and what L1 holds. One that failed is over: L1 fills
// by reading then, and the metrics tell.
func checkWarmUps(s node.Stats) check {
	c := check{part: "warm-up"}
	var entries, bytes int64
	var late []string
	for _, n := range s.Namespaces {
		entries, bytes = entries+n.L1Entries, bytes+n.L1Bytes
		if n.WarmingUp {
			late = append(late, n.Namespace+" ("+n.View+")")
		}
	}
	if len(late) > 0 {
		c.wrong("goes on for %s", some(late))
	}
	c.figures = fmt.Sprintf("l1 has %d entries, %d bytes", entries, bytes)
	return c
}

// some are the first of the names.
func some(names []string) string {
	if len(names) > maxNamed {
		names = append(names[:maxNamed:maxNamed], fmt.Sprintf("and %d more", len(names)-maxNamed))
	}
	return strings.Join(names, ", ")
}

func seconds(s float64) time.Duration {
	return time.Duration(s * float64(time.Second)).Round(time.Millisecond)
}
