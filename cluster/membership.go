package cluster

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"sync/atomic"
	"time"
)

// MaxMembers bounds the members that one replica keeps, itself included. When so many are alive,
// further ones are not taken into the view (and counted, [MembershipStats.Crowded]) until another
// leaves.
const MaxMembers = 1024

const (
	defaultInterval = time.Second
	minInterval     = 10 * time.Millisecond
	maxInterval     = time.Minute

	// inboxLen is how many heartbeats may wait for Run; further ones are lost and counted.
	inboxLen = 2 * MaxMembers
	// leaveWait bounds how long the end of Run waits until the server has the announcement.
	leaveWait = 250 * time.Millisecond
)

// MembershipConfig configures a [Membership].
type MembershipConfig struct {
	// Conn is the bus, which its owner keeps and closes, after Run has returned. It may be
	// disconnected at any time. Nil = no bus: the view holds this replica alone.
	Conn Conn
	// App is the application, as in [NewKeys]. Required. Heartbeats travel on the subject
	// freshet.<app>.member.
	App string
	// Self is this replica: its ID and Boot, and Address if it has one. PollAge and Load are taken
	// from Report instead.
	Self Member
	// Report is called by Run before each heartbeat for what this replica has to say of itself; it
	// must not block. Nil = nothing but zeros.
	Report func() Report
	// OnHeartbeat, if not nil, is called by Run for each heartbeat that is news of another member,
	// its announcement of leaving included, with the sequence number of the last hint that its boot
	// had published by then. It must not block.
	OnHeartbeat func(boot, hintSeq uint64)
	// Interval is the time between two heartbeats, give or take a tenth: 10 ms to 1 min, 0 = 1 s.
	Interval time.Duration
	// Expire is how long a member may be silent before it leaves the view: at least 2 Interval,
	// 0 = 3.5 Interval, which outlasts two lost heartbeats.
	Expire time.Duration
	// Logger gets a line when a member comes, leaves or falls silent. Nil = slog.Default().
	Logger *slog.Logger
}

// Report is what a replica says of itself in each heartbeat.
type Report struct {
	PollAge time.Duration // age of its last successful poll of the log; below 0 counts as 0
	Load    uint64        // see [Member.Load]
	HintSeq uint64        // sequence number of the last coherence hint published by this boot; 0 = none yet
}

func (c MembershipConfig) interval() time.Duration { return cmp.Or(c.Interval, defaultInterval) }
func (c MembershipConfig) expire() time.Duration   { return cmp.Or(c.Expire, c.interval()*7/2) }
func (c MembershipConfig) logger() *slog.Logger    { return cmp.Or(c.Logger, slog.Default()) }

// check returns all that is wrong with the configuration.
func (c MembershipConfig) check() error {
	problems := []error{checkApp(c.App), c.Self.check()}
	if i := c.interval(); i < minInterval || i > maxInterval {
		problems = append(problems, fmt.Errorf("cluster: membership Interval is %v: want %v to %v, or 0 for %v", i, minInterval, maxInterval, defaultInterval))
	}
	if c.expire() < 2*c.interval() {
		problems = append(problems, fmt.Errorf("cluster: membership Expire is %v: want at least 2 Interval (%v), or 0 for 3.5 Interval", c.expire(), 2*c.interval()))
	}
	return errors.Join(problems...)
}

// Membership keeps the [View] of who is alive, by heartbeats. See the package documentation for what
// a View may be used for. Its methods may be called from any goroutine.
type Membership struct {
	config  MembershipConfig
	subject string
	log     *slog.Logger

	ran  atomic.Bool
	view atomic.Pointer[View] // set by Run only

	// Of Run alone.
	table     *table
	seq       uint64 // of the last heartbeat sent
	usurper   uint64 // boot of the last other run seen under this ID
	onPublish func() // for tests, that wait for a view: called after each one

	sent, sendErrors, heard, malformed, otherVersion, late, crowded, conflicts, dropped atomic.Uint64
}

// NewMembership checks the configuration, naming all its problems, and returns a Membership whose
// view is this replica alone until [Membership.Run] runs.
func NewMembership(c MembershipConfig) (*Membership, error) {
	if err := c.check(); err != nil {
		return nil, err
	}
	c.Self.PollAge, c.Self.Load = 0, 0
	m := &Membership{
		config:    c,
		subject:   "freshet." + c.App + ".member",
		log:       c.logger(),
		table:     newTable(c.Self, c.expire(), MaxMembers),
		onPublish: func() {},
	}
	m.view.Store(m.table.view())
	return m, nil
}

// View returns the current view; it never blocks and is never nil. After Run has returned it stays
// as it was then.
func (m *Membership) View() *View { return m.view.Load() }

// MembershipStats counts what happened since NewMembership.
type MembershipStats struct {
	Sent         uint64 // heartbeats handed to a connected bus
	SendErrors   uint64 // heartbeats not sent because the bus was away; they are not made up for
	Heard        uint64 // heartbeats that were news of another member
	Malformed    uint64 // messages refused since they are no heartbeats
	OtherVersion uint64 // messages refused since they are heartbeats of another version
	Late         uint64 // heartbeats ignored as doubled, out of order, or of an earlier boot
	Crowded      uint64 // heartbeats of a member ignored since there were [MaxMembers]
	Conflicts    uint64 // heartbeats of another process that uses this replica's ID
	Dropped      uint64 // messages lost since Run did not keep up
}

