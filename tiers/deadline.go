package tiers

import (
	"context"
	"sync"
	"time"
)

// deadline is the context of one call to L2. It is over after the Timeout or at the caller's own
// deadline, whichever comes first. A cancellation by the caller does not end it: no call lasts longer
// than Timeout anyway, and listening would take a lock of the caller's context in every call.
//
// It exists because a hit in L2 takes some 10 µs, and [context.WithTimeout] would be a tenth of that.
type deadline struct {
	at     time.Time
	caller context.Context //nolint:containedctx // d is a context itself; this is its parent, asked once the call has failed
	capped bool            // at is the caller's deadline
	done   chan struct{}   // closed by timer
	timer  *time.Timer
}

// deadlines are deadlines whose time never came, to be used again.
type deadlines struct{ pool sync.Pool }

func (p *deadlines) start(caller context.Context, timeout time.Duration) *deadline {
	at, capped := time.Now().Add(timeout), false
	if own, ok := caller.Deadline(); ok && own.Before(at) {
		at, capped = own, true
		timeout = time.Until(own)
	}
	d, ok := p.pool.Get().(*deadline)
	if ok {
		d.timer.Reset(timeout)
	} else {
		done := make(chan struct{})
		d = &deadline{done: done, timer: time.AfterFunc(timeout, func() { close(done) })}
	}
	d.at, d.caller, d.capped = at, caller, capped
	return d
}

// end is called when nobody looks at d any more.
func (p *deadlines) end(d *deadline) {
	// Once the timer has fired, done is closed or is about to be: d has had its life.
	if d.timer.Stop() {
		d.caller = nil
		p.pool.Put(d)
	}
}

// callerGone is why the caller is no longer interested; nil if it is.
func (d *deadline) callerGone() error {
	if err := d.caller.Err(); err != nil {
		return err
	}
	if d.capped && d.Err() != nil {
		return context.DeadlineExceeded
	}
	return nil
}

func (d *deadline) Deadline() (time.Time, bool) { return d.at, true }

func (d *deadline) Done() <-chan struct{} { return d.done }

func (d *deadline) Err() error {
	select {
	case <-d.done:
		return context.DeadlineExceeded
	default:
		return nil
	}
}

func (d *deadline) Value(any) any { return nil }
