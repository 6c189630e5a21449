package devstack

import (
	"os/exec"
	"runtime"
)

// spawner starts child processes from one operating system thread that lives as
// long as the spawner. Linux sends the parent death signal when the *thread*
// that forked a child ends, and the Go runtime ends threads as it likes, so
// children must be forked by a thread that is kept.
type spawner struct {
	orders chan order    // sent by start; closed by close
	done   chan struct{} // closed by run when the thread is about to end
}

type order struct {
	cmd    *exec.Cmd
	result chan error // buffered, one value, sent by run
}

func newSpawner() *spawner {
	s := &spawner{orders: make(chan order), done: make(chan struct{})}
	go s.run()
	return s
}

// run is the spawner's goroutine. It never unlocks its thread: the runtime ends
// the thread when run returns.
func (s *spawner) run() {
	defer close(s.done)
	runtime.LockOSThread()
	for o := range s.orders {
		o.result <- o.cmd.Start()
	}
}

// start is cmd.Start on the spawner's thread. It must not be called after close.
func (s *spawner) start(cmd *exec.Cmd) error {
	o := order{cmd: cmd, result: make(chan error, 1)}
	s.orders <- o
	return <-o.result
}

// close ends the thread, and with it every child that still runs and was
// started with a parent death signal.
func (s *spawner) close() {
	close(s.orders)
	<-s.done
}
