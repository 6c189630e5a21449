package main

import (
	"fmt"
	"runtime/debug"
	"strings"

	"github.com/freshet-cache/freshet/internal/verify"
)

// rival is a system under test.
type rival struct {
	name   string // one word
	module string // "" = none: it is this project's own code
	setup  string // how it is configured, in a few words
	open   verify.Open
}

// freshet is what the rivals are compared with.
const freshet = "freshet"

// systems returns Freshet and all rivals, in the order of the report.
func systems() []rival {
	return []rival{
		{freshet, "github.com/freshet-cache/freshet", "as it comes, budget 1 s", verify.Freshet},
		{"cache-aside", "", "GET, SET for a minute, DEL after a write; no L1", open(openPlain)},
		{"rueidisaside", "github.com/redis/rueidis/rueidisaside", "client-side caching, a minute, Del after a write", open(openAside)},
		{"rockscache", "github.com/dtm-labs/rockscache", "StrongConsistency, a minute, TagAsDeleted after a write; no L1", open(openRocks)},
		{"go-redis-cache", "github.com/go-redis/cache/v9", "TinyLFU for 500 ms, Redis for a minute, Delete after a write", open(openGored)},
		{"jetcache-go", "github.com/mgtv-tech/jetcache-go", "FreeCache for a minute, told of changes by syncLocal over Redis, Redis for a minute, Delete after a write", open(openJet)},
	}
}

// version is that of the module as this program was built with it; "" when it has none.
func (r rival) version() string {
	build, ok := debug.ReadBuildInfo()
	if !ok {
		return ""
	}
	for _, m := range build.Deps {
		if m.Path == r.module && m.Replace == nil {
			return m.Version
		}
	}
	return ""
}

// link is where the module's source is; "" when it is here.
func (r rival) link() string {
	if r.version() == "" {
		return ""
	}
	return "https://pkg.go.dev/" + r.module + "@" + r.version()
}

// find is the system of that name.
func find(name string) (rival, error) {
	var names []string
	for _, r := range systems() {
		if r.name == name {
			return r, nil
		}
		names = append(names, r.name)
	}
	return rival{}, fmt.Errorf("%q is no system; there are %s", name, strings.Join(names, ", "))
}
