package devstack_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/freshet-cache/freshet/internal/devstack"
)

// leftovers lists the processes that have the text, part of a path, in their
// command line or as their working folder. Ended ones that nobody has waited for
// do not count.
func leftovers(t *testing.T, text string) []string {
	t.Helper()
	var found []string
	processes, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range processes {
		if p == "/proc/"+strconv.Itoa(os.Getpid()) {
			continue
		}
		// A process that ends meanwhile reads as "".
		line, _ := os.ReadFile(p + "/cmdline")
		cwd, _ := os.Readlink(p + "/cwd")
		if strings.Contains(string(line), text) || strings.Contains(cwd, text) {
			found = append(found, fmt.Sprintf("%s in %s: %s", p, cwd, strings.ReplaceAll(string(line), "\x00", " ")[:min(len(line), 80)]))
		}
	}
	return found
}

func wantNothingLeft(t *testing.T, dir string) {
	t.Helper()
	emptyDir(t, dir)
	for _, p := range leftovers(t, dir) {
		t.Errorf("left: %s", p)
	}
}

func TestStartIsQuickAndCloseLeavesNothing(t *testing.T) {
	dir := openDir(t)
	var log strings.Builder
	began := time.Now()
	s, err := devstack.Start(t.Context(), devstack.Options{Dir: dir, Log: &log})
	if err != nil {
		t.Fatal(err)
	}
	started := time.Since(began)
	segment := sharedMemory(t, s.Folder())
	if got := len(leftovers(t, s.Folder())); got < 6+1+1 {
		t.Errorf("%d processes in the folder, want six of Redis, some of Postgres, and the reaper", got)
	}

	wantFirstOrder(t, s.Redis)

	began = time.Now()
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	t.Logf("started in %v, closed in %v", started, time.Since(began))
	if started > 15*time.Second {
		t.Errorf("started in %v, want less than 15 s", started)
	}
	wantNothingLeft(t, dir)
	wantNoSharedMemory(t, segment)
	for _, want := range []string{"redis-5: ", "postgres: "} {
		if !strings.Contains(log.String(), want) {
			t.Errorf("Options.Log received nothing of %q", want)
		}
	}

	if err := s.Close(); err != nil {
		t.Errorf("second Close: %v", err)
	}
	for name, err := range map[string]error{
		"RedisNode.Start": s.Redis.Nodes()[0].Start(t.Context()),
		"Postgres.Start":  s.Postgres.Start(t.Context()),
		"NATS.Start":      s.NATS.Start(),
		"WaitReady":       s.Redis.WaitReady(t.Context()),
	} {
		if !errors.Is(err, devstack.ErrClosed) {
			t.Errorf("%s after Close: %v, want ErrClosed", name, err)
		}
	}
}

func TestPartsCanBeLeftOut(t *testing.T) {
	dir := openDir(t)
	s, err := devstack.Start(t.Context(), devstack.Options{Dir: dir, NATS: true})
	if err != nil {
		t.Fatal(err)
	}
	if s.Redis != nil || s.Postgres != nil || s.NATS == nil {
		t.Errorf("parts: %v, %v, %v; want only NATS", s.Redis, s.Postgres, s.NATS)
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}
	wantNothingLeft(t, dir)
}

// fakeRedis puts a redis-server in front of PATH that does what the script says.
func fakeRedis(t *testing.T, script string) {
	t.Helper()
	bin := openDir(t)
	text := "#!/bin/sh\n[ \"$1\" = --version ] && { echo 'Redis server v=7.0.0'; exit; }\n" + script + "\n"
	if err := os.WriteFile(filepath.Join(bin, "redis-server"), []byte(text), 0o755); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", bin+":"+os.Getenv("PATH"))
}

func TestFailedStartLeavesNothing(t *testing.T) {
	fakeRedis(t, `echo "cannot do it today"; exit 3`)
	dir := openDir(t)
	s, err := devstack.Start(t.Context(), devstack.Options{Dir: dir})
	if err == nil {
		s.Close()
		t.Fatal("Start with a broken redis-server returned no error")
	}
	for _, want := range []string{"redis-", "exit status 3", "cannot do it today"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("error %q does not hold %q", err, want)
		}
	}
	wantNothingLeft(t, dir)
}

func TestEndedContextInterruptsStartAndLeavesNothing(t *testing.T) {
	slow(t)
	for _, limit := range []time.Duration{time.Nanosecond, 150 * time.Millisecond, 700 * time.Millisecond} {
		t.Run(limit.String(), func(t *testing.T) {
			fakeRedis(t, "exec sleep 60") // so that no start succeeds
			dir := openDir(t)
			ctx, cancel := context.WithTimeout(t.Context(), limit)
			defer cancel()
			began := time.Now()
			s, err := devstack.Start(ctx, devstack.Options{Dir: dir})
			if err == nil {
				s.Close()
			}
			if !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("Start: %v, want DeadlineExceeded", err)
			}
			if took := time.Since(began); took > limit+5*time.Second {
				t.Errorf("Start returned after %v", took)
			}
			wantNothingLeft(t, dir)
		})
	}
}

