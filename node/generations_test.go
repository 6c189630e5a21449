package node

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/freshet-cache/freshet/coherence"
)

// I2: a replica that has changed a generation answers nothing of the one before, fresh or stale, also when it
// cannot poll from then on.
func TestI2OwnGeneration(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 1)
		v, ctx := w.replicas[0], t.Context()
		if _, err := w.write(ctx, v, 1, 0); err != nil {
			t.Fatal(err)
		}
		anything := []ReadOption{Within(time.Hour), StaleWithin(time.Hour)}
		for range 2 {
			if _, err := v.rows.Lookup(ctx, "1", anything...); err != nil {
				t.Fatal(err)
			}
		}
		xid := w.log.SetGeneration("row", 2)
		v.log.Cut(true)
		changes := []coherence.Scope{coherence.AllGenerations()}
		if _, err := v.node.write(ctx, func() (written, error) {
			return written{Written: Written{Timeline: w.log.Snapshot().Timeline, XID: xid, Scopes: changes}}, nil
		}); err != nil {
			t.Fatal(err)
		}
		if e, err := v.rows.Lookup(ctx, "1", anything...); err == nil {
			t.Errorf("without Postgres the answer is %+v", e)
		}
		v.log.Cut(false)
		rest(2 * time.Second)
		if e, err := v.rows.Lookup(ctx, "1"); err != nil || e.Tier != TierSource || v.node.Generation("row").Namespace != 2 {
			t.Errorf("%+v, %v in generation %v; want it loaded anew", e, err, v.node.Generation("row"))
		}
		w.end()
	})
}
