package main

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"log/slog"
	"math/big"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/freshet-cache/freshet/internal/devstack"
	"github.com/freshet-cache/freshet/internal/replica"
	"github.com/freshet-cache/freshet/node"
	"github.com/freshet-cache/freshet/node/admin"
)

// overseen are two replicas of the shop on all servers, for commands that look at them.
type overseen struct {
	t        *testing.T
	stack    *devstack.Stack
	dsn      string
	replicas []*replica.Replica
	token    string // path of the file
}

func oversee(t *testing.T) *overseen {
	t.Helper()
	stack, dsn := stackFor(t, devstack.Options{})
	o := &overseen{t: t, stack: stack, dsn: dsn, token: filepath.Join(t.TempDir(), "token")}
	if err := os.WriteFile(o.token, []byte(strings.Repeat("secret-", 6)), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, id := range []string{"a", "b"} {
		r, err := replica.Listen(t.Context(), replica.Config{
			Node: node.Config{
				App: "shop", ID: id, MaxStale: time.Minute, Postgres: node.PostgresConfig{DSN: dsn},
				Redis: node.RedisConfig{Addrs: stack.Redis.Addrs()}, NATS: node.NATSConfig{URLs: []string{stack.NATS.URL()}},
			},
			Listen: "127.0.0.1:0", Admin: "127.0.0.1:0", AdminTokenFile: o.token, Logger: slog.New(slog.DiscardHandler),
		})
		if err != nil {
			t.Fatal(err)
		}
		ctx, stop := context.WithCancel(context.WithoutCancel(t.Context()))
		ended := make(chan error, 1)
		go func() { ended <- r.Run(ctx) }()
		t.Cleanup(func() {
			stop()
			if err := <-ended; err != nil {
				t.Errorf("replica %s: %v", id, err)
			}
		})
		o.replicas = append(o.replicas, r)
	}
	o.until("both replicas know both", func() bool {
		var m admin.Members
		code, out, _ := o.run("members", "--json")
		return code == 0 && json.Unmarshal([]byte(out), &m) == nil && len(m.Replicas) == 2 && m.Replicas[0].Members == 2 && m.Replicas[1].Members == 2
	})
	return o
}

// until waits for something to come true.
func (o *overseen) until(what string, holds func() bool) {
	o.t.Helper()
	limit := time.Now().Add(30 * time.Second)
	for tick := time.NewTicker(20 * time.Millisecond); ; <-tick.C {
		if holds() {
			tick.Stop()
			return
		}
		if time.Now().After(limit) {
			o.t.Fatalf("not within 30 s: %s", what)
		}
	}
}

// run is the program, asking the first replica.
func (o *overseen) run(args ...string) (code int, stdout, stderr string) {
	return runAt(o.t.Context(), o.t, "http://"+o.replicas[0].Admin(), args...)
}

func runAt(ctx context.Context, t *testing.T, url string, args ...string) (code int, stdout, stderr string) {
	t.Helper()
	var out, err strings.Builder
	code = run(ctx, append(args, "--admin-url", url), strings.NewReader(""), &out, &err)
	return code, out.String(), err.String()
}

// shows fails the test unless the command, which is split at spaces, succeeds and prints all of these.
func (o *overseen) shows(command string, want ...string) string {
	o.t.Helper()
	code, out, stderr := o.run(strings.Fields(command)...)
	if code != 0 {
		o.t.Errorf("freshet %s: exit code %d: %s", command, code, stderr)
	}
	for _, text := range want {
		if !strings.Contains(out, text) {
			o.t.Errorf("freshet %s: %q is not in\n%s", command, text, out)
		}
	}
	return out
}

// comes waits until the command prints all of these.
func (o *overseen) comes(command string, want ...string) {
	o.t.Helper()
	o.until("freshet "+command+" prints "+strings.Join(want, ", "), func() bool {
		_, out, _ := o.run(strings.Fields(command)...)
		return !slices.ContainsFunc(want, func(text string) bool { return !strings.Contains(out, text) })
	})
}

// told is what a command prints with --json.
func told[T any](o *overseen, command string) T {
	o.t.Helper()
	var v T
	if text := o.shows(command + " --json"); json.Unmarshal([]byte(text), &v) != nil {
		o.t.Errorf("freshet %s --json: %s", command, text)
	}
	return v
}

// Every command that only looks, on two replicas, before and after a Redis primary has died.
func TestSeeing(t *testing.T) {
	o := oversee(t)
	for i := range 20 {
		for _, r := range o.replicas {
			for range 2 {
				if code := get(t, fmt.Sprintf("http://%s/products/%d", r.API(), i+1)); code != 200 {
					t.Fatalf("product %d: %d", i+1, code)
				}
			}
		}
	}

	o.comes("members", "REPLICA", "a *", "b ", "ok", "1s", o.replicas[1].API())
	o.shows("stats", "a        product", "b        product", "detail", " of 64 MiB")
	if stats := told[[]node.Answer[node.Stats]](o, "stats"); len(stats) != 2 || stats[1].Answer == nil || stats[1].Answer.ID != "b" {
		t.Errorf("stats --json: %+v", stats)
	}
	o.shows("summary", "2 of 2 replicas", "product    detail")
	if s := told[admin.Summed](o, "summary --one"); s.Sum.Replicas != 1 {
		t.Errorf("summary --one: %+v", s)
	}
	if code, _, stderr := o.run("summary", "--reset"); code != exitFailed || !strings.Contains(stderr, "Unauthorized") {
		t.Errorf("a reset without a token: %d, %s", code, stderr)
	}
	o.shows("summary --reset --admin-token-file "+o.token, "product    detail")
	for _, v := range told[admin.Summed](o, "summary").Sum.Namespaces {
		if v.Reads > 5 {
			t.Errorf("after the reset: %+v", v)
		}
	}
	o.shows("namespaces", "product", "entity", "query", "1.1", "json s2", "behind", "64 MiB")
	if caches := told[[]node.CacheDescription](o, "namespaces"); len(caches) < 3 {
		t.Errorf("namespaces --json: %+v", caches)
	}
	o.shows("watches", "products", "none", "ago")
	if w := told[admin.Watches](o, "watches"); len(w.Tables) == 0 || len(w.Replicas) != 2 {
		t.Errorf("watches --json: %+v", w)
	}
	o.shows("postgres", "primary", "freshet-log", "freshet-shop", "log of changes", "schema version", "horizon")
	if p := told[node.PostgresSurvey](o, "postgres"); !p.Answers || !p.Primary {
		t.Errorf("postgres --json: %+v", p)
	}
	o.shows("shards", "a        127.0.0.1:", "b        127.0.0.1:", "0-5460", "closed")
	o.shows("shards --one", "a        127.0.0.1:", "0-5460", "closed")
	o.shows("redis", "cluster state ok, 16384 of 16384", "allkeys-lru", "256 MiB", "replicas: 1", "up", "ok")

	// A poll may be late on a busy machine, and then an entry is not FRESH.
	o.comes("explain product 7", "product 7 (detail) is FRESH from memory on a, b.", "a: FRESH: ", "b        FRESH", "loaded ", "closed; owner ",
		"key shop:v1.1:{product:7}:detail, slot ", "What to do:\n  - Nothing.")
	slot := uint16(0)
	for _, a := range told[[]node.Answer[node.Explanation]](o, "explain product 7") {
		if a.Answer == nil || a.Answer.L1 == nil || a.Answer.L1.Snapshot == "" {
			t.Fatalf("explain --json: %+v", a)
		}
		slot = a.Answer.Slot
	}
	o.shows("explain product category=1&limit=3 --view page --one", "(page) is not answered from memory on a.", "nothing")
	o.comes("explain category ? --view page", "category ? (page) is FRESH from memory on a, b.")
	for command, want := range map[string]string{"explain nothing 7": "Not found: ", "explain product 7 --view none": "want one of "} {
		if code, _, stderr := o.run(strings.Fields(command)...); code != exitFailed || !strings.Contains(stderr, want) {
			t.Errorf("freshet %s: %d, %s", command, code, stderr)
		}
	}

	primary, err := o.stack.Redis.Primary(slot)
	if err != nil {
		t.Fatal(err)
	}
	if err := primary.Kill(); err != nil {
		t.Fatal(err)
	}
	o.until("the dead server is shown", func() bool {
		_, out, _ := o.run("redis")
		return strings.Contains(out, "no answer: ") && strings.Contains(out, primary.Addr())
	})
	o.until("the shard is out, and explain says so, or another server has taken it over", func() bool {
		_, out, _ := o.run("explain", "product", "7")
		return strings.Contains(out, "Shard "+primary.Addr()+" is out") || !strings.Contains(out, "shard "+primary.Addr())
	})
	o.comes("explain product 7", "is FRESH from memory on a, b.") // L1 needs no Redis
	if r := told[node.RedisSurvey](o, "redis"); len(r.Servers) != 6 {
		t.Errorf("redis --json: %+v", r)
	}
}

func TestTop(t *testing.T) {
	o := oversee(t)
	ctx, cancel := context.WithCancelCause(t.Context())
	reading := make(chan struct{})
	go func() {
		defer close(reading)
		for i := 0; ctx.Err() == nil; i++ {
			get(t, fmt.Sprintf("http://%s/products/%d", o.replicas[i%2].API(), i%20+1))
		}
	}()
	out := o.shows("top --every 300ms --count 2", "REPLICA", "READS/S", "BEHIND", "closed on all 2", "0-5460", "NAMESPACE", "all ", "product")
	if n := strings.Count(out, "REPLICA"); n != 2 {
		t.Errorf("%d blocks, want 2:\n%s", n, out)
	}
	var block topBlock
	text := o.shows("top --every 300ms --count 1 --json")
	if err := json.Unmarshal([]byte(text), &block); err != nil || len(block.Replicas) != 2 || len(block.Shards) != 3 || len(block.Namespaces) < 3 {
		t.Fatalf("%v in %s", err, text)
	}
	for _, r := range append(block.Replicas, block.Total) {
		if !r.Known || r.Reads <= 0 || r.Fresh <= 0 || r.L1 <= 0 || r.L1Fill <= 0 || r.Behind <= 0 || r.Places == 0 {
			t.Errorf("%+v", r)
		}
	}
	o.shows("top --every 100ms --for 250ms", "REPLICA")

	// Ctrl-C is the way to end it, and no failure.
	interrupted, interrupt := context.WithCancelCause(t.Context())
	time.AfterFunc(300*time.Millisecond, func() { interrupt(signalError{syscall.SIGINT}) })
	if code, _, stderr := runAt(interrupted, t, "http://"+o.replicas[0].Admin(), "top", "--every", "100ms"); code != 0 || stderr != "" {
		t.Errorf("after Ctrl-C: %d, %s", code, stderr)
	}
	cancel(nil)
	<-reading
}

// Rates are differences; a replica that was started anew is counted from its start, and one that was not there before
// has none.
func TestTopRates(t *testing.T) {
	began := time.Now()
	stats := func(id string, boot, reads, loads uint64) node.Answer[node.Stats] {
		return node.Answer[node.Stats]{Replica: id, Answer: &node.Stats{
			ID: id, Boot: boot, Budget: 1, PollAge: 0.1,
			Shards:     []node.ShardStats{{Name: "s1", State: "closed"}, {Name: "s2", State: map[string]string{"a": "open", "b": "half-open", "c": "closed"}[id]}},
			Namespaces: []node.NamespaceStats{{Namespace: "n", View: "v", Reads: reads, L1Hits: reads / 2, Fresh: reads, Loads: loads, L1Bytes: 10, L1MaxBytes: 40}},
		}}
	}
	rates := topRates{}
	first := rates.next([]node.Answer[node.Stats]{stats("a", 1, 1000, 100), stats("b", 1, 1000, 100)}, began)
	if first.Replicas[0].Known || first.Total.Reads != 0 || !strings.Contains(strings.Join(first.lines(), "\n"), "a        -") {
		t.Errorf("the first reading: %+v", first)
	}
	silent := node.Answer[node.Stats]{Replica: "d", Error: "gone"}
	second := rates.next([]node.Answer[node.Stats]{stats("a", 1, 1100, 110), stats("b", 2, 40, 4), stats("c", 1, 500, 5), silent}, began.Add(2*time.Second))
	a, b, c := second.Replicas[0], second.Replicas[1], second.Replicas[2]
	if !a.Known || a.Reads != 50 || a.L1 != 25 || a.Loads != 5 || a.L1Fill != 0.25 {
		t.Errorf("a went on: %+v", a)
	}
	if !b.Known || b.Reads != 20 || b.Loads != 2 {
		t.Errorf("b was started anew: %+v", b)
	}
	if c.Known || c.Reads != 0 {
		t.Errorf("c is new: %+v", c)
	}
	if second.Total.Reads != 70 || second.Namespaces[0].Reads != 70 || second.Namespaces[0].L1Fill != 0.25 {
		t.Errorf("all: %+v, %+v", second.Total, second.Namespaces)
	}
	text := strings.Join(second.lines(), "\n")
	for _, want := range []string{"OPEN on a; half-open on b", "closed on all 3", "no answer: gone", "100ms"} {
		if !strings.Contains(text, want) {
			t.Errorf("%q is not in\n%s", want, text)
		}
	}
	// After a reading in which it was silent, the rate is over the whole time.
	rates.next([]node.Answer[node.Stats]{{Replica: "a", Error: "silent"}}, began.Add(3*time.Second))
	if r := rates.next([]node.Answer[node.Stats]{stats("a", 1, 1300, 110)}, began.Add(6*time.Second)).Replicas[0]; r.Reads != 50 {
		t.Errorf("a after a silence: %+v", r)
	}
}

// The flags for https: an authority of one's own, and a client certificate in place of the token.
func TestOperatorTLS(t *testing.T) {
	dir := t.TempDir()
	write := func(name, kind string, der []byte) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}, IsCA: true, BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	client, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	api, err := admin.New(admin.Config{ClientCertificates: true, Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	server := httptest.NewUnstartedServer(api)
	server.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelError)
	server.TLS = &tls.Config{ClientAuth: tls.VerifyClientCertIfGiven, ClientCAs: x509.NewCertPool()}
	server.TLS.ClientCAs.AddCert(client)
	server.StartTLS()
	defer server.Close()
	ca, cert, keyFile := write("ca", "CERTIFICATE", server.Certificate().Raw), write("cert", "CERTIFICATE", der), write("key", "PRIVATE KEY", keyDER)
	for _, c := range []struct {
		args []string
		code int
		want string
	}{
		{[]string{"members"}, exitFailed, "certificate"},
		{[]string{"members", "--admin-ca", ca}, exitFailed, "Starting"}, // trusted; there is no node
		{[]string{"summary", "--reset", "--admin-ca", ca}, exitFailed, "Unauthorized"},
		{[]string{"summary", "--reset", "--admin-ca", ca, "--admin-cert", cert, "--admin-key", keyFile}, exitFailed, "Starting"},
		{[]string{"members", "--admin-ca", keyFile}, exitUsage, "--admin-ca: "},
		{[]string{"members", "--admin-ca", dir + "/none", "--admin-key", keyFile}, exitUsage, "want both or neither"},
		{[]string{"members", "--admin-cert", keyFile, "--admin-key", keyFile}, exitUsage, "--admin-cert, --admin-key: "},
	} {
		code, _, stderr := runAt(t.Context(), t, server.URL, c.args...)
		if code != c.code || !strings.Contains(stderr, c.want) {
			t.Errorf("freshet %s: %d, %s; want %d, %q", strings.Join(c.args, " "), code, stderr, c.code, c.want)
		}
	}
	if code, _, stderr := runAt(t.Context(), t, "http://127.0.0.1:1", "members", "--admin-ca", ca); code != exitUsage || !strings.Contains(stderr, "are for https") {
		t.Errorf("a certificate for http: %d, %s", code, stderr)
	}
}
