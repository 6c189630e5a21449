package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime/debug"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/freshet-cache/freshet/internal/replay"
)

// program is the binary under test, built by TestMain with the race detector when the tests have it.
var program string // TestMain has no other way to hand it to the tests

func TestMain(m *testing.M) {
	flag.Parse()
	if testing.Short() { // which leaves out what runs the program
		os.Exit(m.Run())
	}
	folder, err := os.MkdirTemp("", "freshet-test-")
	if err == nil {
		err = os.Chmod(folder, 0o755) // the servers of the stack run as another user when this one is root
	}
	program = filepath.Join(folder, "freshet")
	if err == nil {
		args := []string{"build", "-o", program}
		if raced() {
			args = append(args, "-race")
		}
		var out []byte
		if out, err = exec.Command("go", append(args, ".")...).CombinedOutput(); err != nil { // bounded by the test binary's life
			err = fmt.Errorf("%w\n%s", err, out)
		}
	}
	code := 1
	if err != nil {
		fmt.Fprintln(os.Stderr, "build the program:", err)
	} else {
		code = m.Run()
	}
	if err := os.RemoveAll(folder); err != nil {
		fmt.Fprintln(os.Stderr, err)
	}
	os.Exit(code)
}

// raced reports whether this test binary was built with -race.
func raced() bool {
	built, ok := debug.ReadBuildInfo()
	return ok && slices.ContainsFunc(built.Settings, func(s debug.BuildSetting) bool { return s.Key == "-race" && s.Value == "true" })
}

// freshet is one run of the program.
type freshet struct {
	cmd   *exec.Cmd
	temp  string // where it makes temporary folders
	lines chan string
	done  chan struct{} // closed when the process is gone and all of its output read

	mu     sync.Mutex
	stdout strings.Builder
	stderr strings.Builder
}

type lockedWriter struct {
	mu *sync.Mutex
	b  *strings.Builder
}

func (w lockedWriter) Write(p []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.b.Write(p)
}

// begin starts the program; it is killed at the end of the test if it still runs.
func begin(t *testing.T, args ...string) *freshet {
	t.Helper()
	if testing.Short() {
		t.Skip("runs the program, mostly with servers")
	}
	temp, err := os.MkdirTemp("", "ft") //nolint:usetesting // short, and open to other users, unlike t.TempDir
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(temp, 0o755); err != nil {
		t.Fatal(err)
	}
	f := &freshet{temp: temp, lines: make(chan string, 10_000), done: make(chan struct{})}
	f.cmd = exec.Command(program, args...) // ended below
	f.cmd.Env = append(os.Environ(), "TMPDIR="+temp)
	f.cmd.Stderr = lockedWriter{&f.mu, &f.stderr}
	out, in, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	f.cmd.Stdout = in
	if err := f.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if err := in.Close(); err != nil {
		t.Fatal(err)
	}
	go func() {
		defer close(f.done)
		defer close(f.lines)
		for scanner := bufio.NewScanner(out); scanner.Scan(); {
			f.mu.Lock()
			fmt.Fprintln(&f.stdout, scanner.Text())
			f.mu.Unlock()
			f.lines <- scanner.Text()
		}
		f.cmd.Wait() // its state is read from ProcessState
		out.Close()  // read to its end
	}()
	t.Cleanup(func() {
		f.cmd.Process.Kill() // it may have ended
		<-f.done
		if t.Failed() {
			t.Logf("freshet %s\n%s%s", strings.Join(args, " "), f.out(), f.err())
		}
		f.nothingLeft(t)
		if err := os.RemoveAll(temp); err != nil {
			t.Error(err)
		}
	})
	return f
}

func (f *freshet) out() string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.stdout.String()
}

func (f *freshet) err() string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.stderr.String()
}

