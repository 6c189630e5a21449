package replay

import (
	"context"
	"fmt"
	"os"
	"time"

	"github.com/schollz/progressbar/v3"
	"golang.org/x/term"
)

// show writes to Config.Progress until ctx ends.
func (d *Driver) show(ctx context.Context) {
	w := d.config.Progress
	if w == nil {
		return
	}
	if f, is := w.(*os.File); is && term.IsTerminal(int(f.Fd())) {
		bar := progressbar.NewOptions64(d.config.Duration.Milliseconds(),
			progressbar.OptionSetWriter(w), progressbar.OptionSetWidth(20), progressbar.OptionSetPredictTime(false),
			progressbar.OptionSetElapsedTime(false), progressbar.OptionShowDescriptionAtLineEnd())
		// A terminal that fails to draw is no reason to stop.
		each(ctx, 200*time.Millisecond, func() {
			p := d.Progress()
			bar.Describe(p.String())
			_ = bar.Set64(min(p.Elapsed, p.Duration).Milliseconds())
		})
		_ = bar.Exit()
		fmt.Fprintln(w)
		return
	}
	each(ctx, time.Second, func() { fmt.Fprintln(w, d.Progress()) })
}

func each(ctx context.Context, period time.Duration, do func()) {
	tick := time.NewTicker(period)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			do()
		}
	}
}

// String is one line.
func (p Progress) String() string {
	percent := func(n uint64) float64 {
		if all := p.L1 + p.L2 + p.Owner + p.Source; all > 0 {
			return 100 * float64(n) / float64(all)
		}
		return 0
	}
	line := fmt.Sprintf("%3.0fs %d reads %d writes | l1 %.1f%% l2 %.1f%% owner %.1f%% source %.1f%% | stale %d errors %d dropped %d | p99 %v | change p99 %v | worst staleness %v | violations %d",
		p.Elapsed.Seconds(), p.Reads, p.Writes, percent(p.L1), percent(p.L2), percent(p.Owner), percent(p.Source),
		p.Stale, p.Errors, p.Dropped, round(p.Latency), round(p.Change), round(p.Staleness), p.Violations)
	if p.Fault != "" {
		line += " | FAULT " + p.Fault
	}
	return line
}

func round(d time.Duration) time.Duration { return d.Round(10 * time.Microsecond) }
