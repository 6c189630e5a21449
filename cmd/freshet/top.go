package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/freshet-cache/freshet/node"
	"github.com/freshet-cache/freshet/node/admin"
)

// topOptions are the flags of `top` besides an operator's.
type topOptions struct {
	every, duration time.Duration
	count           int
}

func (t topOptions) validate() error {
	var problems []error
	if t.every < 100*time.Millisecond || t.every > time.Hour {
		problems = append(problems, fmt.Errorf("--every: %v; want 100ms to 1h", t.every))
	}
	if t.duration < 0 {
		problems = append(problems, fmt.Errorf("--for: %v; want more than 0, or 0 for no end", t.duration))
	}
	if t.count < 0 {
		problems = append(problems, fmt.Errorf("--count: %d; want more than 0, or 0 for no end", t.count))
	}
	return errors.Join(problems...)
}

func newTop() *cobra.Command {
	var t topOptions
	cmd := &cobra.Command{
		Use:   "top",
		Short: "Show live what all replicas do: reads, hits, staleness, loads, breakers",
		Long: `Show what all replicas do, redrawn in place on a terminal and one block for each
--every elsewhere, until Ctrl-C. The rates are those since the block before.

By replica: READS/S; the shares of them answered by L1, L2 and the OWNER; FRESH, STALE
and ERRORS in a second; LOADS/S from Postgres, and how many are LOADING now of how many
may, with those that wait; BEHIND, the age of what the replica knows of Postgres; PUTS,
which wait to be written; L1, how full it is. Then the Redis shards with the replicas
whose breaker is not closed, and the namespaces, of all replicas together.

A replica that was started anew is counted anew. The asked replica lists the others:
while it is away, nothing is shown.`,
		Example: `  freshet top
  freshet top --every 5s --count 3 > report.txt`,
	}
	o := operatorOf(cmd)
	f := cmd.Flags()
	f.DurationVar(&t.every, "every", 2*time.Second, "time between two blocks")
	f.DurationVar(&t.duration, "for", 0, "how long to show it (default: until Ctrl-C)")
	f.IntVar(&t.count, "count", 0, "how many blocks to show (default: until Ctrl-C)")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		client, err := o.client()
		if err := errors.Join(err, t.validate()); err != nil {
			return usage(err)
		}
		defer client.HTTP.CloseIdleConnections()
		return t.run(cmd.Context(), o, client, cmd.OutOrStdout())
	}
	return cmd
}

// run shows blocks until they are enough, or ctx ends, which is no error. The first reading must succeed.
func (t topOptions) run(ctx context.Context, o *operator, client admin.Client, w io.Writer) error {
	if t.duration > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, t.duration)
		defer cancel()
	}
	read := func() (all []node.Answer[node.Stats], err error) {
		err = o.within(ctx, func(ctx context.Context) error {
			all, err = client.StatsOfAll(ctx)
			return err
		})
		return all, err
	}
	screen, rates := newBoard(w), topRates{}
	all, err := read()
	if ctx.Err() != nil {
		return nil
	}
	if err != nil {
		return err
	}
	rates.next(all, time.Now())
	tick := time.NewTicker(t.every)
	defer tick.Stop()
	for shown := 0; t.count == 0 || shown < t.count; shown++ {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return nil
		}
		all, err := read()
		now := time.Now()
		if ctx.Err() != nil {
			return nil
		}
		var block topBlock
		if err != nil {
			block = topBlock{At: now, Error: err.Error()}
		} else {
			block = rates.next(all, now)
		}
		if err := block.show(w, screen, o.json); err != nil {
			return err
		}
	}
	return nil
}

// topBlock is what one block shows. It is made for JSON.
type topBlock struct {
	At         time.Time      `json:"at"`
	Error      string         `json:"error,omitempty"` // why there is nothing else
	Replicas   []topRow       `json:"replicas,omitempty"`
	Total      topRow         `json:"total"`
	Shards     []topShard     `json:"shards,omitempty"`
	Namespaces []topNamespace `json:"namespaces,omitempty"`
}