// await returns the first line from now on that matches, and its groups.
func (f *freshet) await(t *testing.T, pattern string) []string {
	t.Helper()
	expression := regexp.MustCompile(pattern)
	limit := time.NewTimer(90 * time.Second)
	defer limit.Stop()
	for {
		select {
		case line, more := <-f.lines:
			if !more {
				t.Fatalf("it ended without a line like %q", pattern)
			}
			if groups := expression.FindStringSubmatch(line); groups != nil {
				return groups
			}
		case <-limit.C:
			t.Fatalf("no line like %q within 90 s", pattern)
		}
	}
}

func (f *freshet) signal(t *testing.T, s syscall.Signal) {
	t.Helper()
	if err := f.cmd.Process.Signal(s); err != nil {
		t.Fatal(err)
	}
}

// code waits for the end and returns the exit code.
func (f *freshet) code(t *testing.T) int {
	t.Helper()
	limit := time.NewTimer(2 * time.Minute)
	defer limit.Stop()
	select {
	case <-f.done:
	case <-limit.C:
		t.Fatal("it did not end within 2 min")
	}
	return f.cmd.ProcessState.ExitCode()
}

// nothingLeft fails when a process of the run is alive or its folder for temporary files is not empty.
func (f *freshet) nothingLeft(t *testing.T) {
	t.Helper()
	limit := time.NewTimer(10 * time.Second)
	defer limit.Stop()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		left := f.left(t)
		if len(left) == 0 {
			return
		}
		select {
		case <-tick.C:
		case <-limit.C:
			t.Errorf("left behind: %v", left)
			return
		}
	}
}

// left are the files in its folder and the processes whose command line or environment names it.
func (f *freshet) left(t *testing.T) []string {
	t.Helper()
	var left []string
	entries, err := os.ReadDir(f.temp)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		left = append(left, e.Name())
	}
	processes, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range processes {
		command, err := os.ReadFile(filepath.Join(p, "cmdline"))
		if err != nil {
			continue // it has ended
		}
		environment, err := os.ReadFile(filepath.Join(p, "environ"))
		if err != nil && !errors.Is(err, fs.ErrPermission) {
			continue
		}
		if bytes.Contains(command, []byte(f.temp)) || bytes.Contains(environment, []byte("TMPDIR="+f.temp)) {
			left = append(left, p+" "+string(bytes.ReplaceAll(command, []byte{0}, []byte{' '})))
		}
	}
	return left
}

// finish starts the program and waits for its end.
func finish(t *testing.T, args ...string) (code int, f *freshet) {
	t.Helper()
	f = begin(t, args...)
	return f.code(t), f
}

func readReport(t *testing.T, path string) replay.Report {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var r replay.Report
	if err := json.Unmarshal(text, &r); err != nil {
		t.Fatal(err)
	}
	return r
}

func TestUpUnderLoad(t *testing.T) {
	report := filepath.Join(t.TempDir(), "report.json")
	code, f := finish(t, "up", "--replicas", "3", "--products", "2000", "--rate", "200", "--for", "5s", "--listen", "127.0.0.1:0", "--report", report)
	if code != 0 {
		t.Fatalf("exit code %d", code)
	}
	r := readReport(t, report)
	if r.Reads < 100 || r.Writes == 0 || r.Lists == 0 || r.Replicas != 3 || r.DurationS < 4.9 {
		t.Errorf("%d reads, %d writes, %d lists, %d replicas, %.1f s", r.Reads, r.Writes, r.Lists, r.Replicas, r.DurationS)
	}
	if r.Violations != 0 || r.Errors != 0 || r.Stale != 0 || r.Fresh != r.Reads {
		t.Errorf("%d violations, %d errors, %d stale, %d fresh of %d", r.Violations, r.Errors, r.Stale, r.Fresh, r.Reads)
	}
	if r.HitRatio <= 0 || r.HitsL1 == 0 || r.HitsL2+r.OwnerFills == 0 || r.SourceLoads == 0 {
		t.Errorf("hit ratio %.2f, l1 %d, l2 %d, loads %d", r.HitRatio, r.HitsL1, r.HitsL2, r.SourceLoads)
	}
	if r.ChangeLatencyMS.Count == 0 || r.StalenessMS.Max > 1000 || r.LatencyUS["http"].Count == 0 || r.Comparison.Compared == 0 {
		t.Errorf("change latency %+v, staleness %+v, latencies %+v, comparison %+v", r.ChangeLatencyMS, r.StalenessMS, r.LatencyUS, r.Comparison)
	}
	for _, want := range []string{
		"starting Redis Cluster, Postgres and NATS ... ", "curl -i http://127.0.0.1:", "psql 'postgres://", "FRESHET_ADMIN_URL=http://127.0.0.1:",
		"reads/s", "every promise was kept", "ending and removing everything ... ",
	} {
		if !strings.Contains(f.out(), want) {
			t.Errorf("the output lacks %q", want)
		}
	}
}

