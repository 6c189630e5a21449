package replay

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"testing"

	"github.com/freshet-cache/freshet/node"
)

// What replicas counted before the run is left out; what one counted before it was killed is kept,
// and its successor is counted from zero.
func TestCountersOverARestart(t *testing.T) {
	body := ""
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, body) }))
	defer server.Close()
	defer server.Client().CloseIdleConnections()
	replicas := []Replica{{ID: "a", Admin: server.Listener.Addr().String()}, {ID: "no admin port"}, {ID: "dead", Admin: "127.0.0.1:1"}}
	s := newServers()
	read := func(first bool, boot, l1, other uint64) {
		text, err := json.Marshal(node.Stats{ID: "a", Boot: boot, Namespaces: []node.NamespaceStats{
			{Namespace: "product", L1Hits: l1, L2Hits: 1, Loads: 2}, {Namespace: "category", L1Hits: other, OwnerHits: 3, Negative: 4},
		}})
		if err != nil {
			t.Fatal(err)
		}
		body = string(text)
		s.read(t.Context(), server.Client(), replicas, first)
	}
	read(true, 1, 100, 50)
	read(false, 1, 110, 55) // 15 more
	read(false, 1, 111, 55) // 1
	read(false, 2, 7, 2)    // 9 of the successor
	body = "{"
	s.read(t.Context(), server.Client(), replicas, false)
	read(false, 2, 8, 2) // 1
	var r Report
	s.fill(&r)
	if r.CountsFrom != "replicas" || r.HitsL1 != 26 || r.HitsL2 != 1 || r.OwnerFills != 3 || r.SourceLoads != 2 || r.NegativeHits != 4 {
		t.Fatalf("%+v", r)
	}
	newServers().fill(&r)
	if r.CountsFrom != "answers" {
		t.Fatal("counts of nobody")
	}
}
