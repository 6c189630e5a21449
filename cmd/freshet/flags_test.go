package main

import (
	"strings"
	"testing"
)

// Wrong commands and flags: exit code 2, every problem named by its flag, at once.
func TestUsageErrors(t *testing.T) {
	t.Setenv("FRESHET_POSTGRES", "")
	for _, c := range []struct {
		args string
		want []string
	}{
		{"frobnicate", []string{"frobnicate", "freshet help"}},
		{"up now", []string{"takes no argument", `"now"`}},
		{"up --frobnicate", []string{"--frobnicate", "up --help"}},
		{"up --replicas three", []string{"--replicas", "three"}},
		{"up --writes 200%", []string{"--writes", "0% to 50%"}},
		{"up --writes 2", []string{"--writes", "0% to 50%"}},
		{"up --lists some", []string{"--lists", "2% or 0.02"}},
		{"up --kill postgres", []string{"--kill", "redis-shard, redis, nats, replica"}},
		{
			"up --replicas 0 --products -1 --rate -5 --for -1s --budget 0s --max-stale -1s --logs /nowhere --format csv --report x",
			[]string{"--replicas: 0", "--products: -1", "--rate: -5", "--for: -1s", "--budget: 0s", "--max-stale: -1s", "--logs:", "--format:", "--report:"},
		},
		{"up --rate 100 --replay /nowhere", []string{"--replay: ", "/nowhere"}},
		{"up --rate 100 --report /nowhere/report", []string{"--report: ", "/nowhere"}},
		{"up --rate 100 --for 10s --kill nats --at 5s", []string{"--at: 5s", "10s"}},
		{"up --restart slowly", []string{"--restart", "start-first, stop-first"}},
		{"up --restart start-first", []string{"--restart: only with load"}},
		{"up --restart stop-first --kill nats --rate 1 --replicas 1 --at -1s", []string{"--restart: not together with --kill", "--replicas 2", "--at: -1s"}},
		{"serve", []string{"--postgres: is empty"}},
		{
			"serve --postgres x --app A --listen x --redis y --nats z --budget -1s --max-stale 999h --drain-delay 1h --trace-endpoint x --trace-sample 2",
			[]string{"--app:", "--listen:", "--redis:", "--nats:", "--budget:", "--max-stale:", "--drain-delay:", "--trace-endpoint:", "--trace-sample:"},
		},
		{"migrate --products -1", []string{"--postgres: missing", "--products: -1"}},
		{"migrate --postgres x --products 5", []string{"--shop"}},
		{"verify", []string{"--stack is missing"}},
		{
			"verify --stack --faults plague --replicas 99 --pairs -1 --rate -1 --duration -1s --report /nowhere/report",
			[]string{"--faults: ", "--list", "--replicas: 99", "--pairs: -1", "--rate: -1", "--duration: -1s", "--report: "},
		},
		{"version -o xml", []string{"--output", "json"}},
		{"generation frobnicate", []string{`unknown command "frobnicate"`, "freshet generation --help"}},
		{"generation list product", []string{"takes no argument"}},
		{"generation next --yes", []string{"takes NAMESPACE, got 0 arguments", "--why: missing"}},
		{"generation next a b --application --why x --yes", []string{"takes no argument, got 2"}},
		{"generation set product zero --why x --yes", []string{`NUMBER: "zero"; want 1 to 4294967295`}},
		{"generation rollback product --to -1 --why x --yes", []string{"--to"}},
		{"generation history product --limit 0", []string{"--limit: 0; want 1 to 1000"}},
		{"invalidate", []string{"NAMESPACE is missing"}},
		{"invalidate product --after -1s --grace -1s", []string{"ID is missing", "--after: -1s", "--grace: -1s"}},
		{"invalidate product 1 --all", []string{"--all: is everything of the namespace"}},
		{"invalidate product --tag x", []string{"--tag: tags are of all namespaces"}},
		{"batch run", []string{"takes NAME, got 0 arguments"}},
		{"batch drop a b --yes", []string{"takes NAME, got 2 arguments"}},
		{"clean start --application --prefix a --pattern b", []string{"--pattern: want it without --prefix", "--application: want a NAMESPACE"}},
		{"clean stop now", []string{"takes no argument"}},
		{"queue retry", []string{"takes LETTER..., got none"}},
		{"queue drop one 0 --yes", []string{`LETTER: "one"`, `LETTER: "0"`}},
		{"queue dead-letters --after -1 --limit 1001", []string{"--after: -1", "--limit: 1001"}},
		{"explain product", []string{"NAMESPACE and ID"}},
		{"members a", []string{"takes no argument"}},
		{"stats --admin-url localhost:9090 --timeout 0s --admin-token-file /nowhere", []string{"--admin-url: ", "--timeout: ", "--admin-token-file: "}},
		{"top --every 1ms --for -1s --count -1", []string{"--every: 1ms", "--for: -1s", "--count: -1"}},
	} {
		t.Run(c.args, func(t *testing.T) {
			var stdout, stderr strings.Builder
			code := run(t.Context(), strings.Fields(c.args), strings.NewReader(""), &stdout, &stderr)
			if code != exitUsage {
				t.Errorf("exit code %d, want %d", code, exitUsage)
			}
			for _, want := range c.want {
				if !strings.Contains(stderr.String(), want) {
					t.Errorf("%q is not in\n%s", want, stderr.String())
				}
			}
			for line := range strings.Lines(stderr.String()) {
				if !strings.HasPrefix(line, "freshet: ") {
					t.Errorf("the line %q does not say who speaks", line)
				}
			}
		})
	}
}

