package devstack_test

import (
	"context"
	"database/sql"
	"flag"
	"testing"
	"time"

	"github.com/freshet-cache/freshet/internal/devstack/stacktest"
)

// rounds is how often tests repeat what takes seconds.
var rounds = flag.Int("rounds", 1, "how often slow faults are repeated")

// TestPostgresFailoverLosesTheTail shows that a commit which the standby never
// got is gone, that what came before is not, and that unlogged tables, by which
// Freshet recognises it, are empty. Then the new primary gets a standby in turn.
func TestPostgresFailoverLosesTheTail(t *testing.T) {
	slow(t)
	p := stacktest.Stack().Postgres
	database(t, "failover").Close()
	proxy, err := p.Proxy()
	if err != nil {
		t.Fatal(err)
	}
	defer proxy.Close()
	db, err := sql.Open("postgres", p.DSNVia(proxy.Addr(), "failover"))
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	do := func(statement string) {
		t.Helper()
		if _, err := db.ExecContext(t.Context(), statement); err != nil {
			t.Fatal(err)
		}
	}
	do("create unlogged table u (x int)")
	do("insert into u values (1)")
	if err := p.CutReplication(t.Context()); err == nil {
		t.Error("replication to no standby was cut")
	}
	if _, err := p.Failover(t.Context()); err == nil {
		t.Fatal("a failover to no standby")
	}
	for round := 1; round <= *rounds; round++ {
		began := time.Now()
		for range 2 {
			if err := p.Standby(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
		t.Logf("standby after %v", time.Since(began))
		do("insert into t values (1)")
		if err := p.CutReplication(t.Context()); err != nil {
			t.Fatal(err)
		}
		do("insert into t values (1)")
		if round == 1 {
			if err := p.HealReplication(t.Context()); err != nil {
				t.Fatal(err)
			}
			if err := p.CutReplication(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
		do("insert into t values (2)")
		before := p.DSN()
		report, err := p.Failover(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		t.Logf("killed after %v, serves %v later", report.Killed.Sub(report.Began), report.Serves.Sub(report.Killed))
		if p.DSN() == before {
			t.Error("the DSN did not change")
		}
		if got := rows(t, db); got != round+1 {
			t.Errorf("round %d: %d rows, want %d", round, got, round+1)
		}
		var lost, unlogged int
		if err := db.QueryRowContext(t.Context(), "select (select count(*) from t where x = 2), (select count(*) from u)").Scan(&lost, &unlogged); err != nil {
			t.Fatal(err)
		}
		if lost != 0 || unlogged != 0 {
			t.Errorf("round %d: %d commits that the standby never got, %d unlogged rows; want none", round, lost, unlogged)
		}
	}
	// It is a server as any other.
	if err := p.Kill(); err != nil {
		t.Fatal(err)
	}
	if err := p.Start(context.Background()); err != nil {
		t.Fatal(err)
	}
	if got := rows(t, db); got != *rounds+1 {
		t.Errorf("%d rows after a crash of the new primary, want %d", got, *rounds+1)
	}
}
