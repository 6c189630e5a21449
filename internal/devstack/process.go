package devstack

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"
)

const (
	readyLimit  = 30 * time.Second       // a server that is not ready by then has failed to start
	stopLimit   = 10 * time.Second       // a server that has not stopped by then is killed
	signalLimit = 5 * time.Second        // the kernel acts on SIGKILL and SIGSTOP far sooner
	probePause  = 20 * time.Millisecond  // between two questions whether a server is ready
	statePause  = 2 * time.Millisecond   // between two looks at the table of processes
	pipeLimit   = 500 * time.Millisecond // for the last output of a process that has ended
	logTail     = 12                     // lines of a server's log in an error
)

// errNotRunning is wrapped by controls that need a running server.
var errNotRunning = errors.New("is not running")

// errEnded is how a server ended that should have gone on.
var errEnded = errors.New("exit status 0")

// process is one server program: at most one run of it at a time, with all the
// processes that this run has forked.
type process struct {
	site *site
	name string   // "redis-0": in errors, and of its log file
	path string   // of the program
	args []string // without the program's name
	dir  string   // working folder; the reaper knows the process by it

	mu      sync.Mutex
	current *run // the last run; nil before the first
}

// run is one life of a process.
type run struct {
	cmd  *exec.Cmd
	done chan struct{} // closed by the wait goroutine, after err is set
	err  error         // how it ended
}

func (r *run) over() bool {
	select {
	case <-r.done:
		return true
	default:
		return false
	}
}

// start starts the program, or returns the current run when it already runs; a
// paused one is resumed.
func (p *process) start() (*run, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if err := context.Cause(p.site.life); err != nil {
		return nil, err
	}
	if p.running() {
		return p.current, p.resume()
	}
	log, err := os.OpenFile(p.logPath(), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return nil, fmt.Errorf("devstack: %s: %w", p.name, err)
	}
	var out io.Writer = log
	if p.site.log.w != nil {
		out = io.MultiWriter(log, p.site.log.named(p.name))
	}
	cmd := exec.Command(p.path, p.args...)
	cmd.Dir = p.dir
	cmd.Env = childEnvironment()
	cmd.Stdout, cmd.Stderr = out, out
	cmd.WaitDelay = pipeLimit
	cmd.SysProcAttr = childAttributes(p.site.account)
	if err := p.site.spawner.start(cmd); err != nil {
		return nil, fmt.Errorf("devstack: %s: %w", p.name, errors.Join(err, log.Close()))
	}
	r := &run{cmd: cmd, done: make(chan struct{})}
	p.current = r
	p.site.waits.Go(func() {
		r.err = errors.Join(cmd.Wait(), log.Close())
		close(r.done)
	})
	return r, nil
}

// childEnvironment keeps the caller's settings for Postgres, Redis and locales
// away from the servers.
func childEnvironment() []string {
	return []string{"PATH=" + os.Getenv("PATH"), "LC_ALL=C", "TZ=UTC", "HOME=/"}
}

// running says whether the current run has not ended. p.mu is held.
func (p *process) running() bool { return p.current != nil && !p.current.over() }

// alive says whether the program runs.
func (p *process) alive() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.running()
}

// ready asks probe until it returns nil. It fails when the run or ctx ends.
func (p *process) ready(ctx context.Context, r *run, probe func(context.Context) error) error {
	for {
		err := probe(ctx)
		if err == nil {
			return nil
		}
		select {
		case <-r.done:
			return fmt.Errorf("devstack: %s ended while it started: %w\n%s", p.name, cmp.Or(r.err, errEnded), p.tail())
		case <-ctx.Done():
			return fmt.Errorf("devstack: %s is not ready: %w (last answer: %w)\n%s", p.name, context.Cause(ctx), err, p.tail())
		case <-time.After(probePause):
		}
	}
}

// finish runs a program that ends by itself, such as initdb, to its end.
func (p *process) finish(ctx context.Context) error {
	r, err := p.start()
	if err != nil {
		return err
	}
	select {
	case <-r.done:
		if r.err != nil {
			return fmt.Errorf("devstack: %s: %w\n%s", p.name, r.err, p.tail())
		}
		return nil
	case <-ctx.Done():
		return errors.Join(fmt.Errorf("devstack: %s was interrupted: %w", p.name, context.Cause(ctx)), p.kill())
	}
}

// stop sends the signal that asks the server to end, after resuming it, and
// waits. A server that does not end within the limit is killed, which is an
// error. Stopping a server that does not run does nothing.
func (p *process) stop(signal syscall.Signal, limit time.Duration) error {
	r, err := p.ask(signal)
	if r == nil || err != nil {
		return err
	}
	timer := time.NewTimer(limit)
	defer timer.Stop()
	select {
	case <-r.done:
		return nil
	case <-timer.C:
		return errors.Join(fmt.Errorf("devstack: %s did not stop within %v of %v and was killed", p.name, limit, signal), p.kill())
	}
}

// ask sends a signal to the running server and returns the run, nil when there
// is none.
func (p *process) ask(signal syscall.Signal) (*run, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.running() {
		return nil, nil
	}
	if err := p.resume(); err != nil {
		return nil, err
	}
	if err := p.signal(signal); err != nil {
		return nil, err
	}
	return p.current, nil
}

