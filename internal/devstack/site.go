package devstack

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"time"
)

// folderPrefix begins the name of every stack's folder. The reaper removes no
// folder whose name begins otherwise.
const folderPrefix = "freshet-stack-"

// site is what the servers of one stack stand on: the folder, the account they
// run as, the thread that starts them, the ports and the reaper.
type site struct {
	folder  string // absolute, without symbolic links
	account account
	ports   *block
	spawner *spawner
	reaper  *reaper
	log     *sink

	// life ends, with cause ErrClosed, when the stack is closed. It is the
	// stack's lifetime, not that of one call.
	life   context.Context
	cancel context.CancelCauseFunc

	waits sync.WaitGroup // one per running child process: its wait goroutine
}

// openSite makes the folder and everything else that must stand before the
// first server starts. On an error nothing is left.
func openSite(o Options, p programs) (_ *site, err error) {
	s := &site{log: &sink{w: o.Log}}
	s.life, s.cancel = context.WithCancelCause(context.Background())
	s.spawner = newSpawner()
	defer func() {
		if err != nil {
			s.cancel(ErrClosed)
			err = errors.Join(err, s.close())
		}
	}()

	folder, err := os.MkdirTemp(o.Dir, folderPrefix)
	if err != nil {
		return nil, fmt.Errorf("devstack: Options.Dir %q must be an existing folder that one can write to: %w", o.Dir, err)
	}
	s.folder = folder
	if s.folder, err = absolute(folder); err != nil {
		return nil, err
	}
	// The unprivileged user passes through the folder but does not list it.
	if err := os.Chmod(s.folder, 0o711); err != nil {
		return nil, fmt.Errorf("devstack: %w", err)
	}
	if s.reaper, err = startReaper(s.spawner, s.folder, p.executables()); err != nil {
		return nil, err
	}
	if s.ports, err = reserve(stackPorts, busOffset); err != nil {
		return nil, err
	}
	if o.Redis || o.Postgres {
		if s.account, err = serverAccount(); err != nil {
			return nil, err
		}
		if err := s.checkReachable(); err != nil {
			return nil, err
		}
	}
	return s, nil
}

// absolute returns the folder's path as the kernel will show it.
func absolute(folder string) (string, error) {
	abs, err := filepath.Abs(folder)
	if err == nil {
		abs, err = filepath.EvalSymlinks(abs)
	}
	if err != nil {
		return folder, fmt.Errorf("devstack: path of the folder %q: %w", folder, err)
	}
	return abs, nil
}

// checkReachable finds out whether the servers' account can enter the folder.
func (s *site) checkReachable() error {
	if s.account.credential == nil {
		return nil
	}
	cmd := exec.Command("/bin/sh", "-c", `cd -- "$1"`, "sh", s.folder)
	cmd.Dir = "/"
	cmd.SysProcAttr = childAttributes(s.account)
	if err := s.spawner.start(cmd); err != nil {
		return fmt.Errorf("devstack: cannot run a process as the user %q: %w", s.account.name, err)
	}
	if err := cmd.Wait(); err != nil {
		return fmt.Errorf("devstack: the user %q, as whom the servers run because this process is root, cannot enter %q: "+
			"choose a folder that every user can enter, such as /tmp, with Options.Dir or the environment variable TMPDIR",
			s.account.name, filepath.Dir(s.folder))
	}
	return nil
}

// mkdir makes a folder for one server, owned by the account it runs as.
func (s *site) mkdir(name string) (string, error) {
	dir := filepath.Join(s.folder, name)
	if err := os.Mkdir(dir, 0o700); err != nil {
		return "", fmt.Errorf("devstack: %w", err)
	}
	return dir, s.give(dir)
}

// write makes a file that the servers' account owns.
func (s *site) write(path, text string) error {
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		return fmt.Errorf("devstack: %w", err)
	}
	return s.give(path)
}

func (s *site) give(path string) error {
	if c := s.account.credential; c != nil {
		if err := os.Chown(path, int(c.Uid), int(c.Gid)); err != nil {
			return fmt.Errorf("devstack: give %q to the user %q: %w", path, s.account.name, err)
		}
	}
	return nil
}

// within returns a context that ends with ctx, with the stack, or after the
// limit, whichever is first.
func (s *site) within(ctx context.Context, limit time.Duration) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancelCause(ctx)
	stop := context.AfterFunc(s.life, func() { cancel(context.Cause(s.life)) })
	limited, done := context.WithTimeout(ctx, limit)
	return limited, func() { done(); stop(); cancel(nil) }
}

// close removes what openSite made. The servers have ended before.
func (s *site) close() error {
	s.waits.Wait()
	s.spawner.close()
	var err error
	if s.folder != "" {
		err = os.RemoveAll(s.folder)
	}
	if s.reaper != nil {
		err = errors.Join(err, s.reaper.close())
	}
	if s.ports != nil {
		err = errors.Join(err, s.ports.close())
	}
	return err
}

// sink passes whole writes on, one at a time, to a writer that may be nil or
// fail.
type sink struct {
	mu sync.Mutex
	w  io.Writer
}

// named returns a writer that puts the name before each line. Each of its users
// has its own.
func (s *sink) named(name string) io.Writer {
	return &prefixer{sink: s, prefix: []byte(name + ": "), start: true}
}

type prefixer struct {
	sink   *sink
	prefix []byte
	start  bool // the next byte begins a line
}

// Write never fails: a broken log must not break the server that logs.
func (p *prefixer) Write(b []byte) (int, error) {
	out := make([]byte, 0, len(b)+len(p.prefix))
	for _, c := range b {
		if p.start {
			out = append(out, p.prefix...)
		}
		out = append(out, c)
		p.start = c == '\n'
	}
	p.sink.mu.Lock()
	defer p.sink.mu.Unlock()
	_, _ = p.sink.w.Write(out)
	return len(b), nil
}
