package node

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"
)

// cleanup is the clean-up in the background of a node.
type cleanup struct {
	work sync.WaitGroup // the one under way

	mu     sync.Mutex
	status CleanStatus
	stop   context.CancelCauseFunc // ends the one under way; nil = there is none
	ended  chan struct{}           // closed when that has ended
}

// CleanStatus is how far the last clean-up of [Node.StartClean] has come. It is made for JSON.
type CleanStatus struct {
	Running bool `json:"running"`
	// What it is about: [Clean.Namespace], whether Prefix or Pattern picks ids, OldGenerations, Invalidate.
	Namespace      string `json:"namespace"`
	SomeIDs        bool   `json:"some_ids"`
	OldGenerations bool   `json:"old_generations"`
	Invalidate     bool   `json:"invalidate"`

	Began time.Time `json:"began,omitzero"` // zero = there was none since the node was opened
	Ended time.Time `json:"ended,omitzero"` // zero = it runs
	// What it has done, as [Cleaned].
	Scanned     int64 `json:"scanned"`
	Removed     int64 `json:"removed"`
	Invalidated int64 `json:"invalidated"`
	// Primary is the one that it goes through, and so many of its keys it has to go through, and has, about.
	Primary        string `json:"primary"`
	PrimaryKeys    int64  `json:"primary_keys"`
	PrimaryScanned int64  `json:"primary_scanned"`
	// Error is why it ended before it was done, or why the last step failed, which is tried again; "" = it did not.
	Error string `json:"error,omitempty"`
}

// errStopped ends a clean-up.
var errStopped = errors.New("stopped")

// StartClean has the node do [Node.Clean] in the background, until it is done, fails, [Node.StopClean] or [Node.Close].
// A node does one at a time: another wraps [ErrConflict].
func (n *Node) StartClean(c Clean) error {
	w, err := n.cleaning(c)
	if err != nil {
		return err
	}
	n.mu.RLock() // Close waits for what has begun before it
	defer n.mu.RUnlock()
	if n.closed {
		return &Error{Op: "clean", Err: ErrClosed}
	}
	b := &n.cleanup
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.stop != nil {
		return fmt.Errorf("node: clean: %w: a clean-up is under way on this node", ErrConflict)
	}
	var ctx context.Context
	ctx, b.stop = context.WithCancelCause(n.life)
	b.ended = make(chan struct{})
	b.status = CleanStatus{
		Running: true, Namespace: c.Namespace, SomeIDs: c.Prefix != "" || c.Pattern != "", OldGenerations: c.OldGenerations,
		Invalidate: c.Invalidate, Began: time.Now(),
	}
	w.progress = func(p CleanProgress) {
		b.advance(w.done, p)
		if c.Progress != nil {
			c.Progress(p)
		}
	}
	b.work.Go(func() {
		done, err := w.clean(ctx)
		b.end(done, err)
		if err != nil {
			n.log.Warn("node: a clean-up ended before it was done", "namespace", c.Namespace, "removed", done.Removed, "error", err)
			return
		}
		n.log.Info("node: a clean-up is done", "namespace", c.Namespace, "removed", done.Removed, "scanned", done.Scanned)
	})
	return nil
}

func (b *cleanup) advance(done Cleaned, p CleanProgress) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.set(done, p.Err)
	b.status.Primary, b.status.PrimaryKeys, b.status.PrimaryScanned = p.Primary, p.Keys, p.Scanned
}

func (b *cleanup) end(done Cleaned, err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.set(done, err)
	b.status.Running, b.status.Ended = false, time.Now()
	b.stop(nil)
	b.stop = nil
	close(b.ended)
}

func (b *cleanup) set(done Cleaned, err error) {
	b.status.Scanned, b.status.Removed, b.status.Invalidated, b.status.Error = done.Scanned, done.Removed, done.Invalidated, ""
	if err != nil {
		b.status.Error = err.Error()
	}
}

// CleanStatus describes the clean-up of [Node.StartClean] that is under way, or the last one.
func (n *Node) CleanStatus() CleanStatus {
	b := &n.cleanup
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.status
}

// StopClean ends the clean-up that is under way, and returns when it has ended or ctx ends. It reports whether there
// was one.
func (n *Node) StopClean(ctx context.Context) (bool, error) {
	b := &n.cleanup
	b.mu.Lock()
	stop, ended := b.stop, b.ended
	b.mu.Unlock()
	if stop == nil {
		return false, nil
	}
	stop(errStopped)
	select {
	case <-ended:
		return true, nil
	case <-ctx.Done():
		return true, fmt.Errorf("node: the clean-up has been told to stop: %w", ctx.Err())
	}
}