// kill ends the run and every process it forked with SIGKILL and returns when
// all are gone. Killing a server that does not run does nothing.
func (p *process) kill() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.running() {
		return nil
	}
	// A frozen parent forks nothing and reaps nothing: its children are all in
	// the table, and their ids stay theirs until it is killed itself.
	family, err := p.freeze()
	for _, m := range family {
		syscall.Kill(m.pid, syscall.SIGKILL) // fails only when it is gone already
	}
	// However the freezing went, the server must not live on.
	if err := errors.Join(err, p.signal(syscall.SIGKILL)); err != nil {
		return err
	}
	deadline := time.NewTimer(signalLimit)
	defer deadline.Stop()
	select {
	case <-p.current.done:
	case <-deadline.C:
		return fmt.Errorf("devstack: %s (pid %d) survived SIGKILL", p.name, p.current.cmd.Process.Pid)
	}
	return p.look("survived SIGKILL", func(table []member) bool {
		return !slices.ContainsFunc(family, func(m member) bool { return m.alive(table) })
	})
}

// pause freezes the run and every process it forked. Pausing a paused server
// does nothing.
func (p *process) pause() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.running() {
		return fmt.Errorf("devstack: pause: %s %w", p.name, errNotRunning)
	}
	family, err := p.freeze()
	if err != nil {
		return err
	}
	for _, m := range family {
		syscall.Kill(m.pid, syscall.SIGSTOP) // fails only when it is gone already
	}
	return p.look("did not stop on SIGSTOP", func(table []member) bool {
		return !slices.ContainsFunc(family, func(m member) bool { return m.alive(table) && !m.stopped(table) })
	})
}

// unpause lets a paused server run on. It does nothing to one that runs.
func (p *process) unpause() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.running() {
		return fmt.Errorf("devstack: resume: %s %w", p.name, errNotRunning)
	}
	return p.resume()
}

// freeze stops the server's first process and returns all its descendants.
// p.mu is held and the server runs.
func (p *process) freeze() ([]member, error) {
	if err := p.signal(syscall.SIGSTOP); err != nil {
		return nil, err
	}
	var family []member
	err := p.look("did not stop on SIGSTOP", func(table []member) bool {
		pid := p.current.cmd.Process.Pid
		i := slices.IndexFunc(table, func(m member) bool { return m.pid == pid })
		if i >= 0 && table[i].alive(table) && !table[i].stopped(table) {
			return false
		}
		family = descendants(table, pid)
		return true
	})
	return family, err
}

// resume continues all descendants, then the first process. p.mu is held and
// the server runs.
func (p *process) resume() error {
	table, err := processTable()
	if err != nil {
		return fmt.Errorf("devstack: %s: %w", p.name, err)
	}
	for _, m := range descendants(table, p.current.cmd.Process.Pid) {
		if m.stopped(table) {
			syscall.Kill(m.pid, syscall.SIGCONT) // fails only when it is gone already
		}
	}
	return p.signal(syscall.SIGCONT)
}

// signal signals the first process. That it has just ended is no error. p.mu is
// held and there is a run.
func (p *process) signal(signal syscall.Signal) error {
	if err := p.current.cmd.Process.Signal(signal); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("devstack: %s: %v: %w", p.name, signal, err)
	}
	return nil
}

// look reads the table of processes until the condition holds.
func (p *process) look(failure string, holds func(table []member) bool) error {
	for deadline := time.Now().Add(signalLimit); ; {
		table, err := processTable()
		if err != nil {
			return fmt.Errorf("devstack: %s: %w", p.name, err)
		}
		if holds(table) {
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("devstack: a process of %s %s within %v", p.name, failure, signalLimit)
		}
		<-time.After(statePause)
	}
}

func (p *process) logPath() string { return filepath.Join(p.site.folder, p.name+".log") }

// tail returns the last lines of the server's log.
func (p *process) tail() string {
	text, err := os.ReadFile(p.logPath())
	if err != nil {
		return err.Error()
	}
	lines := strings.Split(string(bytes.TrimSpace(text)), "\n")
	return strings.Join(lines[max(0, len(lines)-logTail):], "\n")
}

// member is one row of the operating system's table of processes.
type member struct {
	pid, parent int
	state       byte   // as ps shows it: T or t stopped, Z ended
	born        string // start time; with pid it names one process for ever
}

// in returns the member's row in a later table.
func (m member) in(table []member) (member, bool) {
	i := slices.IndexFunc(table, func(o member) bool { return o.pid == m.pid && o.born == m.born })
	if i < 0 {
		return member{}, false
	}
	return table[i], true
}

func (m member) alive(table []member) bool {
	now, ok := m.in(table)
	return ok && now.state != 'Z' && now.state != 'X'
}

func (m member) stopped(table []member) bool {
	now, ok := m.in(table)
	return ok && (now.state == 'T' || now.state == 't')
}

// descendants returns the children of pid, their children, and so on.
func descendants(table []member, pid int) []member {
	var family []member
	for next := []int{pid}; len(next) > 0; {
		parents := next
		next = nil
		for _, m := range table {
			if slices.Contains(parents, m.parent) {
				family = append(family, m)
				next = append(next, m.pid)
			}
		}
	}
	return family
}
