package nodeconfig_test

import (
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/freshet-cache/freshet/node"
	"github.com/freshet-cache/freshet/node/nodeconfig"
)

// write makes a file of the text and returns its path.
func write(t *testing.T, name, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// settings are those of a node, with a flag.
func settings(c *node.Config) *nodeconfig.Settings {
	s := nodeconfig.New("SHOP_")
	s.Node(c)
	s.Flag("budget", "budget")
	s.Flag("postgres.dsn", "postgres")
	return s
}

const right = "app: shop\npostgres: {dsn: 'host=db dbname=shop'}\n"

// Every kind of problem, as an operator sees it: place, excerpt, what is wrong, what would be right.
func TestProblems(t *testing.T) {
	for _, c := range []struct {
		name, file string
		layers     nodeconfig.Layers
		want       string
	}{
		{name: "nothing", want: `
--postgres: is empty; want the URL of the primary
app: cluster: app "" is not allowed: want a lower-case letter, then up to 31 of a-z 0-9 -`},
		{name: "unknown keys", file: right + "redis:\n  timout: 20ms\nbudgets: 1s\n", want: `
FILE:4:3: redis.timout: unknown key; want one of addrs, username, password, password_file, tls, timeout, lease_wait, max_value, clean_rate
     4 |   timout: ...
       |   ^
FILE:5:1: budgets: unknown key; want one of app, id, address, budget, max_stale, postgres, redis, nats, write_behind, verify, caches
     5 | budgets: ...
       | ^`},
		{name: "values", file: right + `budget: 5 minutes
max_stale: -1s
redis:
  timeout: 20
  max_value: 64MB
  tls: {enabled: yes}
  addrs: [r1:6379, r2]
write_behind:
  batch: "1.5"
  flushers: some
`, want: `
FILE:3:9: budget: "5 minutes"; want a duration such as 250ms or 1h30m, 1ms to 24h
     3 | budget: 5 minutes
       |         ^
FILE:4:12: max_stale: "-1s"; want a duration such as 250ms or 1h30m, 0s to 24h
     4 | max_stale: -1s
       |            ^
FILE:6:12: redis.timeout: "20"; want a duration such as 250ms or 1h30m, 1ms to 1m
     6 |   timeout: 20
       |            ^
FILE:7:14: redis.max_value: "64MB"; want a number of bytes such as 4096, 64KiB or 64MiB, 1B to 512MiB
     7 |   max_value: 64MB
       |              ^
FILE:8:18: redis.tls.enabled: "yes"; want true or false
     8 |         enabled: yes
       |                  ^
FILE:9:3: redis.addrs: address no. 2 is not host:port
     9 |   addrs: ...
       |   ^
FILE:11:10: write_behind.batch: "1.5"; want a whole number, 1 to 10000
    11 |   batch: "1.5"
       |          ^
FILE:12:13: write_behind.flushers: "some"; want a whole number, 1 to 16, or none
    12 |   flushers: some
       |             ^`},
		{name: "shapes", file: right + `budget:
max_stale: [1s]
redis: r1:6379
nats:
  urls: {a: b}
id: &x a
address: *x
write_behind:
  batch: !!int 3
`, want: `
FILE:3:1: budget: has no value; leave the key out for the default
     3 | budget: ...
       | ^
FILE:4:1: max_stale: a list; want a duration
     4 | max_stale: ...
       | ^
FILE:5:8: redis: no keys; want addrs, username, password, password_file, tls, timeout, lease_wait, max_value, clean_rate, each followed by a colon
FILE:7:3: nats.urls: has keys below it; want a list
     7 |   urls: ...
       |   ^
FILE:8:1: id: anchors, aliases and tags are not known here; want the value itself
     8 | id: ...
       | ^
FILE:9:1: address: anchors, aliases and tags are not known here; want the value itself
     9 | address: ...
       | ^
FILE:11:3: write_behind.batch: anchors, aliases and tags are not known here; want the value itself
    11 |   batch: ...
       |   ^`},
		{name: "lists", file: right + "redis: {addrs: [r1:6379]}\nnats:\n  urls: ['a,b']\n", want: `
FILE:3:9: redis.addrs: no. 1 of the list is no text without commas; within braces, one with a colon wants quotes
     3 |         addrs: ...
       |         ^
FILE:5:3: nats.urls: no. 1 of the list is no text without commas; within braces, one with a colon wants quotes
     5 |   urls: ...
       |   ^`},
		{name: "given twice", file: right + "budget: 1s\nredis:\n  timeout: 1s\n  timeout: 2s\nbudget: 2s\n", want: `
FILE:6:3: redis.timeout: given twice: here and by FILE:5
     6 |   timeout: ...
       |   ^
FILE:7:1: budget: given twice: here and by FILE:3
     7 | budget: ...
       | ^`},
		{name: "syntax", file: "app: shop\n  budget: 1s\n", want: `
FILE:1:6: wrong syntax: mapping value is not allowed in this context
     1 | app: ...
       |      ^
--postgres: is empty; want the URL of the primary
app: cluster: app "" is not allowed: want a lower-case letter, then up to 31 of a-z 0-9 -`},
		{name: "what is not there is missed once", file: "app: shop\npostgres: {dsn_file: /nowhere/dsn}\n", want: `
FILE:2:22: postgres.dsn_file: open /nowhere/dsn: no such file or directory
     2 |            dsn_file: /nowhere/dsn
       |                      ^`},
		{name: "secrets", file: "app: shop\npostgres:\n  dsn: postgres://u:hunter2@h:port/db\n", want: `
FILE:3:3: postgres.dsn: invalid port ":port" after host; want a URL or key=value text as of lib/pq
     3 |   dsn: ...
       |   ^`},
		{name: "two documents", file: right + "---\nbudget: 1s\n", want: `
FILE:4:7: a second document; want one`},
		{name: "no keys", file: "shop", layers: nodeconfig.Layers{Set: []string{"app=shop"}, Flags: map[string]string{"postgres": "host=db"}}, want: `
FILE:1:1: no keys; want app, id, address, budget, max_stale, postgres, redis, nats, write_behind, verify, caches, each followed by a colon`},
		{name: "no file", layers: nodeconfig.Layers{File: "/nowhere/shop.yaml", Set: []string{"app=shop", "postgres.dsn=host=db"}}, want: `
/nowhere/shop.yaml:1:1: open /nowhere/shop.yaml: no such file or directory`},
		{name: "caches", file: right + `caches:
  Product:
    ttl: 1h
  product/page:
    ttl: 1ms
    refresh: {ahead: 2}
    warm_up: {limits: 5}
  cart:
    budget: 100ms
    soft_timeout: 8s
  a/b/c: {}
`, want: `
FILE:4:3: caches.Product: no name of a cache; want a namespace, or namespace/view, each a letter a-z, then up to 63 of a-z 0-9 _ . -
     4 |   Product: ...
       |   ^
FILE:7:10: caches.product/page.ttl: "1ms"; want a duration such as 250ms or 1h30m, 10ms to 87600h
     7 |     ttl: 1ms
       |          ^
FILE:8:22: caches.product/page.refresh.ahead: "2"; want a number, 0 to 0.999
     8 |               ahead: 2
       |                      ^
FILE:9:15: caches.product/page.warm_up.limits: unknown key; want one of peers, limit, rate, timeout, every
     9 |               limits: ...
       |               ^
FILE:10:3: caches.cart: SoftTimeout is 8s; want 1ms to 5s, or 0 for the default
    10 |   cart: ...
       |   ^
FILE:10:3: caches.cart: Budget 100ms is not above Config.Postgres.PollInterval 250ms: most reads would wait for a poll; ask for less by Within
    10 |   cart: ...
       |   ^
FILE:13:3: caches.a/b/c: no name of a cache; want a namespace, or namespace/view, each a letter a-z, then up to 63 of a-z 0-9 _ . -
    13 |   a/b/c: ...
       |   ^`},
		{name: "what belongs together", file: right + `postgres: {dsn: 'host=db'}
budget: 300ms
redis:
  username: cache
  tls:
    ca_file: /nowhere/ca.pem
    key_file: /nowhere/key.pem
`, layers: nodeconfig.Layers{Set: []string{"postgres.poll_interval=1s"}}, want: `
FILE:3:1: postgres: given twice: here and by FILE:2
     3 | postgres: ...
       | ^
FILE:4:9: budget: 300ms is not above Postgres.PollInterval 1s: most reads would wait for a poll; ask for less by Within
     4 | budget: 300ms
       |         ^
FILE:6:13: redis.username: is set without a Password
     6 |   username: cache
       |             ^
FILE:8:14: redis.tls.ca_file: open /nowhere/ca.pem: no such file or directory
     8 |     ca_file: /nowhere/ca.pem
       |              ^
FILE:9:15: redis.tls.key_file: given without redis.tls.cert_file
     9 |     key_file: /nowhere/key.pem
       |               ^`},
		{name: "variables", file: right, layers: nodeconfig.Layers{
			Environ: []string{
				"SHOP_BUDGETS=1s", "SHOP_REDIS_TIMEOUT=1", "SHOP_REDIS_LEASE_WAIT=", "SHOP_CACHES__PRODUCT__TTL=x", "SHOP_CACHES__PRODUCT__TLT=1h",
				"SHOP_OTHER=1", "SHOP_PORT_8080_TCP_ADDR=10.0.0.1", "SHOP_SERVICE_HOST=10.0.0.1", "SHOP_API_SERVICE_PORT_HTTP=80", "OTHER_BUDGET=1", "PATH=/bin",
			}, Variables: []string{"SHOP_OTHER"},
		}, want: `
SHOP_BUDGETS: no key has this variable; want SHOP_ and a key in capitals, such as SHOP_APP
SHOP_CACHES__PRODUCT__TLT: no key has this variable; want SHOP_ and a key in capitals, such as SHOP_APP
SHOP_REDIS_TIMEOUT: "1"; want a duration such as 250ms or 1h30m, 1ms to 1m
SHOP_CACHES__PRODUCT__TTL: "x"; want a duration such as 250ms or 1h30m, 10ms to 87600h`},
		{name: "two variables", file: right, layers: nodeconfig.Layers{Environ: []string{"SHOP_POSTGRES=host=a", "SHOP_POSTGRES_DSN=host=b"}}, want: `
SHOP_POSTGRES_DSN: given twice: here and by env SHOP_POSTGRES`},
		{name: "flags", file: right, layers: nodeconfig.Layers{
			Flags: map[string]string{"budget": "1"}, Set: []string{"budget=2s", "redis.timout=1s", "redis.timeout", "caches.X.ttl=1h"},
		}, want: `
--set budget: given twice: here and by flag --budget
--set redis.timout: unknown key
--set: want KEY=VALUE, such as redis.timeout=20ms
--set caches.X.ttl: no name of a cache; want a namespace, or namespace/view, each a letter a-z, then up to 63 of a-z 0-9 _ . -
--budget: "1"; want a duration such as 250ms or 1h30m, 1ms to 24h`},
	} {
		t.Run(c.name, func(t *testing.T) {
			if c.file != "" {
				c.layers.File = write(t, "shop.yaml", c.file)
			}
			err := settings(&node.Config{}).Load(c.layers)
			got := strings.ReplaceAll(fmt.Sprintf("\n%v", err), c.layers.File+":", "FILE:")
			if c.file == "" {
				got = fmt.Sprintf("\n%v", err)
			}
			if got != c.want {
				t.Errorf("got%s\n\nwant%s", got, c.want)
			}
		})
	}
}

// Each kind of value, given by the file, over it by a variable, over that by a flag.
func TestPrecedence(t *testing.T) {
	type holds struct {
		text   string
		list   []string
		d      time.Duration
		n      int
		x      float64
		size   int64
		b      bool
		one    int
		secret string
	}
	load := func(t *testing.T, layers int) (holds, []nodeconfig.Shown) {
		t.Helper()
		var h holds
		s := nodeconfig.New("X_")
		s.Add("a.text", "Doc.", nodeconfig.Text(&h.text).Default("d"))
		s.Add("a.list", "Doc.", nodeconfig.List(&h.list))
		s.Add("a.d", "Doc.", nodeconfig.Duration(&h.d, 0, time.Hour))
		s.Add("a.n", "Doc.", nodeconfig.Int(&h.n, -5, 100))
		s.Add("a.x", "Doc.", nodeconfig.Number(&h.x, 0, 1))
		s.Add("b.size", "Doc.", nodeconfig.Size(&h.size, 1, 1<<40))
		s.Add("b.b", "Doc.", nodeconfig.Bool(&h.b))
		s.Add("b.one", "Doc.", nodeconfig.OneOf(&h.one, []string{"one", "two"}, []int{1, 2}))
		s.Secret("b.secret", "Doc.", &h.secret)
		l := nodeconfig.Layers{}
		if layers > 0 {
			l.File = write(t, "x.yaml", "a:\n  text: 1\n  list: [a, b]\n  d: 1s\n  n: 1\n  x: 0.1\nb: {size: 1KiB, b: true, one: one, secret: s1}\n")
		}
		if layers > 1 {
			l.Environ = []string{"X_A_TEXT=2", "X_A_LIST=c, d", "X_A_D=2s", "X_A_N=2", "X_A_X=0.2", "X_B_SIZE=2MiB", "X_B_B=false", "X_B_ONE=Two", "X_B_SECRET=s2"}
		}
		if layers > 2 {
			l.Set = []string{"a.text=3", "a.list=e", "a.d=3s", "a.n=3", "a.x=0.3", "b.size=3", "b.b=true", "b.one=one", "b.secret=s3"}
		}
		if err := s.Load(l); err != nil {
			t.Fatal(err)
		}
		return h, s.Shown()
	}
	for layers, want := range []holds{
		{},
		{"1", []string{"a", "b"}, time.Second, 1, 0.1, 1024, true, 1, "s1"},
		{"2", []string{"c", "d"}, 2 * time.Second, 2, 0.2, 2 << 20, false, 2, "s2"},
		{"3", []string{"e"}, 3 * time.Second, 3, 0.3, 3, true, 1, "s3"},
	} {
		got, shown := load(t, layers)
		if fmt.Sprint(got) != fmt.Sprint(want) {
			t.Errorf("%d layers: got %+v, want %+v", layers, got, want)
		}
		for _, one := range shown {
			origins := []string{"default", "x.yaml:", "env X_", "flag --set "}
			if one.Key != "b.secret_file" && !strings.Contains(one.Origin, origins[layers]) {
				t.Errorf("%d layers: %s is from %s", layers, one.Key, one.Origin)
			}
		}
	}
}

func TestSecretsFromFiles(t *testing.T) {
	secret := write(t, "secret", "hunter2\n")
	for _, c := range []struct {
		name, file, want, problem string
		environ                   []string
	}{
		{name: "file", file: "redis: {password_file: SECRET}\n", want: "hunter2"},
		{name: "a variable over the file's file", file: "redis: {password_file: SECRET}\n", environ: []string{"SHOP_REDIS_PASSWORD=other"}, want: "other"},
		{name: "a variable's file over the file", file: "redis: {password: other}\n", environ: []string{"SHOP_REDIS_PASSWORD_FILE=" + secret}, want: "hunter2"},
		{name: "both", file: "redis: {password_file: SECRET, password: other}\n", problem: "redis.password_file: given beside redis.password"},
		{name: "missing", file: "redis: {password_file: /nowhere/secret}\n", problem: "open /nowhere/secret"},
		{name: "empty", file: "redis: {password_file: /dev/null}\n", problem: "/dev/null is empty"},
		{name: "endless", file: "redis: {password_file: /dev/zero}\n", problem: "/dev/zero has more than 64KiB"},
	} {
		t.Run(c.name, func(t *testing.T) {
			var config node.Config
			s := settings(&config)
			err := s.Load(nodeconfig.Layers{File: write(t, "shop.yaml", right+strings.ReplaceAll(c.file, "SECRET", secret)), Environ: c.environ})
			if c.problem == "" && (err != nil || config.Redis.Password != c.want) {
				t.Errorf("got %q, %v; want %q", config.Redis.Password, err, c.want)
			}
			if c.problem != "" && (err == nil || !strings.Contains(err.Error(), c.problem)) {
				t.Errorf("got %v, want %s", err, c.problem)
			}
		})
	}
	var config node.Config
	dsn := write(t, "dsn", "postgres://shop:p%20w@db/shop\r\n")
	if err := settings(&config).Load(nodeconfig.Layers{Set: []string{"app=shop", "postgres.dsn_file=" + dsn}}); err != nil || config.Postgres.DSN != "postgres://shop:p%20w@db/shop" {
		t.Errorf("the DSN is %q, %v", config.Postgres.DSN, err)
	}
}

// printed is all that is ever shown of a configuration.
func printed(t *testing.T, s *nodeconfig.Settings, err error) string {
	t.Helper()
	var b strings.Builder
	fmt.Fprintln(&b, err)
	for _, err := range []error{s.PrintYAML(&b), s.PrintJSON(&b), s.PrintDefaults(&b), s.PrintTable(&b)} {
		if err != nil {
			t.Fatal(err)
		}
	}
	return b.String()
}

// However a file with secrets is damaged, no secret is in what is printed of it, nor in the errors; what is no secret is.
func TestNoSecretIsShown(t *testing.T) {
	const secret = "hunter2"
	// What is damaged is what stands around the texts that hold a secret: a part of one may be a host or a user.
	filled := strings.NewReplacer("DSN", "postgres://shop:hunter2@db:5433/shop?sslmode=require&password=hunter2", "PASSWORD", "hunter2",
		"URL1", "nats://user:hunter2@n1:4222", "URL2", "nats://hunter2@n2:4222")
	blank := `app: shop
budget: 2s
postgres:
  dsn: DSN
  max_conns: 8
redis:
  addrs: [r1:6379]
  username: cache
  password: "PASSWORD"
  timeout: 20ms
nats:
  urls:
    - URL1
    - URL2
caches:
  product: {ttl: 1h}
`
	load := func(text string, environ ...string) string {
		s := settings(&node.Config{})
		return printed(t, s, s.Load(nodeconfig.Layers{File: write(t, "shop.yaml", text), Environ: environ}))
	}
	whole := filled.Replace(blank)
	got := load(whole)
	if strings.Contains(got, secret) {
		t.Errorf("a secret is in\n%s", got)
	}
	for _, want := range []string{
		`"host=db port=5433 user=shop dbname=shop sslmode=require password=(hidden)"`, `["nats://(hidden)@n1:4222", "nats://(hidden)@n2:4222"]`,
		`# password: "(hidden)"  # `, "username: cache  # ", "shop.yaml:9",
	} {
		if !strings.Contains(got, want) {
			t.Errorf("%s is not in\n%s", want, got)
		}
	}
	for _, environ := range []string{
		"SHOP_POSTGRES=host=db password='a hunter2", "SHOP_POSTGRES=postgres://u:hunter2@h:port/db", "SHOP_NATS_URLS=nats://u:hunter2@[", "SHOP_PASSWORD=hunter2",
		"SHOP_REDIS_PASSWORD=hunter2", "SHOP_REDIS_ADDRS=redis://:hunter2@r1",
	} {
		if got := load(strings.ReplaceAll(whole, "\"hunter2\"", "x"), environ); strings.Contains(got, secret) {
			t.Errorf("%s: a secret is in\n%s", environ, got)
		}
	}
	seed := rand.Uint64()
	r := rand.New(rand.NewPCG(seed, 0))
	for range 400 {
		from := r.IntN(len(blank))
		damaged := filled.Replace(blank[:from] + []string{"", "\n", "x", "  ", "\"", ": ", "[", "\t"}[r.IntN(8)] + blank[min(from+r.IntN(9), len(blank)):])
		if got := load(damaged); strings.Contains(got, secret) {
			t.Fatalf("seed %d: a secret is in\n%s\nof\n%s", seed, got, damaged)
		}
	}
}

// What is printed, but for secrets, can be loaded and means the same; what defaults prints says nothing, and, uncommented,
// the defaults.
func TestPrintedIsLoaded(t *testing.T) {
	var first, second node.Config
	s := settings(&first)
	text := `app: shop
id: "true"
max_stale: 1m
postgres: {dsn: "host=db", relay_from: off}
redis:
  addrs: ["[::1]:6379", r2:6379]
  max_value: 1025
  tls: {enabled: true, server_name: "a: b #c"}
write_behind: {flushers: none}
caches:
  "a.b": {ttl: 1h30m, refresh: {ahead: 0.5}}
  product/page: {max_stale: none, warm_up: {peers: false}, compress: {algorithm: zstd, above: 4KiB}}
`
	if err := s.Load(nodeconfig.Layers{File: write(t, "shop.yaml", text)}); err != nil {
		t.Fatal(err)
	}
	var b strings.Builder
	if err := s.PrintYAML(&b); err != nil {
		t.Fatal(err)
	}
	again := settings(&second)
	if err := again.Load(nodeconfig.Layers{File: write(t, "again.yaml", b.String()), Flags: map[string]string{"postgres": "host=db"}}); err != nil {
		t.Fatalf("%v\n%s", err, b.String())
	}
	for i, one := range s.Shown() {
		if other := again.Shown()[i]; one.Key != other.Key || one.Value != other.Value {
			t.Errorf("%s %q became %s %q", one.Key, one.Value, other.Key, other.Value)
		}
	}
	if c := second.Caches["a.b"]; c.TTL != 90*time.Minute || c.Refresh == nil || c.Refresh.Ahead != 0.5 || c.Compress != nil || c.WarmUp.Peers != nil {
		t.Errorf("a.b: %+v", c)
	}
	if c := second.Caches["product/page"]; c.MaxStale != -1 || c.Compress.Algorithm != node.Zstd || c.Compress.Above != 4096 || *c.WarmUp.Peers {
		t.Errorf("product/page: %+v", c)
	}
	if second.WriteBehind.Flushers != -1 || second.Postgres.RelayFrom != -1 || second.Redis.MaxValue != 1025 || second.Redis.TLS.ServerName != "a: b #c" || second.ID != "true" {
		t.Errorf("%+v", second)
	}

	b.Reset()
	if err := settings(&node.Config{}).PrintDefaults(&b); err != nil {
		t.Fatal(err)
	}
	needed := nodeconfig.Layers{Set: []string{"app=shop", "postgres.dsn=host=db"}}
	needed.File = write(t, "defaults.yaml", b.String())
	var empty node.Config
	s = settings(&empty)
	if err := s.Load(needed); err != nil {
		t.Fatal(err)
	}
	if given := slices.DeleteFunc(s.Shown(), func(one nodeconfig.Shown) bool { return one.Origin == "default" }); len(given) != 2 {
		t.Errorf("the defaults say %v", given)
	}
	var lines []string
	withValue := regexp.MustCompile(`^ *# [a-z_]+: \S`)
	for line := range strings.Lines(b.String()) {
		if withValue.MatchString(line) {
			line = strings.Replace(line, "# ", "", 1)
		}
		lines = append(lines, line)
	}
	needed.File = write(t, "uncommented.yaml", strings.Join(lines, ""))
	var full node.Config
	if err := settings(&full).Load(needed); err != nil {
		t.Fatalf("the defaults are refused: %v", err)
	}
	if full.Postgres.PollInterval != 250*time.Millisecond || full.WriteBehind.MaxBytes != 64<<20 {
		t.Errorf("%+v", full)
	}
}
