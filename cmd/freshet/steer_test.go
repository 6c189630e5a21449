package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/jmoiron/sqlx"

	"github.com/freshet-cache/freshet/node"
	"github.com/freshet-cache/freshet/node/admin"
)

// operated are the replicas of [oversee], for commands that bring the token.
type operated struct {
	*overseen
	db *sqlx.DB
}

func operateReplicas(t *testing.T) *operated {
	t.Helper()
	o := &operated{overseen: oversee(t)}
	var err error
	if o.db, err = sqlx.Open("postgres", o.dsn); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { o.db.Close() })
	return o
}

// run is the program at the first replica, with the token.
func (o *operated) run(args ...string) (code int, stdout, stderr string) {
	o.t.Helper()
	return o.at(0, append(args, "--admin-token-file", o.token)...)
}

// at is the program at a replica.
func (o *operated) at(replica int, args ...string) (code int, stdout, stderr string) {
	o.t.Helper()
	return runAt(o.t.Context(), o.t, "http://"+o.replicas[replica].Admin(), args...)
}

// does fails the test unless the command succeeds and prints all of these.
func (o *operated) does(args []string, want ...string) string {
	o.t.Helper()
	code, out, stderr := o.run(args...)
	if code != 0 {
		o.t.Errorf("freshet %s: exit code %d: %s", strings.Join(args, " "), code, stderr)
	}
	for _, text := range want {
		if !strings.Contains(out, text) {
			o.t.Errorf("freshet %s: %q is not in\n%s", strings.Join(args, " "), text, out)
		}
	}
	return out
}

// refuses fails the test unless the command fails with the code and says all of these, each on a line of its own.
func (o *operated) refuses(code int, args []string, want ...string) {
	o.t.Helper()
	got, _, stderr := o.run(args...)
	if got != code {
		o.t.Errorf("freshet %s: exit code %d, want %d", strings.Join(args, " "), got, code)
	}
	for _, text := range want {
		if !slices.ContainsFunc(strings.Split(stderr, "\n"), func(line string) bool {
			return strings.HasPrefix(line, "freshet: ") && strings.Contains(line, text)
		}) {
			o.t.Errorf("freshet %s: %q is not in a line of\n%s", strings.Join(args, " "), text, stderr)
		}
	}
}

// decoded is the answer that a command prints with --json.
func decoded[T any](o *operated, args ...string) T {
	o.t.Helper()
	var v T
	text := o.does(append(args, "--json"))
	if err := json.Unmarshal([]byte(text), &v); err != nil {
		o.t.Errorf("freshet %s --json: %v in %s", strings.Join(args, " "), err, text)
	}
	return v
}

func (o *operated) exec(query string, args ...any) {
	o.t.Helper()
	if _, err := o.db.ExecContext(o.t.Context(), query, args...); err != nil {
		o.t.Fatal(err)
	}
}

