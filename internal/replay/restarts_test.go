package replay

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/freshet-cache/freshet/node"
)

// A successor that reads as much from L1 as the replica before it is back after the first window; one that does not, never
// is, and that is a problem.
func TestRestart(t *testing.T) {
	for name, c := range map[string]struct {
		l1   uint64 // of 1,000 reads, by the successor
		back bool
	}{"warm": {900, true}, "cold": {700, false}} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var asked atomic.Uint64
			boot, l1 := uint64(1), uint64(940)
			server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
				n := asked.Add(1) // each time 1,000 reads more
				body, err := json.Marshal(node.Stats{Boot: boot, Namespaces: []node.NamespaceStats{{Reads: 1000 * n, L1Hits: l1 * n, L2Hits: (1000 - l1) * n}}})
				if err != nil {
					t.Error(err)
				}
				fmt.Fprintf(w, "%s", body)
			}))
			defer server.Close()
			id := "a"
			d := &Driver{began: time.Now(), tally: newTally(), client: server.Client(), config: Config{
				Replicas: func() []Replica { return []Replica{{ID: id, Admin: server.Listener.Addr().String()}} },
			}}
			d.tally.failed("before", "", false)
			r, err := d.Restart(t.Context(), "a")
			if err != nil {
				t.Fatal(err)
			}
			d.tally.failed("meanwhile", "", false)
			d.tally.failed("excused", "", true)
			r.Draining()
			r.Drained()
			id, boot, l1 = "b", 2, c.l1
			asked.Store(0)
			r.Ready(t.Context(), "b")
			got := r.Recover(t.Context())
			if got.Replica != "a" || got.Successor != "b" || got.Failed != 1 || !got.Measured || got.Before != (Ratios{0.94, 1}) || got.After != (Ratios{float64(c.l1) / 1000, 1}) {
				t.Errorf("%+v", got)
			}
			report := Report{Reads: 1, Restarts: d.restarts.reports()}
			problems := strings.Join(report.Problems(), "\n")
			if c.back {
				if got.RecoveredS == nil || *got.RecoveredS < windowTime.Seconds() || got.AllRecoveredS == nil || problems != "" {
					t.Errorf("%+v, %s", got, problems)
				}
			} else if got.RecoveredS != nil || got.AllRecoveredS != nil || !strings.Contains(problems, "the restart of a: the hit ratios were not back within 5s") {
				t.Errorf("%+v, %s", got, problems)
			}
		})
	}
}
