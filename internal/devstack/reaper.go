package devstack

import (
	"bufio"
	_ "embed"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"
)

//go:embed reaper.sh
var reaperScript string

// reaperLimit bounds the wait for the reaper after the stack has ended in order;
// it then finds nothing to do, but looks at every process of the machine, which
// takes seconds where many processes wait for few processors.
const reaperLimit = 30 * time.Second

// reaper is the shell process that cleans up after this process has died.
type reaper struct {
	cmd *exec.Cmd
	// pipe is the writing end of the reaper's standard input. Only this process
	// holds it (Go opens it close-on-exec), so it closes when this process ends.
	pipe io.Closer
}

// startReaper starts the reaper in a session of its own, so that no signal for
// the terminal, and none for this process's group, reaches it. It returns when the
// reaper can be relied on.
func startReaper(s *spawner, folder string, executables []string) (*reaper, error) {
	// A file, and not an argument of sh, so that lists of processes stay readable.
	script := filepath.Join(folder, "reaper.sh")
	if err := os.WriteFile(script, []byte(reaperScript), 0o600); err != nil {
		return nil, fmt.Errorf("devstack: reaper: %w", err)
	}
	input, pipe, err := os.Pipe()
	if err != nil {
		return nil, fmt.Errorf("devstack: reaper: %w", err)
	}
	cmd := exec.Command("/bin/sh", append([]string{script, folder}, executables...)...)
	cmd.Dir = "/"
	cmd.Env = childEnvironment()
	cmd.Stdin = input
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, fmt.Errorf("devstack: reaper: %w", errors.Join(err, input.Close(), pipe.Close()))
	}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := errors.Join(s.start(cmd), input.Close()); err != nil {
		return nil, fmt.Errorf("devstack: reaper: %w", errors.Join(err, pipe.Close()))
	}
	r := &reaper{cmd: cmd, pipe: pipe}
	if line, err := bufio.NewReader(out).ReadString('\n'); line != "ready\n" {
		return nil, fmt.Errorf("devstack: reaper: it said %q instead of ready: %w", line, errors.Join(err, r.close()))
	}
	return r, nil
}

// close lets the reaper do its work and end.
func (r *reaper) close() error {
	overdue := time.AfterFunc(reaperLimit, func() { r.cmd.Process.Kill() })
	defer overdue.Stop()
	if err := errors.Join(r.pipe.Close(), r.cmd.Wait()); err != nil {
		return fmt.Errorf("reaper: %w", err)
	}
	return nil
}
