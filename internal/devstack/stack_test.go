package devstack

import (
	"testing"
	"time"
)

func TestStart(t *testing.T) {
	began := time.Now()
	s, err := Start(t.Context(), Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("started in %v: %s %v %s", time.Since(began), s.Postgres.DSN(), s.Redis.Addrs(), s.NATS.URL())
	began = time.Now()
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	t.Logf("closed in %v", time.Since(began))
}
