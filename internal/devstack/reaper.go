package devstack

import (
	_ "embed"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"syscall"
	"time"
)

//go:embed reaper.sh
var reaperScript string

// reaperLimit bounds the wait for the reaper after the stack has ended in order;
// it then finds nothing to do.
const reaperLimit = 5 * time.Second

// reaper is the shell process that cleans up after this process has died.
type reaper struct {
	cmd *exec.Cmd
	// pipe is the writing end of the reaper's standard input. Only this process
	// holds it (Go opens it close-on-exec), so it closes when this process ends.
	pipe io.Closer
}

// startReaper starts the reaper in a session of its own, so that no signal for
// the terminal, and none for this process's group, reaches it.
func startReaper(s *spawner, folder string, executables []string) (*reaper, error) {
	input, pipe, err := os.Pipe()
	if err != nil {
		return nil, fmt.Errorf("devstack: reaper: %w", err)
	}
	args := append([]string{"-c", reaperScript, "freshet-reaper", folder}, executables...)
	cmd := exec.Command("/bin/sh", args...)
	cmd.Dir = "/"
	cmd.Env = childEnvironment()
	cmd.Stdin = input
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := errors.Join(s.start(cmd), input.Close()); err != nil {
		return nil, fmt.Errorf("devstack: reaper: %w", errors.Join(err, pipe.Close()))
	}
	return &reaper{cmd: cmd, pipe: pipe}, nil
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