// topRow is a replica, or all of them: rates are in a second, shares from 0 to 1.
type topRow struct {
	Replica string `json:"replica,omitempty"`
	Error   string `json:"error,omitempty"` // why it gave no answer
	// Known: there was a reading before, so that there are rates.
	Known bool `json:"rates_known"`
	topCounts
	Loading int64   `json:"loading"`
	Waiting int64   `json:"waiting"`
	Places  int64   `json:"places"`
	Behind  float64 `json:"behind_seconds"`
	Lags    bool    `json:"lags"`
	CutOff  bool    `json:"cut_off"` // from NATS
	Puts    int     `json:"puts_pending"`
	L1Fill  float64 `json:"l1_fill"`

	l1Bytes, l1MaxBytes int64
}

// topCounts are rates, and in the making of them counts.
type topCounts struct {
	Reads  float64 `json:"reads_per_second"`
	L1     float64 `json:"l1_per_second"`
	L2     float64 `json:"l2_per_second"`
	Owner  float64 `json:"owner_per_second"`
	Fresh  float64 `json:"fresh_per_second"`
	Stale  float64 `json:"stale_per_second"`
	Errors float64 `json:"errors_per_second"`
	Loads  float64 `json:"loads_per_second"`
}

func (c *topCounts) add(o topCounts, times float64) {
	c.Reads += times * o.Reads
	c.L1 += times * o.L1
	c.L2 += times * o.L2
	c.Owner += times * o.Owner
	c.Fresh += times * o.Fresh
	c.Stale += times * o.Stale
	c.Errors += times * o.Errors
	c.Loads += times * o.Loads
}

func topCountsOf(v node.NamespaceStats) topCounts {
	return topCounts{
		Reads: float64(v.Reads), L1: float64(v.L1Hits), L2: float64(v.L2Hits), Owner: float64(v.OwnerHits),
		Fresh: float64(v.Fresh), Stale: float64(v.Stale), Errors: float64(v.Errors), Loads: float64(v.Loads),
	}
}

// topShard is a Redis shard with the replicas whose breaker is not closed.
type topShard struct {
	Name     string   `json:"name"`
	Slots    string   `json:"slots"`
	Open     []string `json:"open,omitempty"`
	HalfOpen []string `json:"half_open,omitempty"`
	Seen     int      `json:"replicas"` // that see it
}

// topNamespace is a view of a namespace on all replicas.
type topNamespace struct {
	Namespace string `json:"namespace"`
	View      string `json:"view"`
	topCounts
	Entries int64   `json:"l1_entries"`
	L1Fill  float64 `json:"l1_fill"`

	l1Bytes, l1MaxBytes int64
}

// topRates are the last readings, a replica -> its own.
type topRates map[string]topReading

type topReading struct {
	at     time.Time
	boot   uint64
	counts map[[2]string]topCounts // namespace and view -> what was counted
}

// next is the block of a reading.
func (t topRates) next(all []node.Answer[node.Stats], at time.Time) topBlock {
	b := topBlock{At: at, Total: topRow{Known: true}}
	shards, names := map[string]*topShard{}, map[[2]string]*topNamespace{}
	for _, a := range all {
		row := topRow{Replica: a.Replica, Error: a.Error}
		if s := a.Answer; s != nil {
			t.rates(&row, names, a.Replica, s, at)
			row.Loading, row.Waiting, row.Places = s.Source.Running, s.Source.Waiting, s.Source.Places
			row.Behind, row.Lags, row.CutOff = s.PollAge, s.PollAge > s.Budget, s.HasNATS && !s.Connected
			for _, v := range s.Namespaces {
				row.Puts += v.PutsPending
				row.l1Bytes += v.L1Bytes
				row.l1MaxBytes += v.L1MaxBytes
			}
			row.L1Fill = fill(row.l1Bytes, row.l1MaxBytes)
			addShards(shards, a.Replica, s.Shards)
			b.Total.sum(row)
		}
		b.Replicas = append(b.Replicas, row)
	}
	b.Total.L1Fill = fill(b.Total.l1Bytes, b.Total.l1MaxBytes)
	for _, name := range slices.Sorted(maps.Keys(shards)) {
		b.Shards = append(b.Shards, *shards[name])
	}
	for _, name := range slices.SortedFunc(maps.Keys(names), func(a, b [2]string) int { return slices.Compare(a[:], b[:]) }) {
		n := names[name]
		n.L1Fill = fill(n.l1Bytes, n.l1MaxBytes)
		b.Namespaces = append(b.Namespaces, *n)
	}
	return b
}

