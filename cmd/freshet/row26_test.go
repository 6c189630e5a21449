package main

import (
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/redis/rueidis"
	"github.com/spf13/cobra"

	"github.com/freshet-cache/freshet/internal/devstack"
)

// Row 26: the settings for production are documented, and hold. The documented redis.conf is what the servers run with, but
// for the memory; the loads that run at once are bounded by the file also while readers come in a crowd and Redis is
// gone; each class of times to live is that of the file in Redis itself.
func TestRow26ProductionSettings(t *testing.T) {
	t.Parallel()
	stack, dsn := stackFor(t, devstack.Options{Redis: true, Postgres: true})
	client, err := rueidis.NewClient(rueidis.ClientOption{InitAddress: stack.Redis.Addrs(), DisableCache: true})
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	document, err := os.ReadFile("../../docs/configuration.md")
	if err != nil {
		t.Fatal(err)
	}
	conf := regexp.MustCompile("(?s)```conf\n(.*?)```").FindSubmatch(document)
	if conf == nil {
		t.Fatal("docs/configuration.md shows no redis.conf")
	}
	checked := 0
	for line := range strings.Lines(string(conf[1])) {
		name, want, _ := strings.Cut(strings.TrimSpace(line), " ")
		if strings.HasPrefix(name, "#") || name == "" || name == "maxmemory" {
			continue
		}
		for address, one := range client.Nodes() {
			got, err := one.Do(t.Context(), one.B().ConfigGet().Parameter(name).Build()).AsStrMap()
			if err != nil || got[name] != strings.Trim(want, `"`) {
				t.Errorf("%s of %s is %q, %v; docs/configuration.md says %s", name, address, got[name], err, want)
			}
		}
		checked++
	}
	if checked < 5 {
		t.Errorf("docs/configuration.md shows %d settings of Redis", checked)
	}

	file := filepath.Join(t.TempDir(), "freshet.yaml")
	if err := os.WriteFile(file, fmt.Appendf(nil, `app: production
listen: "127.0.0.1:0"
admin: {listen: "127.0.0.1:0"}
postgres: {dsn: %q, max_conns: 2, queue: 1000}
redis:
  addrs: [%s]
  timeout: 1s
caches:
  product: {ttl: 5m, negative_ttl: 1m, refresh: {ahead: 0}}
  product/page: {ttl: 1h}
  category: {ttl: 24h}
`, dsn, strings.Join(stack.Redis.Addrs(), ", ")), 0o600); err != nil {
		t.Fatal(err)
	}
	s := serveWith(t, file)
	s.until("Redis is connected", s.connected)
	for _, path := range []string{"/products/150", "/products/100000", "/products?category=3", "/categories/1"} {
		if code := get(t, s.api+path); code != http.StatusOK && path != "/products/100000" {
			t.Fatalf("%s: %d", path, code)
		}
	}
	for _, class := range []struct {
		pattern string
		ttl     time.Duration
	}{
		{"production:*{product:150}:detail", 5 * time.Minute},
		{"production:*{product:100000}:detail", time.Minute},
		{"production:*{product[?]*}:page", time.Hour},
		{"production:*{category:1}:detail", 24 * time.Hour},
	} {
		s.until(class.pattern+" is in Redis with its time to live", func() bool {
			left := keep(t, client, class.pattern)
			return left > class.ttl*8/10 && left <= class.ttl*12/10
		})
	}

	if err := stack.Redis.KillAll(); err != nil {
		t.Fatal(err)
	}
	var crowd sync.WaitGroup
	for id := range 60 {
		crowd.Go(func() {
			resp, err := http.Get(fmt.Sprintf("%s/products?category=%d&limit=%d", s.api, id%6+1, id+1))
			if err != nil {
				t.Error(err)
				return
			}
			resp.Body.Close()
			if resp.StatusCode != http.StatusOK {
				t.Errorf("in a crowd: %d", resp.StatusCode)
			}
		})
	}
	crowd.Wait()
	if source := s.stats().Source; source.Places != 2 || source.Peak > 2 || source.Refused != 0 {
		t.Errorf("the loads: %+v; want up to 2 at once, and none refused", source)
	}
}

// keep is the longest time that Redis keeps a key of the pattern.
func keep(t *testing.T, client rueidis.Client, pattern string) (longest time.Duration) {
	t.Helper()
	for _, one := range client.Nodes() {
		for cursor := uint64(0); ; {
			page, err := one.Do(t.Context(), one.B().Scan().Cursor(cursor).Match(pattern).Count(1000).Build()).AsScanEntry()
			if err != nil {
				t.Fatal(err)
			}
			for _, key := range page.Elements {
				left, err := client.Do(t.Context(), client.B().Pttl().Key(key).Build()).AsInt64()
				if err != nil {
					t.Fatal(err)
				}
				longest = max(longest, time.Duration(left)*time.Millisecond)
			}
			if cursor = page.Cursor; cursor == 0 {
				break
			}
		}
	}
	return longest
}

// The table of keys in docs/configuration.md is the one that the keys make.
func TestConfigurationDocument(t *testing.T) {
	var table strings.Builder
	if err := configure(&cobra.Command{}).settings.PrintTable(&table); err != nil {
		t.Fatal(err)
	}
	document, err := os.ReadFile("../../docs/configuration.md")
	if err != nil {
		t.Fatal(err)
	}
	head := strings.SplitAfter(table.String(), "\n")[0]
	_, rest, _ := strings.Cut(string(document), head)
	shown, _, _ := strings.Cut(head+rest, "\n\n")
	if strings.TrimRight(shown, "\n")+"\n" != table.String() {
		t.Errorf("docs/configuration.md has another table than the keys, which make this one:\n%s", table.String())
	}
}