// Each fault, under load: no promise is broken, and no request fails but while the fault lasts. The
// keys are synthetic for some and from a trace for others. How much load gets through is not asked:
// the machine may be busy.
func TestUpSurvivesFaults(t *testing.T) {
	var keys strings.Builder
	for i := range 1000 {
		fmt.Fprintf(&keys, "key-%d\n", i%97)
	}
	trace := filepath.Join(t.TempDir(), "keys")
	if err := os.WriteFile(trace, []byte(keys.String()), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		kill     fault
		duration string // longer where there is more to restore
		args     []string
	}{
		{faultShard, "9s", []string{"--writes", "0.05"}},
		{faultRedis, "12s", []string{"--replay", trace, "--format", "lines"}},
		{faultNATS, "8s", []string{"--replay", trace, "--lists", "0"}},
		{faultReplica, "10s", []string{"--writes", "5%", "--lists", "20%"}},
	} {
		t.Run(string(c.kill), func(t *testing.T) {
			report := filepath.Join(t.TempDir(), "report.json")
			code, f := finish(t, append([]string{
				"up", "--products", "2000", "--rate", "150", "--for", c.duration, "--kill", string(c.kill), "--at", "1s",
				"--listen", "127.0.0.1:0", "--report", report,
			}, c.args...)...)
			if code != 0 {
				t.Fatalf("exit code %d", code)
			}
			r := readReport(t, report)
			if r.Violations != 0 || r.Errors != r.ErrorsExcused || r.Reads < 100 || r.Writes == 0 {
				t.Errorf("%d violations, %d errors, %d excused, %d reads, %d writes", r.Violations, r.Errors, r.ErrorsExcused, r.Reads, r.Writes)
			}
			if len(r.Faults) != 1 || r.Faults[0].Name != string(c.kill) || r.Faults[0].HealedS == nil {
				t.Errorf("faults %+v", r.Faults)
			}
			if r.Replicas != 3 {
				t.Errorf("%d replicas at the end", r.Replicas)
			}
			if (r.Lists == 0) != slices.Contains(c.args, "0") {
				t.Errorf("%d lists", r.Lists)
			}
			if !strings.Contains(f.out(), "fault: ") || !strings.Contains(f.out(), "restored") {
				t.Error("the output does not tell of the fault")
			}
		})
	}
}