// Stats returns the counters.
func (m *Membership) Stats() MembershipStats {
	return MembershipStats{
		Sent:         m.sent.Load(),
		SendErrors:   m.sendErrors.Load(),
		Heard:        m.heard.Load(),
		Malformed:    m.malformed.Load(),
		OtherVersion: m.otherVersion.Load(),
		Late:         m.late.Load(),
		Crowded:      m.crowded.Load(),
		Conflicts:    m.conflicts.Load(),
		Dropped:      m.dropped.Load(),
	}
}

// Run sends heartbeats and listens to those of the others until ctx ends; then it announces that this
// replica leaves, waiting up to 250 ms for the bus, and returns nil. A bus that is away, from the
// start or later, is no error: the others then fall out of the view, and return with the bus. The
// error is about a second call (a boot joins once) or a connection that was closed for good.
func (m *Membership) Run(ctx context.Context) error {
	if m.ran.Swap(true) {
		return errors.New("cluster: Membership.Run was called before: make a new Membership with a later Boot")
	}
	inbox := make(chan []byte, inboxLen) // sent to by the subscription, never closed
	if m.config.Conn != nil {
		sub, err := m.config.Conn.Subscribe(m.subject, Queue{Messages: inboxLen}, func(message Message) {
			select {
			case inbox <- message.Data:
			default:
				m.dropped.Add(1)
			}
		})
		if err != nil {
			return err
		}
		defer func() {
			_ = sub.Close() // fails only if the connection is closed, which ends it as well
			m.dropped.Add(sub.Dropped())
		}()
	}
	defer m.leave()

	nextBeat := time.Now()
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case message := <-inbox:
			m.hear(message)
		case <-timer.C:
			// What waits in the inbox was in time: after a pause of this process, nobody may be
			// called silent before it is heard.
			for range len(inbox) {
				m.hear(<-inbox)
			}
			m.expireSilent()
			if now := time.Now(); !now.Before(nextBeat) {
				m.beat()
				nextBeat = now.Add(m.pause())
			}
			// A member that is heard from now on expires after the next beat, so the timer need not
			// be set again before.
			timer.Reset(time.Until(m.table.nextExpiry(nextBeat)))
		}
	}
}

// pause is the time to the next heartbeat: the interval give or take a tenth, so that replicas that
// were started together do not speak at once for ever.
func (m *Membership) pause() time.Duration {
	interval := m.config.interval()
	return interval*9/10 + rand.N(interval/5)
}

func (m *Membership) hear(message []byte) {
	h, err := decodeHeartbeat(message)
	switch {
	case errors.Is(err, errOtherVersion):
		m.otherVersion.Add(1)
		return
	case err != nil:
		m.malformed.Add(1)
		return
	}
	switch m.table.hear(h, time.Now()) {
	case noted:
	case joined:
		m.log.Info("member joined", "id", h.member.ID, "boot", h.member.Boot, "address", h.member.Address)
		m.publishView()
	case departed:
		m.log.Info("member left", "id", h.member.ID, "boot", h.member.Boot)
		m.publishView()
	case late:
		m.late.Add(1)
		return
	case crowded:
		m.crowded.Add(1)
		return
	case conflict:
		m.conflicts.Add(1)
		if h.member.Boot != m.usurper {
			m.usurper = h.member.Boot
			m.log.Warn("another process uses the ID of this member: give each replica its own",
				"id", h.member.ID, "boot", h.member.Boot, "address", h.member.Address)
		}
		return
	case echo:
		return
	}
	m.heard.Add(1)
	if m.config.OnHeartbeat != nil {
		m.config.OnHeartbeat(h.member.Boot, h.hintSeq)
	}
}

func (m *Membership) expireSilent() {
	silent := m.table.expireSilent(time.Now())
	for _, gone := range silent {
		m.log.Warn("member is silent", "id", gone.ID, "boot", gone.Boot, "address", gone.Address)
	}
	if len(silent) > 0 {
		m.publishView()
	}
}

// beat sends a heartbeat, and publishes the view again for the reports that came since the last one.
func (m *Membership) beat() {
	m.send(false)
	m.publishView()
}

func (m *Membership) leave() {
	if !m.send(true) {
		return
	}
	if err := m.config.Conn.Flush(leaveWait); err != nil {
		m.sendErrors.Add(1)
	}
}

// send says how this replica is. While the bus is away it says nothing, also not later, when it is no
// longer true.
func (m *Membership) send(leaving bool) (sent bool) {
	var r Report
	if m.config.Report != nil {
		r = m.config.Report()
	}
	m.table.self.PollAge, m.table.self.Load = max(r.PollAge, 0), r.Load
	conn := m.config.Conn
	if conn == nil {
		return false
	}
	m.seq++ // nobody misses the number of one that is not sent
	h := heartbeat{member: m.table.self, seq: m.seq, hintSeq: r.HintSeq, leaving: leaving}
	if err := conn.Publish(m.subject, h.append(make([]byte, 0, heartbeatMax))); err != nil {
		m.sendErrors.Add(1)
		return false
	}
	m.sent.Add(1)
	return true
}

func (m *Membership) publishView() {
	m.view.Store(m.table.view())
	m.onPublish()
}
