package devstack

import (
	"net"
	"syscall"
)

// What the tests, which are outside the package, need to see inside.

func (n *RedisNode) PID() int { return n.process.current.cmd.Process.Pid }

// States returns the state of every process of the server, as ps shows it.
func (p *Postgres) States() (string, error) {
	pid := p.server().process.current.cmd.Process.Pid
	table, err := processTable()
	if err != nil {
		return "", err
	}
	var states []byte
	for _, m := range table {
		if m.pid == pid {
			states = append(states, m.state)
		}
	}
	for _, m := range descendants(table, pid) {
		states = append(states, m.state)
	}
	return string(states), nil
}

func Reserve() (first int, guard net.Listener, err error) {
	b, err := reserve(stackPorts, busOffset)
	if err != nil {
		return 0, nil, err
	}
	return b.first, b.guard, nil
}

func FindPostgres(folders ...string) (server string, err error) {
	p, err := findPostgres(folders)
	return p.server, err
}

// Reap starts a reaper for the folder, sends it the signals a terminal sends,
// and lets it do its work.
func Reap(folder string, executables ...string) error {
	s := newSpawner()
	defer s.close()
	r, err := startReaper(s, folder, executables)
	if err != nil {
		return err
	}
	for _, signal := range []syscall.Signal{syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP} {
		if err := r.cmd.Process.Signal(signal); err != nil {
			return err
		}
	}
	return r.close()
}
