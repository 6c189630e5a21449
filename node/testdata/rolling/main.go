// Rolling is a replica of a service in one of two builds, which TestRow04RollingDeploy runs side by side on the same
// servers. The build tag rolling_new chooses the new one: old.go and new.go say what has changed.
//
// It reads as fast as it can and answers lines on its standard input: "report" by its counts, "final" by the
// revisions of all things, each as a line of JSON. It ends in order when the input does.
package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/freshet-cache/freshet/node"
)

// things is how many there are, with the ids thing-1, thing-2 and so on. L1 holds a part of them only.
const things, inL1 = 24, 6

// Unchanged is the same in both builds.
type Unchanged struct {
	ID       string `json:"id"`
	Name     string `json:"name"`
	Revision int64  `json:"revision"`
}

func (v Unchanged) right() bool     { return v.Name == nameOf(v.Revision) }
func (v Unchanged) revision() int64 { return v.Revision }

// nameOf is what the writer names a thing of the revision.
func nameOf(revision int64) string { return fmt.Sprint("name ", revision) }

// value is what both builds can say of a thing, whatever they know of it.
type value interface {
	right() bool
	revision() int64
}

// view is a cache, whatever it holds.
type view struct {
	name   string
	lookup func(ctx context.Context, id string, budget time.Duration) (v value, fresh bool, err error)
}

func open[V value](n *node.Node, name, columns string, codec node.Codec) (view, error) {
	c, err := node.NewCache(n, node.CacheConfig[V]{
		Namespace: "thing", View: name, Codec: codec, MaxEntries: inL1,
		Source: node.SQL[V](`select id, revision, ` + columns + ` from things where id = any($1)`),
	})
	return view{name, func(ctx context.Context, id string, budget time.Duration) (value, bool, error) {
		e, err := c.Lookup(ctx, id, node.Within(budget))
		return e.Value, e.Fresh, err
	}}, err
}

// counts are those of all reads.
type counts struct{ reads, wrong, back, stale, failed atomic.Int64 }

// read reads until ctx ends.
func (c *counts) read(ctx context.Context, views []view) {
	seen := map[string]int64{} // view and id -> the revision that this reader has seen
	for ctx.Err() == nil {
		view, id := views[rand.IntN(len(views))], fmt.Sprint("thing-", 1+rand.IntN(things))
		v, fresh, err := view.lookup(ctx, id, []time.Duration{0, 50 * time.Millisecond, time.Second}[rand.IntN(3)])
		if ctx.Err() != nil {
			return
		}
		c.reads.Add(1)
		at := view.name + id
		switch {
		case err != nil:
			c.failed.Add(1)
			fmt.Fprintln(os.Stderr, view.name, err)
			continue
		case !v.right():
			c.wrong.Add(1)
			fmt.Fprintf(os.Stderr, "%s: %+v\n", view.name, v)
		case !fresh:
			c.stale.Add(1)
		case v.revision() < seen[at]:
			c.back.Add(1)
			fmt.Fprintf(os.Stderr, "%s: %+v after revision %d\n", view.name, v, seen[at])
		}
		seen[at] = max(seen[at], v.revision())
	}
}

func run() error {
	ctx, stop := context.WithCancel(context.Background())
	defer stop()
	const patient = 20 * time.Second
	n, err := node.Open(ctx, node.Config{
		App:      os.Getenv("APP"),
		Postgres: node.PostgresConfig{DSN: os.Getenv("DSN"), PollTimeout: patient, LoadTimeout: patient},
		Redis:    node.RedisConfig{Addrs: strings.Split(os.Getenv("REDIS"), ","), Timeout: patient},
		NATS:     node.NATSConfig{URLs: []string{os.Getenv("NATS")}},
	})
	if err != nil {
		return err
	}
	defer n.Close()
	same, err1 := open[Unchanged](n, "same", `name`, node.JSON)
	changed, err2 := open[Changed](n, "changed", changedColumns, node.JSON)
	codec, err3 := open[Unchanged](n, "codec", `name`, changedCodec)
	if err := errors.Join(err1, err2, err3, n.Ready(ctx)); err != nil {
		return err
	}
	views := []view{same, changed, codec}
	var c counts
	var readers sync.WaitGroup
	for range 2 {
		readers.Go(func() { c.read(ctx, views) })
	}
	defer readers.Wait()
	defer stop()

	out := json.NewEncoder(os.Stdout)
	for in := bufio.NewScanner(os.Stdin); in.Scan(); {
		var answer any
		switch in.Text() {
		case "report":
			answer = map[string]any{
				"reads": c.reads.Load(), "wrong": c.wrong.Load(), "back": c.back.Load(), "stale": c.stale.Load(),
				"failed": c.failed.Load(), "members": len(n.Stats().Members), "views": n.Stats().Namespaces,
			}
		case "final":
			revisions := map[string]int64{}
			for _, view := range views {
				for i := range things {
					id := fmt.Sprint("thing-", i+1)
					v, _, err := view.lookup(ctx, id, 0)
					if err != nil {
						return err
					}
					revisions[view.name+" "+id] = v.revision()
				}
			}
			answer = revisions
		}
		if err := out.Encode(answer); err != nil {
			return err
		}
	}
	return nil
}

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}
