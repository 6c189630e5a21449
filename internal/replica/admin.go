package replica

import (
	"encoding/json"
	"net/http"

	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/freshet-cache/freshet/node"
)

// adminRoutes are the admin port's: see the package's doc.
func (r *Replica) adminRoutes() http.Handler {
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(r.registry, promhttp.HandlerOpts{Registry: r.registry, MaxRequestsInFlight: 4}))
	mux.HandleFunc("GET /startupz", r.serveStartup)
	mux.HandleFunc("GET /readyz", r.serveReady)
	mux.HandleFunc("GET /livez", func(w http.ResponseWriter, _ *http.Request) {
		answer(w, http.StatusOK, Health{Status: "alive"})
	})
	mux.HandleFunc("GET /stats", r.serveStats)
	return mux
}

// Health is the body of the probes.
type Health struct {
	// Status is "starting", "ready", "degraded" (ready, but not every check is ok), "draining" or
	// "alive".
	Status string `json:"status"`
	// Checks are what degrades: a part's name -> "ok" or what is wrong. None of them makes a replica
	// unready.
	Checks map[string]string `json:"checks,omitempty"`
}

func (r *Replica) serveStartup(w http.ResponseWriter, _ *http.Request) {
	if !r.started.Load() {
		answer(w, http.StatusServiceUnavailable, Health{Status: "starting"})
		return
	}
	answer(w, http.StatusOK, Health{Status: "ready"})
}

func (r *Replica) serveReady(w http.ResponseWriter, _ *http.Request) {
	switch {
	case r.draining.Load():
		answer(w, http.StatusServiceUnavailable, Health{Status: "draining"})
	case !r.started.Load():
		answer(w, http.StatusServiceUnavailable, Health{Status: "starting"})
	default:
		answer(w, http.StatusOK, r.config.health(r.node.Load().Stats()))
	}
}

func (r *Replica) serveStats(w http.ResponseWriter, _ *http.Request) {
	n := r.node.Load()
	if n == nil {
		answer(w, http.StatusServiceUnavailable, Health{Status: "starting"})
		return
	}
	answer(w, http.StatusOK, n.Stats())
}

// answer writes the value as JSON. No answer of the admin port may be cached.
func answer[V Health | node.Stats](w http.ResponseWriter, status int, v V) {
	body, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-store")
	w.WriteHeader(status)
	w.Write(append(body, '\n')) //nolint:errcheck // the client may be gone
}
