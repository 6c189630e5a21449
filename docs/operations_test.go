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

	"github.com/freshet-cache/freshet/cluster"
	"github.com/freshet-cache/freshet/coherence"
	"github.com/freshet-cache/freshet/examples/shop"
	"github.com/freshet-cache/freshet/internal/devstack"
	"github.com/freshet-cache/freshet/internal/devstack/stacktest"
	"github.com/freshet-cache/freshet/internal/replica"
	"github.com/freshet-cache/freshet/node"
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
	dead     []*devstack.RedisNode
	client   *http.Client
}

func openWalk(t *testing.T) *walk {
	t.Helper()
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
			Node: node.Config{
				App: "shop", ID: fmt.Sprintf("replica-%d", i+1), MaxStale: 10 * time.Minute,
				Postgres: node.PostgresConfig{DSN: strings.Replace(dsn, w.stack.Postgres.Addr(), way.Addr(), 1)},
				Redis:    node.RedisConfig{Addrs: w.stack.Redis.Addrs()},
				NATS:     node.NATSConfig{URLs: []string{w.stack.NATS.URL()}},
			},
			Listen: "127.0.0.1:0", Admin: "127.0.0.1:0", AdminTokenFile: w.token, Logger: slog.New(slog.DiscardHandler),
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
			w.t.Errorf("%s: %v", c.Node.ID, err)
		}
	})
	w.replicas = append(w.replicas, r)
	w.until(c.Node.ID+" is ready", func() bool {
		return w.get("http://"+r.Admin()+"/readyz") == http.StatusOK
	})
}

// fresh is the verdict when all is well.
const fresh = "is FRESH from memory on replica-1, replica-2, replica-3."

// events are what happens in operations.md, by the words of its comments.
func (w *walk) events() map[string]func() {
	return map[string]func(){
		"product 42 is read on every replica": func() { w.readAll(fresh) },
		"replica-2 is cut off from Postgres, and product 42 changes": func() {
			w.ways[1].Stall()
			w.exec(`update products set price_cents = price_cents - 100 where id = 42`)
			w.readAll("is FRESH from memory on replica-1, replica-3; STALE on replica-2.")
		},
		"the way of replica-2 to Postgres is repaired": func() {
			w.ways[1].Heal()
			w.readAll(fresh)
		},
		"the servers of product 42's shard die": func() {
			shard, err := w.stack.Redis.Shard(w.slot(42))
			if err != nil {
				w.t.Fatal(err)
			}
			w.dead = shard
			for _, server := range shard {
				if err := server.Kill(); err != nil {
					w.t.Fatal(err)
				}
			}
			w.until("each replica knows that a shard is out", func() bool {
				w.exec(`update products set price_cents = price_cents + 100 where id = 42`) // misses find out
				w.readAll(fresh)
				return strings.Count(w.run("freshet shards"), " open: ") == len(w.replicas)
			})
		},
		"the servers are started again": func() {
			for _, server := range w.dead {
				if err := server.Start(w.t.Context()); err != nil {
					w.t.Fatal(err)
				}
			}
			if err := w.stack.Redis.WaitReady(w.t.Context()); err != nil {
				w.t.Fatal(err)
			}
			w.until("each replica uses the shard again", func() bool {
				w.exec(`update products set stock = stock + 1 where id = 42`) // misses try it
				w.readAll(fresh)
				return strings.Count(w.run("freshet shards"), " closed ") == 3*len(w.replicas)
			})
		},
		"a trigger of the products is disabled, and product 42 changes": func() {
			w.exec(`alter table products disable trigger all`)
			w.exec(`update products set price_cents = price_cents - 100 where id = 42`)
			w.until("each replica knows that the table does not tell", func() bool {
				return strings.Count(w.run("freshet watches"), "trigger disabled") == len(w.replicas)
			})
		},
		"select freshet.rewatch('products')": func() {
			w.exec(`select freshet.rewatch('products')`)
			w.until("each replica knows that the table tells", func() bool {
				return !strings.Contains(w.run("freshet watches"), "trigger")
			})
			w.readAll(fresh)
		},
		"product 42 changes past the log": func() {
			w.readAll(fresh)
			tx, err := w.db.BeginTxx(w.t.Context(), nil)
			if err != nil {
				w.t.Fatal(err)
			}
			for _, statement := range []string{
				`update products set price_cents = price_cents - 100 where id = 42`,
				`delete from freshet.log where xid = pg_current_xact_id()`,
			} {
				if _, err := tx.ExecContext(w.t.Context(), statement); err != nil {
					w.t.Fatal(err)
				}
			}
			if err := tx.Commit(); err != nil {
				w.t.Fatal(err)
			}
		},
		"product 42 is read again": func() { w.readAll(fresh) },
	}
}

