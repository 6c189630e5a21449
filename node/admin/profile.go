package admin

import (
	"cmp"
	"context"
	"fmt"
	"net/http"
	"net/url"
	"runtime"
	"runtime/pprof"
	"runtime/trace"
	"strconv"
	"strings"
	"time"
)

// maxProfile bounds how long a profile is taken.
const maxProfile = 2 * time.Minute

func (a *API) profilePaths() map[string]methods {
	// The handlers of net/http/pprof are not used: importing that package puts them, unguarded, into
	// http.DefaultServeMux of whoever uses this one.
	return map[string]methods{"/debug/pprof/{name}": {"GET": {do: a.profile, guarded: true, long: true}}}
}

// profile takes a profile as `go tool pprof` and `go tool trace` read them.
func (a *API) profile(w http.ResponseWriter, r *http.Request) error {
	values, err := parameters(r, "seconds", "debug")
	if err != nil {
		return err
	}
	name := r.PathValue("name")
	seconds, err := whole(values, "seconds", 1, int(maxProfile.Seconds()))
	if err != nil {
		return err
	}
	debug, err := whole(values, "debug", 0, 2)
	if err != nil {
		return err
	}
	timed := name == "profile" || name == "trace"
	switch {
	case timed && debug > 0:
		return badRequest(fault{Parameter: "debug", Detail: "is not for this profile, which has no text form"})
	case !timed && seconds > 0:
		return badRequest(fault{Parameter: "seconds", Detail: "is for profile and trace only; this one is of the moment"})
	case !timed && pprof.Lookup(name) == nil:
		return notFound("There is no such profile; want profile, trace, " + strings.Join(profiles(), ", ") + ".")
	}
	a.log.InfoContext(r.Context(), "admin: a profile is taken", "name", name)
	w.Header().Set("Content-Type", "application/octet-stream")
	switch name {
	case "profile":
		return record(r.Context(), w, cmp.Or(seconds, 30), func() error { return pprof.StartCPUProfile(w) }, pprof.StopCPUProfile)
	case "trace":
		return record(r.Context(), w, cmp.Or(seconds, 1), func() error { return trace.Start(w) }, trace.Stop)
	case "heap":
		runtime.GC() // it shows what was reachable at the last collection
	}
	if debug > 0 {
		w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	}
	_ = pprof.Lookup(name).WriteTo(w, debug) // a client that has gone needs no answer
	return nil
}

// profiles are the names of those of the moment.
func profiles() []string {
	var names []string
	for _, p := range pprof.Profiles() {
		names = append(names, p.Name())
	}
	return names
}

// record writes a recording of so many seconds, or until the client has gone. Until it has started, nothing is
// written.
func record(ctx context.Context, w http.ResponseWriter, seconds int, start func() error, stop func()) error {
	d := time.Duration(seconds) * time.Second
	// The server's own time-out for answers is shorter.
	_ = http.NewResponseController(w).SetWriteDeadline(time.Now().Add(d + Timeout)) // a recorder in a test has none
	if err := start(); err != nil {
		return newProblem(http.StatusConflict, "conflict", "Conflict", "There is a recording of this kind already: "+err.Error()+".")
	}
	defer stop()
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
	}
	return nil
}

// whole reads a parameter that is a whole number; 0 if it is not given.
func whole(values url.Values, name string, least, most int) (int, error) {
	if !values.Has(name) {
		return 0, nil
	}
	n, err := strconv.Atoi(values.Get(name))
	if err != nil || n < least || n > most {
		return 0, badRequest(fault{Parameter: name, Detail: fmt.Sprintf("want a whole number from %d to %d", least, most)})
	}
	return n, nil
}