// All replicas are restarted under reads and writes, each successor before its replica drains or after: no request fails, no
// write is lost, and the successor's caches serve as well as those before it within 5 s.
func TestUpRollingRestart(t *testing.T) {
	for _, c := range []struct {
		restart  order
		replicas string
		names    []string // of the successors
	}{
		{startFirst, "3", []string{"replica-1.2", "replica-2.2", "replica-3.2"}},
		{stopFirst, "2", []string{"replica-1", "replica-2"}},
	} {
		t.Run(string(c.restart), func(t *testing.T) {
			t.Parallel()
			report := filepath.Join(t.TempDir(), "report.json")
			code, f := finish(t, "up", "--products", "2000", "--rate", "200", "--writes", "10%", "--lists", "5%", "--replicas", c.replicas,
				"--restart", string(c.restart), "--at", "1s", "--listen", "127.0.0.1:0", "--report", report)
			if code != 0 {
				t.Fatalf("exit code %d", code)
			}
			r := readReport(t, report)
			if r.Errors != 0 || r.Violations != 0 || r.WritesUnknown != 0 || r.WritesHTTP == 0 || r.Comparison.Compared == 0 {
				t.Errorf("%d errors, %d violations, %d writes of unknown outcome, %d by the API, comparison %+v",
					r.Errors, r.Violations, r.WritesUnknown, r.WritesHTTP, r.Comparison)
			}
			var names []string
			for i, s := range r.Restarts {
				names = append(names, s.Successor)
				if s.Replica != replicaID(i) || s.Failed != 0 || !s.Measured || s.RecoveredS == nil || s.AllRecoveredS == nil ||
					s.DrainS < drainDelay.Seconds() || s.ReadyS < s.BeganS {
					t.Errorf("restart %+v", s)
				}
			}
			if !slices.Equal(names, c.names) {
				t.Errorf("successors %q, want %q", names, c.names)
			}
			if strings.Count(f.out(), "restart    ") != len(c.names) {
				t.Error("the summary does not tell of the restarts")
			}
		})
	}
}

// Without load it serves until a signal, which is the way to end it and no failure. The printed
// addresses work, and a taken default port is not in the way.
func TestUpInteractive(t *testing.T) {
	t.Parallel()
	holder, err := net.Listen("tcp", "127.0.0.1:8080") // taken by somebody else is as good
	if err == nil {
		defer holder.Close()
	}
	f := begin(t, "up", "--replicas", "2", "--products", "100")
	f.await(t, `port 8080 is taken; the load balancer takes \d+`)
	shop := f.await(t, `curl -i (http://\S+)/products/42`)[1]
	admin := f.await(t, `replica-1 .* admin (http://\S+)`)[1]
	f.await(t, `reads/s`)
	for _, url := range []string{shop + "/products/42", shop + "/products?category=1&status=active&limit=3", admin + "/metrics", admin + "/readyz"} {
		if code := get(t, url); code != http.StatusOK {
			t.Errorf("%s answers %d", url, code)
		}
	}
	f.signal(t, syscall.SIGINT)
	if code := f.code(t); code != 0 {
		t.Errorf("exit code %d after Ctrl-C, want 0", code)
	}
}

func get(t *testing.T, url string) int {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if _, err := io.Copy(io.Discard, resp.Body); err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode
}

func TestUpEndsOnSignals(t *testing.T) {
	t.Run("SIGTERM under load", func(t *testing.T) {
		t.Parallel()
		f := begin(t, "up", "--products", "500", "--rate", "200", "--for", "1m", "--listen", "127.0.0.1:0")
		f.await(t, `reads/s`)
		f.signal(t, syscall.SIGTERM)
		if code := f.code(t); code != 143 {
			t.Errorf("exit code %d, want 143", code)
		}
		if !strings.Contains(f.out(), "until the run was interrupted") {
			t.Error("there is no summary of what was seen")
		}
	})
	t.Run("SIGINT while starting", func(t *testing.T) {
		t.Parallel()
		f := begin(t, "up", "--listen", "127.0.0.1:0")
		limit, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		for len(f.left(t)) < 3 { // it has started servers
			if limit.Err() != nil {
				t.Fatal("no server was started")
			}
		}
		f.signal(t, syscall.SIGINT)
		if code := f.code(t); code != 130 {
			t.Errorf("exit code %d, want 130", code)
		}
	})
	t.Run("SIGKILL", func(t *testing.T) {
		t.Parallel()
		f := begin(t, "up", "--products", "100", "--replicas", "2", "--listen", "127.0.0.1:0")
		f.await(t, `reads/s`)
		f.signal(t, syscall.SIGKILL)
		<-f.done
		f.nothingLeft(t)
	})
}

