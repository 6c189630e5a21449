package devstack

import (
	"errors"
	"fmt"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strconv"
	"strings"
)

// The oldest versions that do: Redis 6 has every cluster command and setting
// used here, Postgres 13 has xid8 and pg_current_snapshot.
const (
	oldestRedis    = 6
	oldestPostgres = 13
)

// postgresFolders are where packages put the Postgres programs without putting
// them into PATH: Debian and Ubuntu, the Postgres project's packages for Red Hat,
// Homebrew on Apple and on Intel processors.
var postgresFolders = []string{
	"/usr/lib/postgresql/*/bin",
	"/usr/pgsql-*/bin",
	"/opt/homebrew/opt/postgresql*/bin",
	"/usr/local/opt/postgresql*/bin",
}

// MissingError says that programs are not installed, and how to install them.
type MissingError struct {
	Programs []string // what is missing, such as "redis-server 6 or newer"
	Install  string   // the command that installs it on this system
}

func (e *MissingError) Error() string {
	return fmt.Sprintf("devstack: not installed: %s; install with: %s", strings.Join(e.Programs, ", "), e.Install)
}

// programs are the servers' programs on this machine; the parts that are not
// asked for are empty.
type programs struct {
	redis    redisProgram
	postgres postgresProgram
}

type redisProgram struct {
	server string // path
	major  int    // version
}

type postgresProgram struct {
	server, initdb string // paths
	basebackup     string // path, where it would be: a standby needs it
}

// findPrograms finds what o needs, or says everything that is missing at once.
func findPrograms(o Options) (programs, error) {
	var found programs
	var missing, apt, brew []string
	var err error
	if o.Redis {
		if found.redis, err = findRedis(); err != nil {
			missing = append(missing, fmt.Sprintf("redis-server %d or newer (%v)", oldestRedis, err))
			apt, brew = append(apt, "redis-server"), append(brew, "redis")
		}
	}
	if o.Postgres {
		if found.postgres, err = findPostgres(postgresFolders); err != nil {
			missing = append(missing, fmt.Sprintf("postgres and initdb %d or newer (%v)", oldestPostgres, err))
			apt, brew = append(apt, "postgresql"), append(brew, "postgresql@16")
		}
	}
	if missing == nil {
		return found, nil
	}
	e := &MissingError{Programs: missing, Install: "apt-get install " + strings.Join(apt, " ") + " (or your system's package manager)"}
	if runtime.GOOS == "darwin" {
		e.Install = "brew install " + strings.Join(brew, " ")
	}
	return programs{}, e
}

func findRedis() (redisProgram, error) {
	path, err := exec.LookPath("redis-server")
	if err != nil {
		return redisProgram{}, err
	}
	if path, err = filepath.Abs(path); err != nil {
		return redisProgram{}, err
	}
	major, err := version(path, `v=(\d+)`)
	if err != nil {
		return redisProgram{}, err
	}
	if major < oldestRedis {
		return redisProgram{}, fmt.Errorf("%s is version %d", path, major)
	}
	return redisProgram{server: path, major: major}, nil
}

// findPostgres prefers the newest version in the folders of packages over PATH,
// which on Debian holds wrappers for the system's own cluster.
func findPostgres(folders []string) (postgresProgram, error) {
	var newest int
	var found postgresProgram
	var errs []error
	try := func(folder string) {
		p := postgresProgram{server: filepath.Join(folder, "postgres"), initdb: filepath.Join(folder, "initdb"), basebackup: filepath.Join(folder, "pg_basebackup")}
		if _, err := exec.LookPath(p.initdb); err != nil {
			return // a package with the client programs only
		}
		major, err := version(p.server, `(\d+)`)
		switch {
		case err != nil:
			errs = append(errs, err)
		case major < oldestPostgres:
			errs = append(errs, fmt.Errorf("%s is version %d", p.server, major))
		case major > newest:
			newest, found = major, p
		}
	}
	for _, pattern := range folders {
		matches, err := filepath.Glob(pattern)
		if err != nil {
			return postgresProgram{}, err
		}
		for _, folder := range matches {
			try(folder)
		}
	}
	if path, err := exec.LookPath("initdb"); err != nil {
		errs = append(errs, err)
	} else if path, err = filepath.Abs(path); err == nil && newest == 0 {
		try(filepath.Dir(path))
	}
	if newest == 0 {
		return postgresProgram{}, errors.Join(errs...)
	}
	return found, nil
}

// version runs the program with --version and returns the number that the
// pattern's group finds first in what it prints.
func version(path, pattern string) (int, error) {
	out, err := exec.Command(path, "--version").Output()
	if err != nil {
		return 0, fmt.Errorf("%s --version: %w", path, err)
	}
	match := regexp.MustCompile(pattern).FindSubmatch(out)
	if match == nil {
		return 0, fmt.Errorf("%s --version prints %q, which holds no version", path, out)
	}
	return strconv.Atoi(string(match[1]))
}

// executables returns the files that the stack's processes run, as the kernel
// shows them.
func (p programs) executables() []string {
	var paths []string
	for _, path := range []string{p.redis.server, p.postgres.server, p.postgres.initdb, p.postgres.basebackup} {
		if path == "" {
			continue
		}
		if resolved, err := filepath.EvalSymlinks(path); err == nil {
			path = resolved
		}
		paths = append(paths, path)
	}
	return paths
}