// rates fills in those of a replica, and adds them to those of the namespaces. One that was started anew since the
// last reading is counted from its start.
func (t topRates) rates(row *topRow, names map[[2]string]*topNamespace, replica string, s *node.Stats, at time.Time) {
	last, there := t[replica]
	reading := topReading{at: at, boot: s.Boot, counts: map[[2]string]topCounts{}}
	row.Known = there
	perSecond := 0.0
	if there {
		perSecond = 1 / max(at.Sub(last.at).Seconds(), 0.001)
	}
	for _, v := range s.Namespaces {
		name := [2]string{v.Namespace, v.View}
		counted := topCountsOf(v)
		reading.counts[name] = counted
		if last.boot == s.Boot {
			counted.add(last.counts[name], -1)
		}
		row.add(counted, perSecond)
		n := names[name]
		if n == nil {
			n = &topNamespace{Namespace: v.Namespace, View: v.View}
			names[name] = n
		}
		n.add(counted, perSecond)
		n.Entries += v.L1Entries
		n.l1Bytes += v.L1Bytes
		n.l1MaxBytes += v.L1MaxBytes
	}
	t[replica] = reading
}

// sum adds a replica to all of them. Behind is that of the one which is furthest.
func (r *topRow) sum(o topRow) {
	r.add(o.topCounts, 1)
	r.Loading += o.Loading
	r.Waiting += o.Waiting
	r.Places += o.Places
	r.Puts = max(r.Puts, o.Puts) // every replica knows of all
	r.Behind = max(r.Behind, o.Behind)
	r.l1Bytes += o.l1Bytes
	r.l1MaxBytes += o.l1MaxBytes
}

func addShards(shards map[string]*topShard, replica string, seen []node.ShardStats) {
	for _, s := range seen {
		shard := shards[s.Name]
		if shard == nil {
			shard = &topShard{Name: s.Name, Slots: s.Slots}
			shards[s.Name] = shard
		}
		shard.Seen++
		switch s.State {
		case "open":
			shard.Open = append(shard.Open, replica)
		case "half-open":
			shard.HalfOpen = append(shard.HalfOpen, replica)
		}
	}
}

func fill(part, whole int64) float64 {
	if whole == 0 {
		return 0
	}
	return float64(part) / float64(whole)
}

// show prints the block: as a line of JSON, in place of the one before, or below it.
func (b topBlock) show(w io.Writer, screen *board, asJSON bool) error {
	if asJSON {
		return json.NewEncoder(w).Encode(b)
	}
	if screen.terminal != nil {
		screen.redraw(b.lines())
		return nil
	}
	_, err := fmt.Fprintf(w, "%s\n\n", strings.Join(b.lines(), "\n"))
	return err
}