// A replica that dies although nobody killed it ends the run, with its last words.
func TestUpReportsAReplicaThatDies(t *testing.T) {
	t.Parallel()
	f := begin(t, "up", "--products", "100", "--listen", "127.0.0.1:0")
	pid := f.await(t, `replica-2 .*\(process (\d+)\)`)[1]
	f.await(t, `reads/s`)
	if out, err := exec.Command("kill", "-ABRT", pid).CombinedOutput(); err != nil { // at once
		t.Fatal(err, string(out))
	}
	if code := f.code(t); code != exitFailed {
		t.Errorf("exit code %d, want %d", code, exitFailed)
	}
	if text := f.err(); !strings.Contains(text, "replica-2 ended by itself") || !strings.Contains(text, "replica-2 | ") {
		t.Errorf("the errors do not tell: %s", text)
	}
}

func TestUpFailedStart(t *testing.T) {
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	code, f := finish(t, "up", "--listen", taken.Addr().String())
	if code != exitFailed || !strings.Contains(f.err(), "--listen") {
		t.Errorf("exit code %d, %s", code, f.err())
	}
}

func TestServeAndMigrate(t *testing.T) {
	t.Parallel()
	// Everything down: it starts and is ready all the same.
	f := begin(t, "serve", "--id", "lonely", "--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0", "--start-timeout", "1s",
		"--postgres", "postgres://x@127.0.0.1:1/x?sslmode=disable", "--redis", "127.0.0.1:1", "--nats", "nats://127.0.0.1:1")
	admin := f.await(t, `^replica lonely api http://\S+ admin (http://\S+)$`)[1]
	limit, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	for get(t, admin+"/startupz") != http.StatusOK {
		if limit.Err() != nil {
			t.Fatal("not started within 30 s")
		}
	}
	if code := get(t, admin+"/readyz"); code != http.StatusOK {
		t.Errorf("/readyz is %d", code)
	}
	f.signal(t, syscall.SIGTERM)
	if code := f.code(t); code != 0 {
		t.Errorf("exit code %d after SIGTERM, want 0: a drained replica has done its work", code)
	}

	// A second signal ends a drain at once.
	d := begin(t, "serve", "--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0", "--start-timeout", "100ms", "--drain-delay", "1m",
		"--postgres", "postgres://x@127.0.0.1:1/x?sslmode=disable")
	admin = d.await(t, `^replica \S+ api http://\S+ admin (http://\S+)$`)[1]
	for _, want := range []int{http.StatusOK, http.StatusServiceUnavailable} {
		for get(t, admin+"/readyz") != want {
			if limit.Err() != nil {
				t.Fatalf("/readyz was not %d within 30 s", want)
			}
		}
		d.signal(t, syscall.SIGTERM)
	}
	d.code(t)
	if state, ok := d.cmd.ProcessState.Sys().(syscall.WaitStatus); !ok || state.Signal() != syscall.SIGTERM {
		t.Errorf("after the second signal: %v, want its end by SIGTERM", d.cmd.ProcessState)
	}

	code, m := finish(t, "migrate", "--postgres", "postgres://x@127.0.0.1:1/x?sslmode=disable")
	if code != exitFailed || !strings.Contains(m.err(), "refused") {
		t.Errorf("migrate without a server: exit code %d, %s", code, m.err())
	}
}

func TestVersion(t *testing.T) {
	code, f := finish(t, "version", "-o", "json")
	var b build
	if err := json.Unmarshal([]byte(f.out()), &b); code != 0 || err != nil || b.Version == "" || b.Go == "" || b.Platform == "" {
		t.Errorf("exit code %d, %v, %s", code, err, f.out())
	}
}