func TestEnvironment(t *testing.T) {
	t.Setenv("FRESHET_REPLICAS", "0")
	t.Setenv("FRESHET_MAX_STALE", "a while")
	var stdout, stderr strings.Builder
	if code := run(t.Context(), []string{"up"}, strings.NewReader(""), &stdout, &stderr); code != exitUsage || !strings.Contains(stderr.String(), "FRESHET_MAX_STALE") {
		t.Errorf("exit code %d: %s", code, stderr.String())
	}
	// A flag wins over its variable, even over an unusable one; the other variable is heard.
	stderr.Reset()
	if code := run(t.Context(), []string{"up", "--max-stale", "1m"}, strings.NewReader(""), &stdout, &stderr); code != exitUsage ||
		!strings.Contains(stderr.String(), "--replicas: 0") || strings.Contains(stderr.String(), "stale") {
		t.Errorf("exit code %d: %s", code, stderr.String())
	}
}

func TestHelp(t *testing.T) {
	var stdout, stderr strings.Builder
	if code := run(t.Context(), []string{"--help"}, strings.NewReader(""), &stdout, &stderr); code != 0 {
		t.Fatalf("exit code %d: %s", code, stderr.String())
	}
	for _, command := range []string{
		"up", "serve", "config", "completion", "migrate", "version",
		"invalidate", "generation", "batch", "queue", "clean",
		"explain", "top", "members", "stats", "summary", "namespaces", "shards", "redis", "postgres", "watches",
	} {
		if !strings.Contains(stdout.String(), "\n  "+command+" ") {
			t.Errorf("the help lacks %s", command)
		}
	}
}

func TestPercent(t *testing.T) {
	for text, want := range map[string]percent{"2%": 0.02, "0.02": 0.02, " 2 % ": 0.02, "0": 0, "50%": 0.5, "0.5": 0.5, "1e-3": 0.001} {
		var p percent
		if err := p.Set(text); err != nil || p != want {
			t.Errorf("%q is %v, %v; want %v", text, float64(p), err, float64(want))
		}
	}
	for _, text := range []string{"", "%", "2", "51%", "-1%", "NaN", "Inf", "two", "0.51", "2%%"} {
		var p percent
		if err := p.Set(text); err == nil {
			t.Errorf("%q is %v, want an error", text, p)
		}
	}
	if s := percent(0.02).String(); s != "2%" {
		t.Errorf("2%% prints as %s", s)
	}
}

// A tail keeps the last bytes; the first line of a stream is split off wherever the writes fall.
func TestOutputOfChildren(t *testing.T) {
	var kept strings.Builder
	end := &tail{log: &kept}
	first := &firstLine{line: make(chan string, 1), rest: end}
	for _, part := range []string{"repl", "ica a\nwarn", "ing\n", strings.Repeat("x", tailBytes), "\nlast\n"} {
		if n, err := first.Write([]byte(part)); n != len(part) || err != nil {
			t.Fatalf("Write(%d bytes) = %d, %v", len(part), n, err)
		}
	}
	if line := <-first.line; line != "replica a\n" {
		t.Errorf("the first line is %q", line)
	}
	if text := end.prefixed("r1"); !strings.HasSuffix(text, "\nr1 | last") || len(text) > tailBytes+20 {
		t.Errorf("the tail is %d bytes and ends in %q", len(text), text[len(text)-20:])
	}
	if !strings.HasPrefix(kept.String(), "warning\n") || !strings.HasSuffix(kept.String(), "last\n") {
		t.Error("the log did not get everything")
	}
}
