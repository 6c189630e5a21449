package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

// child is a replica as a child process: `freshet serve`, in a process group of its own so that
// Ctrl-C reaches only its parent, and with a standard input that ends, and the child with it, when
// the parent dies in whatever way.
type child struct {
	id         string
	api, admin string // host:port
	command    *exec.Cmd
	stdin      io.Closer
	output     *tail
	meant      atomic.Bool // this process ends it

	done chan struct{} // closed by wait, after err is set
	err  error         // how it ended
}

const (
	childStartLimit = 30 * time.Second // a replica that is not ready by then has failed to start
	childStopLimit  = 15 * time.Second // a replica that has not drained by then is killed
	tailBytes       = 8 << 10          // of a replica's output, kept for the error that may follow
)

// startChild starts a replica and returns when it is ready. log receives all its output too; nil =
// nobody.
func startChild(ctx context.Context, client *http.Client, id string, args, environment []string, log io.Writer) (*child, error) {
	program, err := os.Executable()
	if err != nil {
		return nil, fmt.Errorf("replica %s: %w", id, err)
	}
	c := &child{id: id, done: make(chan struct{}), output: &tail{log: log}}
	first := &firstLine{line: make(chan string, 1), rest: c.output}
	c.command = exec.Command(program, append([]string{"serve", "--id", id, "--exit-with-parent"}, args...)...) //nolint:noctx // how it ends is the business of stop and kill
	c.command.Env = environment
	c.command.Stdout, c.command.Stderr = first, c.output
	c.command.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if c.stdin, err = c.command.StdinPipe(); err != nil {
		return nil, fmt.Errorf("replica %s: %w", id, err)
	}
	if err := c.command.Start(); err != nil {
		return nil, fmt.Errorf("replica %s: %w", id, err)
	}
	go c.wait()

	ctx, cancel := context.WithTimeoutCause(ctx, childStartLimit, fmt.Errorf("not ready after %v", childStartLimit))
	defer cancel()
	if err := c.becomeReady(ctx, client, first.line); err != nil {
		return nil, errors.Join(fmt.Errorf("replica %s: %w\n%s", id, err, c.output.prefixed(id)), c.kill())
	}
	return c, nil
}

// wait is the goroutine that reaps the process; kill and stop wait for it.
func (c *child) wait() {
	c.err = c.command.Wait()
	close(c.done)
}

// becomeReady waits for the addresses, then for /readyz.
func (c *child) becomeReady(ctx context.Context, client *http.Client, line <-chan string) error {
	select {
	case text := <-line:
		var id string
		if _, err := fmt.Sscanf(text, announcement, &id, &c.api, &c.admin); err != nil {
			return fmt.Errorf("it began with %q instead of its addresses", text)
		}
	case <-c.done:
		return fmt.Errorf("it ended while it started: %w", c.ended())
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		if ready(ctx, client, c.admin) {
			return nil
		}
		select {
		case <-tick.C:
		case <-c.done:
			return fmt.Errorf("it ended while it started: %w", c.ended())
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

func ready(ctx context.Context, client *http.Client, admin string) bool {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+admin+"/readyz", nil)
	if err != nil {
		return false
	}
	resp, err := client.Do(req)
	if err != nil {
		return false
	}
	return resp.Body.Close() == nil && resp.StatusCode == http.StatusOK
}

// over reports whether the process has ended.
func (c *child) over() bool {
	select {
	case <-c.done:
		return true
	default:
		return false
	}
}

// ended is how the process ended; call it after done.
func (c *child) ended() error {
	if c.err == nil {
		return errors.New("exit status 0")
	}
	return c.err
}

// kill ends the process as a crash would, and waits until it is gone.
func (c *child) kill() error {
	c.meant.Store(true)
	err := c.command.Process.Kill()
	<-c.done
	c.stdin.Close() //nolint:errcheck // Wait has closed it
	if err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("replica %s: kill: %w", c.id, err)
	}
	return nil
}

// stop drains the process; it is killed when it takes too long, which is an error.
func (c *child) stop() error {
	c.meant.Store(true)
	if err := c.command.Process.Signal(syscall.SIGTERM); err != nil {
		if errors.Is(err, os.ErrProcessDone) {
			return c.kill()
		}
		return errors.Join(fmt.Errorf("replica %s: stop: %w", c.id, err), c.kill())
	}
	timer := time.NewTimer(childStopLimit)
	defer timer.Stop()
	select {
	case <-c.done:
		if c.err != nil {
			return fmt.Errorf("replica %s: it drained with an error: %w\n%s", c.id, c.err, c.output.prefixed(c.id))
		}
		return nil
	case <-timer.C:
		return errors.Join(fmt.Errorf("replica %s: it did not drain within %v", c.id, childStopLimit), c.kill())
	}
}

// firstLine passes a stream's first line on through a channel, once, and the rest to a writer.
type firstLine struct {
	line chan string // buffered, one value, sent by Write
	head []byte      // nil once the line is sent
	sent bool
	rest io.Writer
}

func (f *firstLine) Write(p []byte) (int, error) {
	if f.sent {
		return f.rest.Write(p)
	}
	f.head = append(f.head, p...)
	line, rest, found := bytes.Cut(f.head, []byte("\n"))
	if !found && len(f.head) < tailBytes {
		return len(p), nil
	}
	f.line <- string(line) + "\n"
	f.sent, f.head = true, nil
	_, err := f.rest.Write(rest)
	return len(p), err
}

// tail keeps the end of what is written to it.
type tail struct {
	log io.Writer // receives everything; nil = nobody

	mu  sync.Mutex
	end []byte // at most tailBytes
}

func (t *tail) Write(p []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.end = append(t.end, p...)
	if over := len(t.end) - tailBytes; over > 0 {
		t.end = append(t.end[:0], t.end[over:]...)
	}
	if t.log != nil {
		t.log.Write(p) //nolint:errcheck // a full disk must not stop the replica
	}
	return len(p), nil
}

// prefixed is the last lines, each behind the name.
func (t *tail) prefixed(name string) string {
	t.mu.Lock()
	defer t.mu.Unlock()
	if len(t.end) == 0 {
		return name + " | (no output)"
	}
	var b strings.Builder
	for line := range strings.Lines(string(bytes.TrimSpace(t.end))) {
		fmt.Fprintf(&b, "%s | %s", name, line)
	}
	return b.String()
}
