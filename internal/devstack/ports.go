package devstack

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"strconv"
)

// Ports are taken from blocks below the ranges from which operating systems
// take the ports of outgoing connections (Linux from 32768, others from 49152).
// A server's port therefore stays free while the server is stopped. Two stacks
// keep out of each other's way by a guard: whoever listens on the first port of
// a block owns the block.
const (
	firstPort = 16384
	endPort   = 22768 // the last bus port is below 32768
	blockSize = 16
)

// The use of a stack's block, as offsets from its first port, which is the guard.
const (
	redisPort    = 1 // to redisPort+redisNodes-1
	postgresPort = redisPort + redisNodes
	natsPort     = postgresPort + 1
	movedPort    = natsPort + 1           // to movedPort+redisNodes-1: where Redis nodes move to
	standbyPort  = movedPort + redisNodes // of Postgres
	stackPorts   = standbyPort            // how many ports after the guard a stack uses

	// busOffset is the distance from a Redis node's port to its cluster bus
	// port. It is fixed in Redis before 7 and the default since.
	busOffset = 10000
)

const loopback = "127.0.0.1"

// block is a reserved range of loopback ports.
type block struct {
	guard net.Listener
	first int
}

// reserve reserves a block whose first n ports after the guard are free, each
// also at the given further offset unless that is 0.
func reserve(n, further int) (*block, error) {
	const blocks = (endPort - firstPort) / blockSize
	for _, i := range rand.Perm(blocks) {
		b := &block{first: firstPort + i*blockSize}
		guard, err := net.Listen("tcp", b.addr(0))
		if err != nil {
			continue
		}
		b.guard = guard
		if b.free(n, further) {
			return b, nil
		}
		if err := guard.Close(); err != nil {
			return nil, fmt.Errorf("devstack: ports: %w", err)
		}
	}
	return nil, fmt.Errorf("devstack: no %d free ports in a row on %s between %d and %d", n+1, loopback, firstPort, endPort)
}

// free says whether one can listen on every port of the block that will be used.
func (b *block) free(n, further int) bool {
	for offset := 1; offset <= n; offset++ {
		if !free(b.addr(offset)) || further != 0 && !free(b.addr(offset+further)) {
			return false
		}
	}
	return true
}

func free(addr string) bool {
	l, err := net.Listen("tcp", addr)
	return err == nil && l.Close() == nil
}

// port returns the number of the block's port at the offset; 0 is the guard.
func (b *block) port(offset int) int { return b.first + offset }

// addr is port as host:port.
func (b *block) addr(offset int) string {
	return net.JoinHostPort(loopback, strconv.Itoa(b.port(offset)))
}

// close gives the block back.
func (b *block) close() error {
	if err := b.guard.Close(); err != nil && !errors.Is(err, net.ErrClosed) {
		return fmt.Errorf("devstack: ports: %w", err)
	}
	return nil
}
