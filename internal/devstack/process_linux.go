package devstack

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
)

// childAttributes puts a child into its own process group, so that Ctrl-C
// reaches only this process, lets the kernel kill it when this process dies,
// and lowers its rights.
func childAttributes(a account) *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL, Credential: a.credential}
}

// processTable reads /proc. Processes that end meanwhile are left out.
func processTable() ([]member, error) {
	paths, err := filepath.Glob("/proc/[0-9]*/stat")
	if err != nil {
		return nil, err
	}
	table := make([]member, 0, len(paths))
	for _, path := range paths {
		text, err := os.ReadFile(path)
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ESRCH) {
			continue
		}
		if err != nil {
			return nil, err
		}
		m, err := parseStat(string(text))
		if err != nil {
			return nil, fmt.Errorf("%s: %w", path, err)
		}
		table = append(table, m)
	}
	return table, nil
}

// parseStat reads "pid (name) state ppid ... starttime ...", proc(5). The name
// may hold spaces and parentheses.
func parseStat(text string) (member, error) {
	open, end := strings.IndexByte(text, '('), strings.LastIndexByte(text, ')')
	if open < 0 || end < open {
		return member{}, fmt.Errorf("no process name in %q", text)
	}
	fields := strings.Fields(text[end+1:])
	if len(fields) < 20 {
		return member{}, fmt.Errorf("%d fields after the process name in %q, want 20 or more", len(fields), text)
	}
	pid, err := strconv.Atoi(strings.TrimSpace(text[:open]))
	if err != nil {
		return member{}, err
	}
	parent, err := strconv.Atoi(fields[1])
	if err != nil {
		return member{}, err
	}
	return member{pid: pid, parent: parent, state: fields[0][0], born: fields[19]}, nil
}
