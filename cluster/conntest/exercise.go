package conntest

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"github.com/freshet-cache/freshet/cluster"
)

// Member is a connection with what a test must be able to do to it.
type Member interface {
	cluster.Conn
	// Cut takes the member off the bus and returns when it knows; Heal brings it back, and returns
	// when it can publish again and what was published before can no longer arrive.
	Cut()
	Heal()
	Close()
}

// Exercise checks what [cluster.Conn] promises. connect makes a member of one bus, without faults; the
// suite closes it.
func Exercise(t *testing.T, connect func(t *testing.T) Member) {
	t.Helper()
	for name, check := range map[string]func(*bus){
		"Delivers":     delivers,
		"OneAtATime":   oneAtATime,
		"FullQueue":    fullQueue,
		"Request":      request,
		"Disconnected": disconnected,
		"EndOfOne":     endOfOne,
		"Closed":       closedForGood,
	} {
		t.Run(name, func(t *testing.T) {
			check(&bus{t: t, connect: connect, subject: fmt.Sprintf("conntest.%d.%s", time.Now().UnixNano(), name)})
		})
	}
}

// patience is for what must happen: only a failing test waits so long.
const patience = 20 * time.Second

// bus is one test's view of the bus.
type bus struct {
	t       *testing.T
	connect func(t *testing.T) Member
	subject string
}

func (b *bus) member() Member {
	b.t.Helper()
	m := b.connect(b.t)
	b.t.Cleanup(m.Close)
	return m
}

func (b *bus) subscribe(c Member, deliver func(cluster.Message)) cluster.Subscription {
	b.t.Helper()
	s, err := c.Subscribe(b.subject, cluster.Queue{}, deliver)
	if err != nil {
		b.t.Fatal(err)
	}
	b.flush(c)
	return s
}

// listen collects what a member hears.
func (b *bus) listen(c Member) <-chan string {
	b.t.Helper()
	heard := make(chan string, 1000)
	b.subscribe(c, func(m cluster.Message) { heard <- string(m.Data) })
	return heard
}

func (b *bus) flush(c Member) {
	b.t.Helper()
	if err := c.Flush(patience); err != nil {
		b.t.Fatalf("flush: %v", err)
	}
}

func (b *bus) publish(c Member, text string) {
	b.t.Helper()
	if err := c.Publish(b.subject, []byte(text)); err != nil {
		b.t.Fatalf("publish: %v", err)
	}
}

func (b *bus) hears(heard <-chan string, want ...string) {
	b.t.Helper()
	var got []string
	for range want {
		select {
		case text := <-heard:
			got = append(got, text)
		case <-time.After(patience):
			b.t.Fatalf("heard %q and nothing more, want %q", got, want)
		}
	}
	if !slices.Equal(got, want) {
		b.t.Errorf("heard %q, want %q", got, want)
	}
}

// await returns when the signal comes.
func (b *bus) await(what string, signal <-chan struct{}) {
	b.t.Helper()
	select {
	case <-signal:
	case <-time.After(patience):
		b.t.Fatalf("waited in vain: %s", what)
	}
}

// soon is a context for what must come back without it.
func (b *bus) soon() (context.Context, context.CancelFunc) {
	return context.WithTimeout(b.t.Context(), patience)
}

func delivers(b *bus) {
	a, other := b.member(), b.member()
	own, first, second := b.listen(a), b.listen(other), b.listen(other)
	if err := a.Publish(b.subject+".else", []byte("of another subject")); err != nil {
		b.t.Error(err)
	}
	var want []string
	data := make([]byte, 0, 100)
	for i := range 100 {
		want = append(want, fmt.Sprint(i))
		data = fmt.Append(data[:0], i) // it may be changed as soon as Publish has returned
		if err := a.Publish(b.subject, data); err != nil {
			b.t.Fatal(err)
		}
	}
	for _, heard := range []<-chan string{own, first, second} {
		b.hears(heard, want...)
	}
	b.subscribe(other, func(m cluster.Message) {
		if m.Respond != nil {
			b.t.Error("a message that wants no answer can be answered")
		}
	})
	b.publish(a, "")
	b.hears(first, "")
}

func oneAtATime(b *bus) {
	a := b.member()
	var running atomic.Int32
	done := make(chan struct{}, 1000)
	b.subscribe(a, func(cluster.Message) {
		if running.Add(1) > 1 {
			b.t.Error("two messages are delivered at once")
		}
		for range 100 {
			_ = len(done)
		}
		running.Add(-1)
		done <- struct{}{}
	})
	for range 500 {
		b.publish(a, "x")
	}
	for range 500 {
		b.await("all are delivered", done)
	}
}

func fullQueue(b *bus) {
	a, slow := b.member(), b.member()
	fast := b.listen(a)
	const bound, n = 10, 100
	holding, release, heard := make(chan struct{}, n), make(chan struct{}), make(chan string, 2*n)
	s, err := slow.Subscribe(b.subject, cluster.Queue{Messages: bound}, func(m cluster.Message) {
		holding <- struct{}{}
		<-release
		heard <- string(m.Data)
	})
	if err != nil {
		b.t.Fatal(err)
	}
	b.flush(slow)
	b.publish(a, "0")
	b.await("the first is delivered", holding)
	for i := range n {
		b.publish(a, fmt.Sprint(i+1))
	}
	for range n + 1 { // in the queue of one, and so in that of the other, or soon
		<-fast
	}
	b.flush(slow) // everything before has come in
	close(release)
	for last := "0"; last != "end"; { // what is above the bound is lost, what comes later is not
		select {
		case last = <-heard:
		case <-time.After(10 * time.Millisecond):
			b.publish(a, "end")
		}
	}
	if lost := s.Dropped(); lost < n-bound-1 || lost > n {
		b.t.Errorf("%d of %d messages are counted as lost, with %d places", lost, n, bound)
	}
	if err := s.Close(); err != nil {
		b.t.Error(err)
	}
}

