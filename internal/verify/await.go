package verify

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"syscall"
	"time"

	"github.com/freshet-cache/freshet/internal/devstack"
	"github.com/freshet-cache/freshet/internal/history"
)

// The await points of a program are where it waits for the network. They are had from outside, one by
// one: the proxies of a replica hold the k-th chunk of bytes that passes in either direction while the
// replica does one thing, for k = 1, 2, ... until it is done before its k-th chunk.
const (
	victims    = 3               // replicas at once that suffer
	awaitMost  = 200             // chunks; what takes more does not end
	standstill = 3 * time.Second // of a stopped replica
	awaitLimit = 10 * time.Second
	awaitHeal  = 25 * time.Second // after which no further point is begun
)

// points hands out the await points to those who go through them, until one has found the end.
type points struct {
	mu   sync.Mutex
	next int
	end  int // the first that does not exist; 0 = not known
	done int // that were gone through
}

func (p *points) take() (point int, ok bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.end > 0 || p.next >= awaitMost {
		return 0, false
	}
	p.next++
	return p.next, true
}

// over says what became of a point.
func (p *points) over(point int, reached bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if reached {
		p.done++
	} else if p.end == 0 || point < p.end {
		p.end = point
	}
}

// enumerate has victims go through all await points at once. Its heal waits until they are through, or for
// awaitHeal.
func enumerate(ctx context.Context, s *stand, suffer func(ctx context.Context, victim *site, point int) (reached bool, err error), said string) (func(context.Context) error, error) {
	all := &points{}
	var suffering []*site
	for range victims {
		victim, err := s.addSite()
		if err != nil {
			for _, v := range suffering {
				s.removeSite(v)
			}
			return nil, err
		}
		victim.idle = true
		suffering = append(suffering, victim)
	}
	var work sync.WaitGroup
	quit, stop := context.WithCancel(ctx)
	errs := make([]error, victims)
	for i, victim := range suffering {
		work.Go(func() {
			defer s.removeSite(victim)
			for {
				point, ok := all.take()
				if !ok || quit.Err() != nil {
					return
				}
				reached, err := suffer(ctx, victim, point)
				if err != nil {
					errs[i] = fmt.Errorf("await point %d: %w", point, err)
					return
				}
				all.over(point, reached)
			}
		})
	}
	return func(context.Context) error {
		defer stop()
		patience := time.AfterFunc(awaitHeal, stop)
		defer patience.Stop()
		work.Wait()
		s.note("%d %s", all.done, said)
		return errors.Join(errs...)
	}, nil
}

// hold has a replica do something while the k-th chunk is held. It calls when as soon as the chunk is
// held, which decides what happens to it, and reports false if the replica was done before. outcome is
// what came of the request.
func hold(ctx context.Context, victim *site, k int, r request, when func(b *devstack.Breakpoint) error) (outcome reply, reached bool, failed, err error) {
	p := victim.here()
	b, err := devstack.Break(k, nil, victim.links.all()...)
	if err != nil {
		return reply{}, false, nil, err
	}
	defer b.Deliver()
	ctx, cancel := context.WithTimeout(ctx, awaitLimit)
	defer cancel()
	type result struct {
		reply reply
		err   error
	}
	done := make(chan result, 1)
	go func() {
		answer, err := p.ask(ctx, r)
		done <- result{answer, err}
	}()
	select {
	case <-b.Held():
		if err := when(b); err != nil {
			return reply{}, true, nil, err
		}
		got := <-done
		return got.reply, true, got.err, nil
	case got := <-done:
		return got.reply, false, got.err, nil
	}
}

// killInWrites kills replicas at every await point of a write.
func killInWrites(ctx context.Context, s *stand) (func(context.Context) error, error) {
	c := s.choices()
	var mu sync.Mutex // of c
	suffer := func(ctx context.Context, victim *site, point int) (bool, error) {
		for _, deliver := range []bool{false, true} {
			if victim.here() == nil {
				if err := victim.start(ctx); err != nil {
					return false, err
				}
			}
			mu.Lock()
			key := c.key()
			change := Change{Kind: Set, Key: key, Group: c.home(key), Op: s.ledger.number(), Sent: Now()}
			mu.Unlock()
			answer, reached, failed, err := hold(ctx, victim, point, request{Verb: verbWrite, Change: change}, func(b *devstack.Breakpoint) error {
				victim.kill()
				if deliver {
					b.Deliver()
				} else {
					b.Drop()
				}
				return nil
			})
			if err != nil {
				return false, err
			}
			acked := history.Never
			if failed == nil {
				acked = answer.Returned
			}
			s.ledger.wrote(history.Write{Op: change.Op, Keys: change.keys(), Sent: change.Sent, Acked: acked})
			if !reached && failed == nil {
				return false, nil
			}
		}
		return true, nil
	}
	return enumerate(ctx, s, suffer, "await points of a write at which a replica was killed, twice each")
}

// stopInLoads stops replicas at every await point of a load, and changes the row meanwhile.
func stopInLoads(ctx context.Context, s *stand) (func(context.Context) error, error) {
	suffer := func(ctx context.Context, victim *site, point int) (bool, error) {
		if victim.here() == nil {
			if err := victim.start(ctx); err != nil {
				return false, err
			}
		}
		p := victim.here()
		key := uint64(point)
		write := func() error {
			limited, cancel := context.WithTimeout(ctx, writeLimit)
			defer cancel()
			s.ledger.attempt(s.outside().change(limited, Change{Kind: Set, Key: key, Group: 1 + key%s.options.groups()}))
			return nil
		}
		// Nobody has it in a state that counts: with a budget of 0 it is loaded.
		if err := write(); err != nil {
			return false, err
		}
		answer, reached, failed, err := hold(ctx, victim, point, request{Verb: verbGet, Key: key}, func(b *devstack.Breakpoint) error {
			if err := p.signal(syscall.SIGSTOP); err != nil {
				return err
			}
			b.Deliver()
			wait(ctx, standstill/2)
			err := write()
			wait(ctx, standstill/2)
			return errors.Join(err, p.signal(syscall.SIGCONT))
		})
		if err != nil {
			return reached, err
		}
		if failed == nil {
			s.ledger.read(history.Read{
				Key: key, Op: answer.Answer.Op, Fresh: answer.Answer.Fresh, Tier: answer.Answer.Tier, Replica: p.number,
				Invoked: answer.Invoked, Returned: answer.Returned,
			})
		}
		// What it holds now, it is held to, too.
		after, err := p.ask(ctx, request{Verb: verbGet, Key: key, Budget: longBudget})
		if err == nil {
			s.ledger.read(history.Read{
				Key: key, Op: after.Answer.Op, Fresh: after.Answer.Fresh, Tier: after.Answer.Tier, Replica: p.number,
				Budget: longBudget, Invoked: after.Invoked, Returned: after.Returned,
			})
		}
		return reached || failed != nil, nil
	}
	return enumerate(ctx, s, suffer, "await points of a load at which a replica stood still")
}
