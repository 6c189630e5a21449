package nodeconfig_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/freshet-cache/freshet/node"
	"github.com/freshet-cache/freshet/node/nodeconfig"
)

// Whatever a file holds, it is read or refused with a place in it.
func FuzzFile(f *testing.F) {
	for _, text := range []string{
		"", right, "a", "- a", "{", "a: [1, {b: c}]\n", "? a\n: b\n", "<<: {a: 1}\n", "&a b: *a\n", "app: |\n  x\n", "---\n...\n", "redis: {tls: {}}\n",
		"caches: {product/page: {ttl: 1h}, 1: 2, [a]: b}\n", "postgres:\n  dsn: >-\n    host=db\n    dbname=x\n", "app: !!str x\n", "\"a\\x00\": 1\n", "%YAML 1.2\n---\na: b\n",
	} {
		f.Add(text)
	}
	path := filepath.Join(f.TempDir(), "x.yaml")
	f.Fuzz(func(t *testing.T, text string) {
		if strings.Contains(text, "_file") {
			return // it would read files of this machine
		}
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		s := settings(&node.Config{})
		err := s.Load(nodeconfig.Layers{File: path})
		if err != nil && err.Error() == "" {
			t.Error("an error without a text")
		}
		printed(t, s, err)
	})
}