func TestMissingProgramsAreNamedAllAtOnce(t *testing.T) {
	t.Setenv("PATH", t.TempDir())
	_, err := devstack.Start(t.Context(), devstack.Options{Redis: true})
	if _, ok := errors.AsType[*devstack.MissingError](err); !ok {
		t.Fatalf("Start: %v, want a MissingError", err)
	}
	for _, want := range []string{"redis-server", "apt-get install redis-server"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("error %q does not hold %q", err, want)
		}
	}
}

func TestDirMustExistAndBeReachable(t *testing.T) {
	_, err := devstack.Start(t.Context(), devstack.Options{Dir: "/nowhere"})
	if err == nil || !strings.Contains(err.Error(), "Options.Dir") {
		t.Errorf("Start in a folder that does not exist: %v, want an error that names Options.Dir", err)
	}
	if os.Geteuid() != 0 {
		return // the servers run as ourselves
	}
	dir := filepath.Join(openDir(t), "closed")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	_, err = devstack.Start(t.Context(), devstack.Options{Dir: dir})
	if err == nil || !strings.Contains(err.Error(), dir) || !strings.Contains(err.Error(), "TMPDIR") {
		t.Errorf("Start in a folder closed to others: %v, want an error that names it and what to do", err)
	}
	wantNothingLeft(t, dir)
}

func TestCloseInterruptsControls(t *testing.T) {
	slow(t)
	dir := openDir(t)
	s, err := devstack.Start(t.Context(), devstack.Options{Dir: dir, Redis: true, Postgres: true})
	if err != nil {
		t.Fatal(err)
	}
	var users sync.WaitGroup
	restarted := make(chan struct{}, 20)
	for _, n := range s.Redis.Nodes() {
		for _, control := range []func() error{n.Kill, n.Stop, n.Pause, n.Resume, func() error { return n.Start(context.Background()) }} {
			users.Go(func() {
				for !errors.Is(n.Start(context.Background()), devstack.ErrClosed) {
					_ = control() // fails as it may: the others interfere
					select {
					case restarted <- struct{}{}:
					default:
					}
				}
			})
		}
	}
	users.Go(func() {
		for !errors.Is(s.Postgres.Start(context.Background()), devstack.ErrClosed) {
			s.Postgres.Kill() // may fail during Close
		}
	})
	for range cap(restarted) {
		<-restarted
	}
	began := time.Now()
	if err := s.Close(); err != nil {
		t.Error(err)
	}
	users.Wait()
	if took := time.Since(began); took > 10*time.Second {
		t.Errorf("Close took %v", took)
	}
	wantNothingLeft(t, dir)
}

// owner starts this binary as the owner of a stack in dir.
func owner(t *testing.T, dir string, credential *syscall.Credential) (*exec.Cmd, *bufio.Reader) {
	t.Helper()
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), ownerDir+"="+dir)
	cmd.Dir = "/"
	cmd.Stderr = os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Credential: credential}
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { in.Close() })
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	return cmd, bufio.NewReader(out)
}

func TestNothingIsLeftWhenTheOwnerDies(t *testing.T) {
	slow(t)
	for _, signal := range []syscall.Signal{syscall.SIGKILL, syscall.SIGTERM} {
		t.Run(signal.String(), func(t *testing.T) {
			t.Parallel()
			dir := openDir(t)
			cmd, out := owner(t, dir, nil)
			line, err := out.ReadString('\n')
			if err != nil {
				t.Fatalf("the owner did not start its stack: %v", err)
			}
			segment := sharedMemory(t, strings.TrimSpace(line))
			// The whole group, as a terminal or a supervisor would.
			if err := syscall.Kill(-cmd.Process.Pid, signal); err != nil {
				t.Fatal(err)
			}
			cmd.Wait() // "signal: killed"
			began := time.Now()
			eventually(t, "everything gone", 10*time.Second, func() bool {
				return len(leftovers(t, dir)) == 0 && isEmpty(dir)
			})
			t.Logf("gone %v after the owner", time.Since(began))
			wantNoSharedMemory(t, segment)
		})
	}
	t.Run("while starting", func(t *testing.T) {
		t.Parallel()
		dir := openDir(t)
		cmd, _ := owner(t, dir, nil)
		eventually(t, "initdb begun", time.Minute, func() bool {
			found, err := filepath.Glob(filepath.Join(dir, "*", "postgres", "data", "base"))
			return err == nil && len(found) == 1
		})
		if err := cmd.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		cmd.Wait() // "signal: killed"
		eventually(t, "everything gone", 10*time.Second, func() bool {
			return len(leftovers(t, dir)) == 0 && isEmpty(dir)
		})
	})
}

