package main

import (
	"context"
	"database/sql"
	"fmt"
	"os"
	"regexp"
	"runtime"

	"github.com/redis/rueidis"

	"github.com/freshet-cache/freshet/internal/devstack"
)

// machine is where the numbers were found. What cannot be found out is empty.
type machine struct {
	OS        string `json:"os"`
	CPU       string `json:"cpu"`
	CPUs      int    `json:"cpus"` // that Go uses
	Load      string `json:"load"` // average over 1, 5 and 15 minutes, as the run began
	Go        string `json:"go"`
	Redis     string `json:"redis"`
	Postgres  string `json:"postgres"`
	RaceCheck bool   `json:"race_detector"` // the numbers of such a build mean nothing
}

func (m machine) String() string {
	text := fmt.Sprintf("%s, %d CPUs (%s), load %s, %s, Redis %s, Postgres %s", m.OS, m.CPUs, m.CPU, m.Load, m.Go, m.Redis, m.Postgres)
	if m.RaceCheck {
		text += "\nBuilt with the race detector: the ratios mean nothing."
	}
	return text
}

func describe(ctx context.Context, stack *devstack.Stack) machine {
	return machine{
		OS: runtime.GOOS + "/" + runtime.GOARCH, CPUs: runtime.GOMAXPROCS(0), Go: runtime.Version(),
		CPU:   find("/proc/cpuinfo", `model name\s*: (.+)`),
		Load:  find("/proc/loadavg", `^(\S+ \S+ \S+)`),
		Redis: redisVersion(ctx, stack.Redis.Addrs()[0]), Postgres: postgresVersion(ctx, stack.Postgres.DSN()),
		RaceCheck: raceCheck,
	}
}

// find is what the expression's group matches in a file.
func find(path, expression string) string {
	text, err := os.ReadFile(path)
	if err != nil {
		return ""
	}
	return group(string(text), expression)
}

func group(text, expression string) string {
	if match := regexp.MustCompile(expression).FindStringSubmatch(text); match != nil {
		return match[1]
	}
	return ""
}

func redisVersion(ctx context.Context, address string) string {
	client, err := rueidis.NewClient(rueidis.ClientOption{InitAddress: []string{address}, ForceSingleClient: true, DisableCache: true})
	if err != nil {
		return ""
	}
	defer client.Close()
	text, err := client.Do(ctx, client.B().Info().Section("server").Build()).ToString()
	if err != nil {
		return ""
	}
	return group(text, `redis_version:(\S+)`)
}

func postgresVersion(ctx context.Context, dsn string) (version string) {
	db, err := sql.Open("postgres", dsn)
	if err != nil {
		return ""
	}
	defer db.Close()
	_ = db.QueryRowContext(ctx, `show server_version`).Scan(&version) // unknown is empty
	return version
}
