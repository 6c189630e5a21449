//go:build unix && !linux

package devstack

import (
	"fmt"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
)

// childAttributes puts a child into its own process group, so that Ctrl-C
// reaches only this process, and lowers its rights. There is no parent death
// signal here: when this process dies, the reaper does the work.
func childAttributes(a account) *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Setpgid: true, Credential: a.credential}
}

// processTable asks ps, whose listed options are in POSIX except lstart, which
// every BSD has.
func processTable() ([]member, error) {
	out, err := exec.Command("/bin/ps", "-A", "-o", "pid=,ppid=,state=,lstart=").Output()
	if err != nil {
		return nil, fmt.Errorf("ps: %w", err)
	}
	var table []member
	for line := range strings.Lines(string(out)) {
		fields := strings.Fields(line)
		if len(fields) < 4 {
			continue
		}
		pid, err := strconv.Atoi(fields[0])
		if err != nil {
			return nil, fmt.Errorf("ps: %w", err)
		}
		parent, err := strconv.Atoi(fields[1])
		if err != nil {
			return nil, fmt.Errorf("ps: %w", err)
		}
		table = append(table, member{pid: pid, parent: parent, state: fields[2][0], born: strings.Join(fields[3:], " ")})
	}
	return table, nil
}
