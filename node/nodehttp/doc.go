// Package nodehttp is for HTTP APIs that answer from the caches of a node. Its middleware knows what the caches
// answered during a request, because the handler tells it, and so needs to guess nothing:
//
//	m, err := nodehttp.New(nodehttp.Config{Registry: registry, Tracer: tracer})
//	mux.HandleFunc("GET /products/{id}", func(w http.ResponseWriter, r *http.Request) {
//		s, err := nodehttp.SessionOf(r)
//		if err != nil {
//			http.Error(w, err.Error(), http.StatusBadRequest)
//			return
//		}
//		e, err := products.Lookup(r.Context(), r.PathValue("id"), s.Options()...)
//		nodehttp.Note(r.Context(), e)
//		...
//	})
//	server.Handler = m.Handler(mux)
//
// For each request it counts and times, by the route's pattern; carries the session's token, so that a client reads its
// own writes on whichever replica it comes to; sets Cache-Status, Age and the labels of what was noted; and, with a
// Tracer, makes a server span, in the trace that the request belongs to, whose children are those of the node.
//
// Reads do not look for a request in their context by themselves: that would take longer than a hit in L1.
//
// What it does not do: it answers nothing itself, not even a panic, logs nothing, and stores no response.
package nodehttp
