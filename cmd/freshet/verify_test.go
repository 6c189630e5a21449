package main

import (
	"strings"
	"syscall"
	"testing"
)

// The program verifies itself by replicas that are itself; Ctrl-C shows what was seen so far and leaves nothing.
func TestVerify(t *testing.T) {
	f := begin(t, "verify", "--stack", "--faults", "nats-outage,none", "--duration", "12s", "--rate", "1000", "--writes", "20")
	f.await(t, `^ 1/2 nats-outage .* 0 violations`)
	f.signal(t, syscall.SIGINT)
	if code := f.code(t); code != 130 {
		t.Errorf("exit code %d, want 130", code)
	}
	if !strings.Contains(f.out(), "| nats-outage | ") {
		t.Error("no report of what was seen")
	}
}

func TestVerifyListsItsFaults(t *testing.T) {
	var stdout, stderr strings.Builder
	if code := run(t.Context(), []string{"verify", "--list"}, strings.NewReader(""), &stdout, &stderr); code != 0 {
		t.Errorf("exit code %d: %s", code, stderr.String())
	}
	for _, name := range []string{"nats-outage", "redis-outage", "postgres-failover", "replica-killed-in-write"} {
		if !strings.Contains(stdout.String(), name+" ") {
			t.Errorf("%s is not listed", name)
		}
	}
}