// Every command that steers, against replicas on real servers: what it does, and how it fails.
func TestSteeringCommands(t *testing.T) {
	o := operateReplicas(t)
	words := strings.Fields
	t.Run("generation", func(t *testing.T) {
		o.t = t
		o.does(words("generation next product --why a-test --expect 1 --yes"), "the generation of product is 2", "token ")
		o.does(words("generation next product --why again --by ann --yes"), "is 3")
		o.does(words("generation rollback product --why back --yes"), "is 2")
		o.does(words("generation rollback product --to 1 --why back --yes"), "is 1")
		o.does(words("generation set --application 7 --why encoding --yes"), "the generation of the application is 7")
		if is := decoded[admin.ChangedGeneration](o, words("generation set product 9 --why nine --yes")...); is.Generation != 9 || is.Namespace != "product" {
			t.Errorf("as JSON %+v", is)
		}
		o.does(words("generation list"), "(application)  7", "product        9", "category       1")
		if g := decoded[admin.Generations](o, "generation", "list"); g.Application != 7 || !slices.Contains(g.Namespaces, admin.NamespaceGeneration{Namespace: "product", Generation: 9}) {
			t.Errorf("as JSON %+v", g)
		}
		o.does(words("generation history product --limit 4"), "AT", `increment  "ann"`, `rollback   "admin token"  "back"`)
		if events := decoded[[]node.GenerationEvent](o, words("generation history --application")...); len(events) != 1 || events[0].Why != "encoding" {
			t.Errorf("as JSON %+v", events)
		}
		o.refuses(exitFailed, words("generation next product --why late --expect 1 --yes"), "Conflict: ", "is 9, not 1 as expected")
		o.refuses(exitFailed, words("generation next products --why slip --yes"), "Refused: ", `/namespace "products" has no cache here; want one of cart, category, product`)
		o.refuses(exitFailed, words("generation rollback cart --why back --yes"), "no generation of cart is known")
		o.refuses(exitUsage, words("generation next product --why x"), "--yes: missing: everything that is cached of product will be loaded again")
		if code, _, stderr := o.at(1, words("generation next product --why stranger --yes")...); code != exitFailed || !strings.Contains(stderr, "Unauthorized") {
			t.Errorf("without a token: exit code %d: %s", code, stderr)
		}
		o.does(words("generation list"), "product        9")
	})
	t.Run("invalidate and batch", func(t *testing.T) {
		o.t = t
		o.does(words("invalidate product 1 2 --view detail --grace 1s"), "each of 2 ids of product has changed", "token ")
		o.does(words("invalidate product --all --yes"), "everything of product has changed")
		if is := decoded[admin.Invalidated](o, words("invalidate --tag category:1 --tag a,b")...); is.Token == "" {
			t.Errorf("as JSON %+v", is)
		}
		o.does(words("invalidate category 1 --after 1h"), "changes in 1h0m0s")
		o.does([]string{"invalidate", "product", "3", "--batch", "a/b c"}, `waits in the batch "a/b c"`)
		o.does(words("invalidate product 4 --batch nightly --after 2h"), `waits in the batch "nightly"`)
		o.does(words("batch list"), `"a/b c"    1`, `"nightly"  1`)
		if batches := decoded[[]node.BatchStats](o, "batch", "list"); len(batches) != 2 || !batches[0].Due.IsZero() || batches[1].Due.IsZero() {
			t.Errorf("as JSON %+v", batches)
		}
		o.does([]string{"batch", "run", "a/b c"}, "1 changes count")
		o.refuses(exitUsage, words("batch drop nightly"), "--yes: missing: what the batch")
		o.does(words("batch drop nightly --yes"), "1 changes are forgotten")
		o.refuses(exitFailed, words("batch run nightly"), "There is no batch of that name")
		o.refuses(exitFailed, words("batch drop nightly --yes"), "There is no batch of that name")
		o.refuses(exitFailed, words("invalidate product 1 --view nothing --after 10000h"), "/view ", "/after_seconds ")
		o.refuses(exitUsage, words("invalidate product --all"), "--yes: missing")
		var waiting int
		if err := o.db.GetContext(t.Context(), &waiting, `select count(*) from freshet.scheduled`); err != nil || waiting != 1 {
			t.Errorf("%d changes wait, want that of the category: %v", waiting, err)
		}
	})
	t.Run("queue", func(t *testing.T) {
		o.t = t
		for n, value := range []string{`{"id": "x", "lines": "none"}`, `{"id": "x", "lines": []}`, `{"id": "x", "lines": 1}`} {
			o.exec(`insert into freshet.dead_letters (app, namespace, id, epoch, seq, value, error, attempts, put_at)
				values ('shop', 'cart', 'cart-' || $1::bigint, 0, $1::bigint, $2, 'of a test', 5, now())`, n+1, value)
		}
		o.does(words("queue status"), "cart       0        0s      0", "dead letters: 3", "stream freshet-shop-puts: 0 of 10000 messages")
		if q := decoded[admin.Queue](o, "queue", "status"); q.DeadLetters == nil || *q.DeadLetters != 3 || len(q.Replicas) != 2 || q.Stream == nil {
			t.Errorf("as JSON %+v", q)
		}
		letters := decoded[[]node.DeadLetter](o, "queue", "dead-letters")
		if len(letters) != 3 || letters[0].ID != "cart-1" {
			t.Fatalf("as JSON %+v", letters)
		}
		o.does(words("queue dead-letters --limit 1"), `"cart-1"`, `"{\"id\": \"x\", \"lines\": \"none\"}"`, `"of a test"`)
		if code, out, _ := o.at(0, "queue", "dead-letters"); code != exitFailed || strings.Contains(out, "cart-1") {
			t.Errorf("without a token: exit code %d: %s", code, out)
		}
		number := func(n int) string { return fmt.Sprint(letters[n].Letter) }
		o.refuses(exitFailed, []string{"queue", "retry", number(0), number(1)}, "dead letter "+number(0)+": Refused: ", "cannot unmarshal string")
		o.refuses(exitFailed, []string{"queue", "retry", number(1)}, "There is no dead letter of that number") // the other was written
		o.refuses(exitUsage, []string{"queue", "drop", number(0)}, "--yes: missing: the values of 1 dead letters will be lost")
		o.does([]string{"queue", "drop", number(0), number(2), "--yes"}, "dead letter "+number(0)+" is dropped", "dead letter "+number(2)+" is dropped")
		if settled := decoded[[]node.DeadLetter](o, "queue", "dead-letters"); len(settled) != 0 {
			t.Errorf("at the end there are %+v", settled)
		}
		var lines string
		if err := o.db.GetContext(t.Context(), &lines, `select lines from carts where id = 'cart-2'`); err != nil || lines != "[]" {
			t.Errorf("the cart that was written after all is %q, %v", lines, err)
		}
	})
	t.Run("clean", func(t *testing.T) {
		o.t = t
		o.does(words("clean status"), "there was no clean-up")
		o.refuses(exitFailed, words("clean stop"), "No clean-up is under way on this replica.")
		o.refuses(exitUsage, words("clean start product"), "--yes: missing: everything of product will be removed from Redis")
		o.refuses(exitFailed, words("clean start Product --prefix x"), "/namespace is no name of a namespace")
		if is := decoded[node.CleanStatus](o, words("clean start product --pattern 1* --invalidate --rate 1000")...); !is.SomeIDs || !is.Invalidate || is.Namespace != "product" {
			t.Errorf("as JSON %+v", is)
		}
		for decoded[node.CleanStatus](o, "clean", "status").Running {
		}
		o.does(words("clean status"), "state        done", "removed      ")
		o.does(words("clean start --application --rate 1 --yes"), "began  ")
		o.refuses(exitFailed, words("clean start --application --old-generations"), "Conflict: ", "under way on this node")
		o.does(words("clean stop"), "state        ended early", "stopped")
	})
	o.t = t
	for _, args := range []string{"generation list", "batch list", "queue status", "invalidate product 1"} {
		var stdout, stderr strings.Builder
		code := run(t.Context(), strings.Fields(args+" --admin-url http://127.0.0.1:1"), strings.NewReader(""), &stdout, &stderr)
		if code != exitFailed || !strings.Contains(stderr.String(), "refused") {
			t.Errorf("%s where nobody listens: exit code %d: %s", args, code, stderr.String())
		}
	}
}

func TestAsk(t *testing.T) {
	for answer, yes := range map[string]bool{"y\n": true, " YES \n": true, "yes": true, "": false, "\n": false, "n\n": false, "yesterday\n": false} {
		var out strings.Builder
		err := ask(t.Context(), strings.NewReader(answer), &out, "all of it goes")
		if (err == nil) != yes || out.String() != "all of it goes. Go on? [y/N] " {
			t.Errorf("%q: %v after %q", answer, err, out.String())
		}
	}
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(signalError{2})
	in, out, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	defer out.Close()
	if err := ask(ctx, in, &strings.Builder{}, "all of it goes"); err != (signalError{2}) {
		t.Errorf("a question that is interrupted: %v", err)
	}
}