func TestPlainUserCanStart(t *testing.T) {
	slow(t)
	if os.Geteuid() != 0 {
		t.Skip("every other test of this run does")
	}
	u, err := user.Lookup("nobody")
	if err != nil {
		t.Skip(err)
	}
	uid, err := strconv.Atoi(u.Uid)
	if err != nil {
		t.Fatal(err)
	}
	gid, err := strconv.Atoi(u.Gid)
	if err != nil {
		t.Fatal(err)
	}
	dir := openDir(t)
	cmd, out := owner(t, dir, &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)})
	folder, err := out.ReadString('\n')
	if err != nil {
		t.Fatalf("the owner did not start its stack: %v", err)
	}
	status, err := os.Stat(strings.TrimSpace(folder))
	if err != nil {
		t.Fatal(err)
	}
	if got := status.Sys().(*syscall.Stat_t).Uid; got != uint32(uid) {
		t.Errorf("the folder belongs to user %d, want %d", got, uid)
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	cmd.Wait() // "signal: killed"
	eventually(t, "everything gone", 10*time.Second, func() bool {
		return len(leftovers(t, dir)) == 0 && isEmpty(dir)
	})
}

// TestReaperKillsOnlyServersOfItsFolder is also what happens where the kernel
// sends no parent death signal.
func TestReaperKillsOnlyServersOfItsFolder(t *testing.T) {
	folder := filepath.Join(openDir(t), "freshet-stack-1")
	if err := os.Mkdir(folder, 0o777); err != nil {
		t.Fatal(err)
	}
	sleep, cat := realPath(t, "sleep"), realPath(t, "cat")
	server := idle(t, folder, sleep, "60")
	elsewhere := idle(t, filepath.Dir(folder), sleep, "60")
	reader := idle(t, folder, cat) // somebody who reads a log there
	if err := devstack.Reap(folder, sleep); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(folder); !os.IsNotExist(err) {
		t.Errorf("the folder is still there (%v)", err)
	}
	select {
	case <-server:
	case <-time.After(5 * time.Second):
		t.Error("the server in the folder was not killed")
	}
	select {
	case <-elsewhere:
		t.Error("a process outside the folder was killed")
	case <-reader:
		t.Error("a process of another program was killed")
	default:
	}
}

func TestReaperRefusesOtherFolders(t *testing.T) {
	dir := openDir(t)
	if err := devstack.Reap(dir); err == nil {
		t.Error("the reaper accepted a folder that is no stack's")
	}
	if _, err := os.Stat(dir); err != nil {
		t.Error(err)
	}
}

// idle starts a process that does nothing until the test ends, and returns a
// channel that closes when it has ended.
func idle(t *testing.T, dir, path string, args ...string) <-chan struct{} {
	t.Helper()
	cmd := exec.Command(path, args...)
	cmd.Dir = dir
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		cmd.Wait() // "signal: killed"
	}()
	t.Cleanup(func() {
		in.Close()
		cmd.Process.Kill()
		<-done
	})
	return done
}

func realPath(t *testing.T, program string) string {
	t.Helper()
	path, err := exec.LookPath(program)
	if err != nil {
		t.Fatal(err)
	}
	if path, err = filepath.EvalSymlinks(path); err != nil {
		t.Fatal(err)
	}
	return path
}

func isEmpty(dir string) bool {
	f, err := os.Open(dir)
	if err != nil {
		return false
	}
	defer f.Close()
	_, err = f.Readdirnames(1)
	return err == io.EOF
}

// sharedMemory returns "key id" of the running Postgres's segment.
func sharedMemory(t *testing.T, folder string) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(folder, "postgres", "data", "postmaster.pid"))
	if err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(string(text), "\n")
	if len(lines) < 7 {
		t.Fatalf("postmaster.pid has %d lines", len(lines))
	}
	return strings.Join(strings.Fields(lines[6]), " ")
}

func wantNoSharedMemory(t *testing.T, segment string) {
	t.Helper()
	f, err := os.Open("/proc/sysvipc/shm")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for lines := bufio.NewScanner(f); lines.Scan(); {
		fields := strings.Fields(lines.Text())
		if len(fields) > 2 && fields[0]+" "+fields[1] == segment {
			t.Errorf("left: System V shared memory %s", segment)
		}
	}
}