// slot is that of the product's keys.
func (w *walk) slot(product int) uint16 {
	return cluster.Slot(fmt.Sprintf("{product:%d}", product))
}

// read reads the product on the replica with the number.
func (w *walk) read(replica, product int, header ...string) {
	w.get(fmt.Sprintf("http://%s/products/%d", w.replicas[replica].API(), product), header...)
}

// readAll reads product 42 on each replica, in their order, until they explain it as wanted.
func (w *walk) readAll(verdict string) {
	w.t.Helper()
	w.until("product 42 "+verdict, func() bool {
		for i := range w.replicas {
			if verdict == fresh {
				w.read(i, 42, "Freshet-Budget", "0") // so that no change before it is news afterwards
			}
			w.read(i, 42)
		}
		return strings.HasPrefix(w.run("freshet explain product 42"), "product 42 (detail) "+verdict+"\n")
	})
}

func (w *walk) exec(query string, args ...any) {
	w.t.Helper()
	if _, err := w.db.ExecContext(w.t.Context(), query, args...); err != nil {
		w.t.Fatalf("%s: %v", query, err)
	}
}

// get returns the answer's status; 0 if there is none. A header is its name and its value.
func (w *walk) get(url string, header ...string) int {
	request, err := http.NewRequestWithContext(w.t.Context(), http.MethodGet, url, nil)
	if err != nil {
		w.t.Fatal(err)
	}
	for i := 0; i+1 < len(header); i += 2 {
		request.Header.Set(header[i], header[i+1])
	}
	answer, err := w.client.Do(request)
	if err != nil {
		return 0
	}
	defer answer.Body.Close()
	_, _ = io.Copy(io.Discard, answer.Body)
	return answer.StatusCode
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
	// reasoned is what a replica says of an entry, behind its label: how it came to it is not the same in each run.
	reasoned = regexp.MustCompile(`(?m)^(replica-\d:? +[A-Z]+)\b.*$`)
	missed   = regexp.MustCompile(`(?m)^replica-\d: the last miss: .*\n`)
	named    = regexp.MustCompile(`\b(owner|token) [\w-]+|\b(l2|source)\b|\b[0-9a-f]{8,16}/`)
	variable = regexp.MustCompile(`\d[\d.,:]*(?: ?(?:ns|µs|ms|s|m|h|KiB|MiB|GiB|B|%)\b)?| -(?: |$)`)
	repeated = regexp.MustCompile(`(?:#[ \t]*)+`)
)

// masked is a text without what differs from run to run: numbers with their units, widths of columns, the names of
// owners and tokens, and how an entry came to where it is.
func masked(text string) string {
	text = reasoned.ReplaceAllString(missed.ReplaceAllString(text, ""), "$1")
	text = variable.ReplaceAllString(named.ReplaceAllString(text, "#"), "#")
	lines := strings.Split(repeated.ReplaceAllString(text, "#"), "\n")
	for i, line := range lines {
		lines[i] = strings.Join(strings.Fields(line), " ")
	}
	return strings.Join(lines, "\n")
}
