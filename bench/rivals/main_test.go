package main

import (
	"io"
	"strings"
	"testing"

	"github.com/freshet-cache/freshet/internal/devstack"
	"github.com/freshet-cache/freshet/internal/devstack/stacktest"
	"github.com/freshet-cache/freshet/internal/verify"
)

func TestMain(m *testing.M) { stacktest.Main(m, devstack.Options{}) }

func TestFlags(t *testing.T) {
	for _, test := range []struct {
		args string
		code int
		says string
	}{
		{"-h", 0, "-duration"},
		{"-only freshet,memcached", exitUsage, `"memcached" is no system; there are freshet, cache-aside`},
		{"-faults sql,fire", exitUsage, "-faults fire: there is no such fault"},
		{"-duration 1ms", exitUsage, "-duration 1ms: want 1s to 24h"},
		{"rockscache", exitUsage, `"rockscache": want flags only`},
	} {
		var said strings.Builder
		if code := run(t.Context(), strings.Fields(test.args), io.Discard, &said); code != test.code {
			t.Errorf("rivals %s: exit code %d, want %d", test.args, code, test.code)
		}
		if !strings.Contains(said.String(), test.says) {
			t.Errorf("rivals %s says %q, want %q in it", test.args, said.String(), test.says)
		}
	}
	o, err := parse(nil, io.Discard)
	if err != nil || len(o.systems) != len(systems()) || len(o.faults) != len(faults()) || !o.outside || o.duration != fullDuration {
		t.Errorf("without flags: %+v, %v; want all systems and faults", o, err)
	}
}

// Every library is named with its version and a link to its source.
func TestReport(t *testing.T) {
	r := report{}
	for i, system := range systems() {
		r.results = append(r.results, result{rival: system, phases: []verify.Phase{
			{Fault: "none", Reads: 10, Violations: map[string]uint64{"I1": uint64(i), "I5": uint64(i)}, Before: verify.Share{Reads: 9, Failures: 1}},
		}})
	}
	if n := r.promised(); n != 0 {
		t.Errorf("Freshet broke %d promises, want 0", n)
	}
	text := r.markdown()
	for _, line := range []string{
		"| none | 0, 0.00 s | 2, 0.00 s | 4, 0.00 s |",
		"| rockscache | none | 10 | 3 | 0 | 0 | 0 | 3 | 0.00 s | 0.00 s | 10.00 % |",
		"| cache-aside | this project's |",
	} {
		if !strings.Contains(text, line) {
			t.Errorf("the report has no line %q:\n%s", line, text)
		}
	}
	for _, system := range systems() {
		if system.module == "" || system.name == freshet {
			continue
		}
		if v := system.version(); v != "" && !strings.Contains(text, "["+system.module+"](https://pkg.go.dev/"+system.module+"@"+v+") | "+v) {
			t.Errorf("the report does not link %s:\n%s", system.module, text)
		}
	}
}
