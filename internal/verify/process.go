package verify

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os/exec"
	"sync"
	"syscall"
	"time"
)

const (
	startLimit = 30 * time.Second // a replica that does not serve by then has failed to start
	closeLimit = 15 * time.Second // one that has not closed by then is killed
	tailBytes  = 4 << 10          // of a replica's messages, kept for the error that may follow
	lineLimit  = 64 << 20         // bytes of one reply
)

// process is a replica as a child process. It is in a process group of its own, so that Ctrl-C reaches
// the parent only, and ends when its standard input does, as when the parent dies.
type process struct {
	number  uint32
	command *exec.Cmd
	stdin   io.WriteCloser
	log     *tail
	done    chan struct{} // closed by wait, after err is set
	err     error         // how it ended

	mu      sync.Mutex
	last    uint64                // request
	replies map[uint64]chan reply // request -> where its reply goes, one; closed when the process ends first
	over    bool                  // no reply will come any more
}

// startProcess starts a replica and returns when it serves. program is the command that calls
// [RunReplica]; log gets its messages, nil = nobody.
func startProcess(ctx context.Context, program []string, s setup, log io.Writer) (*process, error) {
	p := &process{
		number: s.At.Replica, command: exec.Command(program[0], program[1:]...), //nolint:gosec,noctx // the program itself; how it ends is the business of close and kill
		log: &tail{to: log}, done: make(chan struct{}), replies: map[uint64]chan reply{},
	}
	p.command.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	p.command.Stderr = p.log
	fail := func(err error) (*process, error) { return nil, fmt.Errorf("verify: replica %d: %w", p.number, err) }
	var err error
	if p.stdin, err = p.command.StdinPipe(); err != nil {
		return fail(err)
	}
	stdout, err := p.command.StdoutPipe()
	if err != nil {
		return fail(err)
	}
	if err := p.command.Start(); err != nil {
		return fail(err)
	}
	ready := make(chan reply, 1)
	p.replies[0] = ready // the reply to the setup
	go p.wait(stdout)

	ctx, cancel := context.WithTimeoutCause(ctx, startLimit, fmt.Errorf("not ready after %v", startLimit))
	defer cancel()
	if err := p.send(s); err != nil {
		p.kill()
		return fail(errors.Join(err, p.log.error()))
	}
	select {
	case r, ok := <-ready:
		switch {
		case !ok:
			<-p.done
			return fail(errors.Join(errors.New("it ended while it started"), p.err, p.log.error()))
		case r.Error != "":
			p.kill()
			return fail(errors.New(r.Error))
		}
		return p, nil
	case <-ctx.Done():
		p.kill()
		return fail(errors.Join(context.Cause(ctx), p.log.error()))
	}
}

// wait is the goroutine that hands out replies and, when there are no more, reaps the process.
func (p *process) wait(stdout io.Reader) {
	lines := bufio.NewScanner(stdout)
	lines.Buffer(make([]byte, 64<<10), lineLimit)
	for lines.Scan() {
		var r reply
		if err := json.Unmarshal(lines.Bytes(), &r); err != nil {
			fmt.Fprintf(p.log, "%s\n", lines.Bytes()) // not ours: something printed
			continue
		}
		p.mu.Lock()
		to := p.replies[r.ID]
		delete(p.replies, r.ID)
		p.mu.Unlock()
		if to != nil {
			to <- r // buffered
		}
	}
	p.mu.Lock()
	p.over = true
	for _, to := range p.replies {
		close(to)
	}
	clear(p.replies)
	p.mu.Unlock()
	_, _ = io.Copy(io.Discard, stdout) // after a line that was too long
	p.err = p.command.Wait()
	close(p.done)
}

// errGone says that a replica ended before it answered.
var errGone = errors.New("the replica has ended")

func (p *process) send(v any) error {
	line, err := json.Marshal(v)
	if err != nil {
		return err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	_, err = p.stdin.Write(append(line, '\n'))
	return err
}

// ask sends a request and waits for its reply.
func (p *process) ask(ctx context.Context, r request) (reply, error) {
	to := make(chan reply, 1)
	p.mu.Lock()
	if p.over {
		p.mu.Unlock()
		return reply{}, errGone
	}
	p.last++
	r.ID = p.last
	p.replies[r.ID] = to
	p.mu.Unlock()
	if err := p.send(r); err != nil {
		return reply{}, fmt.Errorf("%w: %w", errGone, err)
	}
	select {
	case answer, ok := <-to:
		if !ok {
			return reply{}, errGone
		}
		if answer.Error != "" {
			return answer, errors.New(answer.Error)
		}
		return answer, nil
	case <-ctx.Done():
		p.mu.Lock()
		delete(p.replies, r.ID)
		p.mu.Unlock()
		return reply{}, context.Cause(ctx)
	}
}

func (p *process) signal(s syscall.Signal) error { return p.command.Process.Signal(s) }

// kill ends the process as a crash would and returns when it is gone.
func (p *process) kill() {
	_ = p.command.Process.Kill() // it may be gone already
	<-p.done
	_ = p.stdin.Close() // Wait has closed it
}

// close lets the replica close its subject and end. One that does not is killed, which is an error.
func (p *process) close() error {
	_ = p.signal(syscall.SIGCONT) // fails only when it is gone
	_ = p.stdin.Close()
	timer := time.NewTimer(closeLimit)
	defer timer.Stop()
	select {
	case <-p.done:
		if p.err != nil {
			return fmt.Errorf("verify: replica %d: close: %w", p.number, errors.Join(p.err, p.log.error()))
		}
		return nil
	case <-timer.C:
		p.kill()
		return fmt.Errorf("verify: replica %d did not close within %v", p.number, closeLimit)
	}
}

// tail keeps the end of what is written to it.
type tail struct {
	to io.Writer // gets everything; nil = nobody

	mu  sync.Mutex
	end []byte // at most tailBytes
}

func (t *tail) Write(b []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.end = append(t.end, b...)
	if over := len(t.end) - tailBytes; over > 0 {
		t.end = append(t.end[:0], t.end[over:]...)
	}
	if t.to != nil {
		_, _ = t.to.Write(b) // a full disk must not stop the replica
	}
	return len(b), nil
}

// error is what was said last; nil if nothing was.
func (t *tail) error() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if text := bytes.TrimSpace(t.end); len(text) > 0 {
		return errors.New(string(text))
	}
	return nil
}