func request(b *bus) {
	a, other := b.member(), b.member()
	ctx, cancel := b.soon()
	defer cancel()
	if answer, err := a.Request(ctx, b.subject, nil); err == nil || ctx.Err() != nil {
		b.t.Errorf("nobody answered %q, %v", answer, err)
	}
	questions := make(chan cluster.Message, 10)
	b.subscribe(other, func(m cluster.Message) { questions <- m })
	go func() {
		m := <-questions
		for _, answer := range []string{"to " + string(m.Data), "again"} {
			if err := m.Respond([]byte(answer)); err != nil {
				b.t.Error(err)
			}
		}
	}()
	if answer, err := a.Request(ctx, b.subject, []byte("me")); err != nil || string(answer) != "to me" {
		b.t.Errorf("%q, %v", answer, err)
	}
	gone, leave := context.WithCancel(ctx)
	time.AfterFunc(time.Millisecond, leave)
	if answer, err := a.Request(gone, b.subject, []byte("you")); !errors.Is(err, context.Canceled) {
		b.t.Errorf("after the end of its context: %q, %v", answer, err)
	}
	if m := <-questions; m.Respond([]byte("late")) != nil {
		b.t.Error("an answer that nobody waits for is an error")
	}
}

func disconnected(b *bus) {
	a, other := b.member(), b.member()
	before, of := b.listen(a), b.listen(other)
	a.Cut()
	if err := a.Publish(b.subject, []byte("lost")); !errors.Is(err, cluster.ErrDisconnected) {
		b.t.Errorf("publishing without a connection: %v", err)
	}
	ctx, cancel := b.soon()
	defer cancel()
	if _, err := a.Request(ctx, b.subject, nil); err == nil || ctx.Err() != nil {
		b.t.Errorf("asking without a connection: %v", err)
	}
	if err := a.Flush(patience); err == nil || ctx.Err() != nil {
		b.t.Errorf("flushing without a connection: %v", err)
	}
	meanwhile := make(chan string, 10)
	if _, err := a.Subscribe(b.subject, cluster.Queue{}, func(m cluster.Message) { meanwhile <- string(m.Data) }); err != nil {
		b.t.Fatal(err)
	}
	b.publish(other, "unheard")
	b.hears(of, "unheard")
	a.Heal()
	b.flush(a)
	b.publish(other, "back")
	b.publish(a, "again")
	for _, heard := range []<-chan string{of, before, meanwhile} {
		got := map[string]bool{}
		for range 2 { // of two publishers, so in any order
			select {
			case text := <-heard:
				got[text] = true
			case <-time.After(patience):
				b.t.Fatalf("heard %v, want what was published after the cut", got)
			}
		}
		if !got["back"] || !got["again"] {
			b.t.Errorf("heard %v, want what was published after the cut", got)
		}
	}
}

func endOfOne(b *bus) {
	a := b.member()
	var ended atomic.Bool
	holding, release := make(chan struct{}, 1), make(chan struct{})
	s := b.subscribe(a, func(cluster.Message) {
		if ended.Load() {
			b.t.Error("a closed subscription delivers")
		}
		holding <- struct{}{}
		<-release
		if ended.Load() {
			b.t.Error("Close has returned during a delivery")
		}
	})
	heard := b.listen(a)
	b.publish(a, "1")
	b.publish(a, "2")
	b.hears(heard, "1", "2")
	b.await("the first is delivered", holding)
	closed := make(chan struct{})
	go func() {
		defer close(closed)
		if err := s.Close(); err != nil {
			b.t.Error(err)
		}
		ended.Store(true)
	}()
	close(release)
	for open := true; open; {
		select {
		case <-closed:
			open = false
		case <-holding: // the second may be delivered before the end
		case <-time.After(patience):
			b.t.Fatal("Close does not return")
		}
	}
	if err := s.Close(); err != nil {
		b.t.Errorf("closing again: %v", err)
	}
	b.publish(a, "3")
	b.hears(heard, "3")
}

func closedForGood(b *bus) {
	a := b.member()
	s := b.subscribe(a, func(cluster.Message) {})
	a.Close()
	a.Close()
	ctx, cancel := b.soon()
	defer cancel()
	if err := a.Publish(b.subject, nil); err == nil {
		b.t.Error("published over a closed connection")
	}
	if _, err := a.Subscribe(b.subject, cluster.Queue{}, func(cluster.Message) {}); err == nil {
		b.t.Error("subscribed over a closed connection")
	}
	if _, err := a.Request(ctx, b.subject, nil); err == nil || ctx.Err() != nil {
		b.t.Errorf("asked over a closed connection: %v", err)
	}
	if err := a.Flush(patience); err == nil {
		b.t.Error("flushed a closed connection")
	}
	if err := errors.Join(s.Close(), s.Close()); err != nil {
		b.t.Errorf("the subscription of a closed connection: %v", err)
	}
}
