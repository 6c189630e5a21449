// Package docs holds what the documents show against the program.
package docs

import (
	"bytes"
	"context"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/jmoiron/sqlx"

	"github.com/freshet-cache/freshet/coherence"
	"github.com/freshet-cache/freshet/examples/shop"
	"github.com/freshet-cache/freshet/internal/devstack"
	"github.com/freshet-cache/freshet/internal/devstack/stacktest"
	"github.com/freshet-cache/freshet/internal/replica"
)

func TestMain(m *testing.M) { stacktest.Main(m, devstack.Options{}) }

// update writes what was seen into operations.md, for a look at the difference.
var update = flag.Bool("update", false, "write the output of the commands in operations.md")

// patient is how long a command may take to print what the document shows: what happened has to be noticed.
const patient = time.Minute

// TestOperations does what operations.md does, on three replicas of the shop, each with its own way to Postgres: it lets
// happen what the comments `<!-- happens: ... -->` say, and runs the commands in the blocks marked console. Each must
// print what stands there, numbers, times and addresses aside.
func TestOperations(t *testing.T) {
	text, err := os.ReadFile("operations.md")
	if err != nil {
		t.Fatal(err)
	}
	w := openWalk(t)
	var seen strings.Builder // the document with what was seen
	inside := false          // a console block
	lines := strings.SplitAfter(string(text), "\n")
	for i := 0; i < len(lines); i++ {
		line := lines[i]
		switch {
		case strings.HasPrefix(line, "<!-- happens: "):
			event := strings.TrimSuffix(strings.TrimPrefix(strings.TrimSpace(line), "<!-- happens: "), " -->")
			do, known := w.events()[event]
			if !known {
				t.Fatalf("operations.md:%d: nobody knows how %q happens", i+1, event)
			}
			do()
		case strings.TrimSpace(line) == "```console":
			inside = true
		case strings.TrimSpace(line) == "```":
			inside = false
		case inside && strings.HasPrefix(line, "$ "):
			seen.WriteString(line)
			end := i + 1
			for !strings.HasPrefix(lines[end], "$ ") && strings.TrimSpace(lines[end]) != "```" {
				end++
			}
			want := strings.Join(lines[i+1:end], "")
			seen.WriteString(w.shows(i+1, strings.TrimSpace(line[2:]), want))
			i = end - 1
			continue
		}
		seen.WriteString(line)
	}
	if *update {
		if err := os.WriteFile("operations.md", []byte(seen.String()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

// walk is the cluster that operations.md goes through.
type walk struct {
	t        *testing.T
	stack    *devstack.Stack
	program  string
	db       *sqlx.DB
	ways     []*devstack.Proxy // of each replica to Postgres
	replicas []*replica.Replica
	token    string // path of the file
	client   *http.Client
}

func openWalk(t *testing.T) *walk {
	w := &walk{t: t, stack: stacktest.Stack(), client: &http.Client{Timeout: 20 * time.Second}}
	w.program = filepath.Join(t.TempDir(), "freshet")
	if out, err := exec.CommandContext(t.Context(), "go", "build", "-o", w.program, "../cmd/freshet").CombinedOutput(); err != nil {
		t.Fatalf("build the program: %v\n%s", err, out)
	}
	w.token = filepath.Join(t.TempDir(), "admin-token")
	if err := os.WriteFile(w.token, []byte(strings.Repeat("token-", 8)), 0o600); err != nil {
		t.Fatal(err)
	}
	dsn := w.stack.Postgres.DSN()
	var err error
	if w.db, err = coherence.OpenPool(coherence.PoolConfig{DSN: dsn}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = w.db.Close() })
	for _, err := range []error{
		coherence.Migrate(t.Context(), w.db.DB), shop.Migrate(t.Context(), w.db),
		shop.Seed(t.Context(), w.db, shop.SeedConfig{Products: 100, Categories: 5}),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	for i := range 3 {
		way, err := devstack.NewProxy(w.stack.Postgres.Addr())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(way.Close)
		w.ways = append(w.ways, way)
		w.start(replica.Config{
			App: "shop", ID: fmt.Sprintf("replica-%d", i+1), Listen: "127.0.0.1:0", Admin: "127.0.0.1:0", AdminTokenFile: w.token,
			Postgres: strings.Replace(dsn, w.stack.Postgres.Addr(), way.Addr(), 1), Redis: w.stack.Redis.Addrs(), NATS: []string{w.stack.NATS.URL()},
			MaxStale: 10 * time.Minute, Logger: slog.New(slog.DiscardHandler),
		})
	}
	w.until("the replicas know each other", func() bool {
		return strings.Count(w.run("freshet members"), " ok") == 3
	})
	return w
}

// start runs a replica until the test ends.
func (w *walk) start(c replica.Config) {
	w.t.Helper()
	r, err := replica.Listen(w.t.Context(), c)
	if err != nil {
		w.t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.WithoutCancel(w.t.Context()))
	ended := make(chan error, 1)
	go func() { ended <- r.Run(ctx) }()
	w.t.Cleanup(func() {
		stop()
		if err := <-ended; err != nil {
			w.t.Errorf("%s: %v", c.ID, err)
		}
	})
	w.replicas = append(w.replicas, r)
	w.until(c.ID+" is ready", func() bool {
		status, _ := w.get("http://" + r.Admin() + "/readyz")
		return status == http.StatusOK
	})
}

// events are what happens in operations.md, by the words of its comments.
func (w *walk) events() map[string]func() {
	return map[string]func(){
		"product 42 is read on every replica": func() { w.readAll(42) },
		"replica-2 is cut off from Postgres, and product 42 changes": func() {
			w.ways[1].Stall()
			w.exec(`update products set price_cents = price_cents - 100 where id = 42`)
			w.readUntil(1, 42, "stale")
			w.readUntil(0, 42, "fresh")
			w.readUntil(2, 42, "fresh")
		},
		"the way of replica-2 to Postgres is repaired": func() {
			w.ways[1].Heal()
			w.readUntil(1, 42, "fresh")
		},
	}
}

// read reads the product on the replica with the number, and returns the answer's label.
func (w *walk) read(replica, product int) string {
	_, header := w.get(fmt.Sprintf("http://%s/products/%d", w.replicas[replica].API(), product))
	return header.Get("Freshet-Fresh")
}

func (w *walk) readAll(product int) {
	for i := range w.replicas {
		w.readUntil(i, product, "fresh")
	}
}

func (w *walk) readUntil(replica, product int, label string) {
	w.t.Helper()
	w.until(fmt.Sprintf("replica-%d answers product %d %s", replica+1, product, label), func() bool { return w.read(replica, product) == label })
}

func (w *walk) exec(query string, args ...any) {
	w.t.Helper()
	if _, err := w.db.ExecContext(w.t.Context(), query, args...); err != nil {
		w.t.Fatalf("%s: %v", query, err)
	}
}

func (w *walk) get(url string) (int, http.Header) {
	request, err := http.NewRequestWithContext(w.t.Context(), http.MethodGet, url, nil)
	if err != nil {
		w.t.Fatal(err)
	}
	answer, err := w.client.Do(request)
	if err != nil {
		return 0, http.Header{}
	}
	defer answer.Body.Close()
	_, _ = io.Copy(io.Discard, answer.Body)
	return answer.StatusCode, answer.Header
}

// until waits for something to come true.
func (w *walk) until(what string, holds func() bool) {
	w.t.Helper()
	limit := time.Now().Add(patient)
	for tick := time.NewTicker(20 * time.Millisecond); ; <-tick.C {
		if holds() {
			tick.Stop()
			return
		}
		if time.Now().After(limit) {
			w.t.Fatalf("not within %v: %s", patient, what)
		}
	}
}

// run is a command of the document, asking the first replica: what it prints, its errors, too.
func (w *walk) run(line string) string {
	words := splitWords(line)
	if words[0] != "freshet" {
		w.t.Fatalf("operations.md runs %q; only freshet can be run here", words[0])
	}
	command := exec.CommandContext(w.t.Context(), w.program, words[1:]...)
	command.Env = append(os.Environ(), "FRESHET_ADMIN_URL=http://"+w.replicas[0].Admin(), "FRESHET_ADMIN_TOKEN_FILE="+w.token)
	var out bytes.Buffer
	command.Stdout, command.Stderr = &out, &out
	_ = command.Run() // what went wrong is printed
	return out.String()
}

// splitWords splits a line as a shell does that knows spaces and single quotes.
func splitWords(line string) []string {
	var words []string
	for i, part := range strings.Split(line, "'") {
		if i%2 == 1 {
			words = append(words, part)
			continue
		}
		words = append(words, strings.Fields(part)...)
	}
	return words
}

// shows runs the command until it prints what is wanted, and returns what it printed last.
func (w *walk) shows(number int, command, want string) (got string) {
	w.t.Helper()
	limit := time.Now().Add(patient)
	for tick := time.NewTicker(100 * time.Millisecond); ; <-tick.C {
		got = w.run(command)
		if *update || masked(got) == masked(want) {
			tick.Stop()
			return got
		}
		if time.Now().After(limit) {
			tick.Stop()
			w.t.Errorf("operations.md:%d: %s prints\n%s\nand not, as shown,\n%s\nthat is\n%s\nand not\n%s", number, command, got, want, masked(got), masked(want))
			return got
		}
	}
}

var (
	variable = regexp.MustCompile(`(?:\d+:)*\d[\d.,:]*(?:ns|µs|ms|s|m|h|KiB|MiB|GiB|KB|MB|GB|B|%)?`)
	spaces   = regexp.MustCompile(`[ \t]+`)
)

// masked is a text without what differs from run to run: numbers with their units, and the widths of columns.
func masked(text string) string {
	text = spaces.ReplaceAllString(variable.ReplaceAllString(text, "#"), " ")
	return regexp.MustCompile(`(?:#[ ]?)+`).ReplaceAllString(text, "#")
}
