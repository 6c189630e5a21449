package devstack

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
)

// Bounds of what a NATSProxy collects of one connection and direction before it
// passes it on.
const (
	natsLine    = 64 << 10 // bytes of a line without its payload; longer ones break the connection
	natsPayload = 64 << 20 // bytes, the server's own limit; more breaks the connection
)

// NATSProxy is a [Proxy] that knows NATS: it can lose, repeat and delay single
// messages, and so bring them out of order, while the connection stays whole. It
// cannot look into TLS or WebSocket connections.
type NATSProxy struct {
	*Proxy
}

// Mishaps say what happens to messages. The zero value lets all pass.
type Mishaps struct {
	// Subject chooses the messages as a subscription would, with the wildcards *
	// and >. "" means all, also the answers to requests.
	Subject string

	// Drop is the share of messages that are lost, Duplicate that of those which
	// come twice; from 0 to 1.
	Drop, Duplicate float64

	// Delay is the longest time by which a message is late. Each, and each of the
	// two of a duplicated one, is late by a random time from 0 to Delay; what
	// comes behind it overtakes it. At most 4096 messages of a connection and
	// direction wait at a time.
	Delay time.Duration
}

// MishapCounts are the messages that matched so far and what became of them.
type MishapCounts struct{ Matched, Dropped, Duplicated uint64 }

// NewNATSProxy is [NewProxy] for a NATS server. What happens to the messages
// follows from the seed: the n-th message that matches in one direction, over
// all connections, has the same fate in each run.
func NewNATSProxy(target string, seed uint64) (*NATSProxy, error) {
	if err := checkTargets(target); err != nil {
		return nil, err
	}
	ports, err := reserve(1, 0)
	if err != nil {
		return nil, err
	}
	m := new(meddler)
	for d := range m.random {
		m.random[d] = rand.New(rand.NewPCG(seed, uint64(d)))
	}
	p, err := newProxy(ports.addr(1), m, target)
	if err != nil {
		return nil, errors.Join(err, ports.close())
	}
	p.ports = ports
	return &NATSProxy{p}, nil
}

// Meddle lets mishaps happen to the messages that arrive from now on in one
// direction: [Up] those that the client publishes, [Down] those that it
// receives. It replaces the direction's mishaps; the zero Mishaps end them. Heal
// does not.
func (p *NATSProxy) Meddle(d Direction, m Mishaps) {
	p.meddle.mu.Lock()
	defer p.meddle.mu.Unlock()
	p.meddle.mishaps[d] = m
}

// Mishaps returns what has happened in one direction so far.
func (p *NATSProxy) Mishaps(d Direction) MishapCounts {
	p.meddle.mu.Lock()
	defer p.meddle.mu.Unlock()
	return p.meddle.counts[d]
}

// meddler decides the fate of messages. Its arrays are by direction.
type meddler struct {
	mu      sync.Mutex
	mishaps [2]Mishaps
	counts  [2]MishapCounts
	random  [2]*rand.Rand
}

// fate says when copies of a message are to be sent, after now: none of one that
// is lost. It returns false for a message that is none of its business.
func (m *meddler) fate(d Direction, subject string) (copies []time.Duration, matched bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	is := m.mishaps[d]
	if is.Drop <= 0 && is.Duplicate <= 0 && is.Delay <= 0 || !subjectMatches(is.Subject, subject) {
		return nil, false
	}
	// Always as many numbers, so that a fate does not depend on those before.
	drop, duplicate := m.random[d].Float64(), m.random[d].Float64()
	late := [2]float64{m.random[d].Float64(), m.random[d].Float64()}
	m.counts[d].Matched++
	if drop < is.Drop {
		m.counts[d].Dropped++
		return nil, true
	}
	copies = append(copies, time.Duration(late[0]*float64(is.Delay)))
	if duplicate < is.Duplicate {
		m.counts[d].Duplicated++
		copies = append(copies, time.Duration(late[1]*float64(is.Delay)))
	}
	return copies, true
}

// subjectMatches says whether a subscription to the pattern would get the subject.
func subjectMatches(pattern, subject string) bool {
	if pattern == "" {
		return true
	}
	want, have := strings.Split(pattern, "."), strings.Split(subject, ".")
	for i, w := range want {
		switch {
		case w == ">" && i < len(have):
			return true
		case i >= len(have) || w != "*" && w != have[i]:
			return false
		}
	}
	return len(want) == len(have)
}

// frames cuts one direction of one connection into protocol messages.
type frames struct {
	meddler   *meddler
	direction Direction
	rest      []byte // the beginning of a message that is not complete
}

func (m *meddler) frames(d Direction) *frames { return &frames{meddler: m, direction: d} }

// take passes on what is complete: messages with a fate one by one, everything
// between them as it came. It returns false when the connection cannot go on.
func (f *frames) take(got []byte, send func(k chunk, later time.Duration) bool) bool {
	b := slices.Concat(f.rest, got)
	start, at := 0, 0 // of what is not sent yet; of the next message
	flush := func() bool {
		return start == at || send(chunk{bytes: b[start:at:at]}, 0)
	}
	for at < len(b) {
		n, subject, ok := parseFrame(b[at:])
		if !ok {
			send(chunk{broken: true}, 0)
			return false
		}
		if n == 0 {
			break
		}
		copies, matched := f.fate(subject)
		if matched {
			if !flush() {
				return false
			}
			for _, later := range copies {
				if !send(chunk{bytes: b[at : at+n : at+n], loose: later > 0}, later) {
					return false
				}
			}
			start = at + n
		}
		at += n
	}
	f.rest = slices.Clone(b[at:])
	return flush()
}

func (f *frames) fate(subject string) ([]time.Duration, bool) {
	if subject == "" {
		return nil, false
	}
	return f.meddler.fate(f.direction, subject)
}

// parseFrame returns the length of the protocol message that b begins with, 0
// when it is not complete, and the subject when it carries a payload:
//
//	PUB subject [reply] size, HPUB subject [reply] header-size size,
//	MSG subject sid [reply] size, HMSG subject sid [reply] header-size size,
//
// each with \r\n, size bytes and \r\n behind it. It is not ok when b cannot be
// the beginning of a message within the bounds.
func parseFrame(b []byte) (n int, subject string, ok bool) {
	end := bytes.IndexByte(b[:min(len(b), natsLine)], '\n')
	if end < 0 {
		return 0, "", len(b) < natsLine
	}
	n = end + 1
	fields := bytes.Fields(b[:end])
	if len(fields) == 0 {
		return n, "", true
	}
	var least int // fields
	switch strings.ToUpper(string(fields[0])) {
	case "PUB":
		least = 3
	case "HPUB", "MSG":
		least = 4
	case "HMSG":
		least = 5
	default:
		return n, "", true
	}
	if len(fields) < least {
		return 0, "", false
	}
	size, err := strconv.Atoi(string(fields[len(fields)-1]))
	if err != nil || size < 0 || size > natsPayload {
		return 0, "", false
	}
	if n += size + len("\r\n"); len(b) < n {
		return 0, "", true
	}
	return n, string(fields[1]), true
}
