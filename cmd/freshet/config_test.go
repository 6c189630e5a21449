package main

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/freshet-cache/freshet/node/nodeconfig"
)

// runIn runs the program in this process.
func runIn(t *testing.T, args ...string) (code int, stdout, stderr string) {
	t.Helper()
	var out, problems strings.Builder
	code = run(t.Context(), args, strings.NewReader(""), &out, &problems)
	return code, out.String(), problems.String()
}

func TestConfigCommands(t *testing.T) {
	path := filepath.Join(t.TempDir(), "freshet.yaml")
	if err := os.WriteFile(path, []byte("postgres: {dsn: 'postgres://u:hunter2@db/shop'}\nbudget: 2s\nmax_stale: 1m\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Setenv("FRESHET_CONFIG", path)
	t.Setenv("FRESHET_MAX_STALE", "2m")
	t.Setenv("FRESHET_REPLICAS", "3") // is for `up`
	code, out, problems := runIn(t, "config", "print", "-o", "json", "--redis", "r1:1", "--redis", "r2:2", "--drain-delay", "3s")
	var shown []nodeconfig.Shown
	if err := json.Unmarshal([]byte(out), &shown); code != 0 || err != nil {
		t.Fatalf("exit code %d, %v\n%s", code, err, problems)
	}
	got := map[string]nodeconfig.Shown{}
	for _, one := range shown {
		got[one.Key] = one
	}
	for _, want := range []nodeconfig.Shown{
		{Key: "app", Value: "shop", Origin: "default"},
		{Key: "postgres.dsn", Value: "host=db port=5432 user=u dbname=shop password=(hidden)", Origin: path + ":1"},
		{Key: "budget", Value: "2s", Origin: path + ":2"},
		{Key: "max_stale", Value: "2m", Origin: "env FRESHET_MAX_STALE"},
		{Key: "redis.addrs", Value: "r1:1,r2:2", Origin: "flag --redis"},
		{Key: "drain_delay", Value: "3s", Origin: "flag --drain-delay"},
	} {
		if got[want.Key] != want {
			t.Errorf("got %+v, want %+v", got[want.Key], want)
		}
	}
	if code, out, problems := runIn(t, "config", "check"); code != 0 || out != "the configuration is right: 3 keys are given, the others have their defaults\n" {
		t.Errorf("check: %d\n%s%s", code, out, problems)
	}
	t.Setenv("FRESHET_MAX_STALES", "2m")
	if code, out, problems := runIn(t, "config", "check", "--log-level", "loud", "--listen", "8080"); code != exitUsage || out != "" ||
		problems != `freshet: FRESHET_MAX_STALES: no key has this variable; want FRESHET_ and a key in capitals, such as FRESHET_LISTEN
freshet: --log-level: "loud"; want one of debug, info, warn, error
freshet: --listen: "8080" is not an address; want host:port
` {
		t.Errorf("check: %d\n%s%s", code, out, problems)
	}
	if code, _, problems := runIn(t, "config", "print", "-o", "xml"); code != exitUsage || !strings.Contains(problems, "--output") {
		t.Errorf("print -o xml: %d\n%s", code, problems)
	}
	if code, out, problems := runIn(t, "config", "defaults"); code != 0 || !strings.Contains(out, "\n  # poll_interval: 250ms\n") || !strings.Contains(out, "\n# app: shop\n") {
		t.Errorf("defaults: %d\n%s%s", code, out, problems)
	}
	if code, out, _ := runIn(t, "config"); code != 0 || !strings.Contains(out, "print") {
		t.Errorf("config: %d\n%s", code, out)
	}
}

// Completion is a script that the shell takes, and completes commands, flags and keys, whatever the environment says.
func TestCompletion(t *testing.T) {
	t.Setenv("FRESHET_MAX_STALES", "no key")
	for _, shell := range []string{"bash", "zsh", "fish", "powershell"} {
		code, script, problems := runIn(t, "completion", shell)
		if code != 0 || !strings.Contains(script, "freshet") {
			t.Errorf("%s: %d, %d bytes, %s", shell, code, len(script), problems)
			continue
		}
		path, err := exec.LookPath(shell)
		if err != nil || shell == "powershell" {
			continue // this machine has no such shell to ask
		}
		check := exec.CommandContext(t.Context(), path, "-n")
		check.Stdin = strings.NewReader(script)
		if out, err := check.CombinedOutput(); err != nil {
			t.Errorf("%s refuses its script: %v\n%s", shell, err, out)
		}
	}
	for args, want := range map[string]string{
		"c":                              "config\tShow and check",
		"config ":                        "defaults\t",
		"serve --drain-":                 "--drain-delay\t",
		"serve --set redis.tim":          "redis.timeout=",
		"config print --config x.yaml -": "--output\t",
		"config print -o ":               "json",
	} {
		words := append([]string{"__complete"}, strings.Split(args, " ")...)
		if code, out, problems := runIn(t, words...); code != 0 || !strings.Contains(out, want) {
			t.Errorf("%q is completed by\n%s%s", args, out, problems)
		}
	}
	if _, help, _ := runIn(t, "--help"); !strings.Contains(help, "\n  completion ") {
		t.Error("the help does not name completion")
	}
}