// lines are the block for people.
func (b topBlock) lines() []string {
	var text strings.Builder
	fmt.Fprintln(&text, b.At.Local().Format("2006-01-02 15:04:05"))
	if b.Error != "" {
		fmt.Fprintln(&text, b.Error)
		return strings.Split(strings.TrimSuffix(text.String(), "\n"), "\n")
	}
	w := tabwriter.NewWriter(&text, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "REPLICA\tREADS/S\tL1\tL2\tOWNER\tFRESH/S\tSTALE/S\tERRORS/S\tLOADS/S\tLOADING\tBEHIND\tPUTS\tL1 FULL\tSTATE\t")
	for _, r := range b.Replicas {
		fmt.Fprintln(w, r.columns(r.Replica))
	}
	if len(b.Replicas) > 1 {
		fmt.Fprintln(w, b.Total.columns("all"))
	}
	if len(b.Shards) > 0 {
		fmt.Fprintln(w, "\nSHARD\tSLOTS\tBREAKERS\t")
	}
	for _, s := range b.Shards {
		fmt.Fprintf(w, "%s\t%s\t%s\t\n", s.Name, orDash(s.Slots), s.text())
	}
	fmt.Fprintln(w, "\nNAMESPACE\tVIEW\tREADS/S\tL1\tL2\tOWNER\tSTALE/S\tERRORS/S\tLOADS/S\tENTRIES\tL1 FULL\t")
	for _, n := range b.Namespaces {
		fmt.Fprintf(w, "%s\t%s\t%.0f\t%s\t%s\t%s\t%s\t%s\t%s\t%d\t%s\t\n", n.Namespace, n.View, n.Reads, part(n.L1, n.Reads), part(n.L2, n.Reads),
			part(n.Owner, n.Reads), rate(n.Stale), rate(n.Errors), rate(n.Loads), n.Entries, part(n.L1Fill, 1))
	}
	_ = w.Flush() // a Builder takes everything
	return strings.Split(strings.TrimSuffix(text.String(), "\n"), "\n")
}

func (r topRow) columns(name string) string {
	if r.Error != "" {
		return name + strings.Repeat("\t-", 12) + "\tno answer: " + r.Error + "\t"
	}
	state := "ok"
	switch {
	case name == "all":
		state = ""
	case r.Lags:
		state = "lags: cannot reach Postgres"
	case r.CutOff:
		state = "has no connection to NATS"
	}
	rates := "-\t-\t-\t-\t-\t-\t-\t-"
	if r.Known {
		rates = fmt.Sprintf("%.0f\t%s\t%s\t%s\t%.0f\t%s\t%s\t%s", r.Reads, part(r.L1, r.Reads), part(r.L2, r.Reads), part(r.Owner, r.Reads),
			r.Fresh, rate(r.Stale), rate(r.Errors), rate(r.Loads))
	}
	loading := fmt.Sprintf("%d of %d", r.Loading, r.Places)
	if r.Waiting > 0 {
		loading += fmt.Sprintf(", %d wait", r.Waiting)
	}
	return fmt.Sprintf("%s\t%s\t%s\t%s\t%d\t%s\t%s\t", name, rates, loading, behind(r.Behind), r.Puts, part(r.L1Fill, 1), state)
}

// text says where the breakers of the shard are not closed.
func (s topShard) text() string {
	var parts []string
	if len(s.Open) > 0 {
		parts = append(parts, fmt.Sprintf("OPEN on %s", strings.Join(s.Open, ", ")))
	}
	if len(s.HalfOpen) > 0 {
		parts = append(parts, fmt.Sprintf("half-open on %s", strings.Join(s.HalfOpen, ", ")))
	}
	if parts == nil {
		return fmt.Sprintf("closed on all %d", s.Seen)
	}
	return strings.Join(parts, "; ")
}

// part is a share of a whole in percent, "-" of nothing.
func part(of, whole float64) string {
	if whole <= 0 {
		return "-"
	}
	return fmt.Sprintf("%.1f%%", 100*of/whole)
}

// rate is a number in a second, with a digit behind the point where it would look like none.
func rate(perSecond float64) string {
	if perSecond > 0 && perSecond < 10 {
		return fmt.Sprintf("%.1f", perSecond)
	}
	return fmt.Sprintf("%.0f", perSecond)
}
