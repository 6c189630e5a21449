package verify

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"syscall"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/freshet-cache/freshet/internal/devstack"
)

// fault is something that goes wrong.
type fault struct {
	name  string
	about string
	least time.Duration // it takes that long to show something; 0 = any time will do
	// lossy: commits that were acknowledged may be lost, as when a standby takes over that lacks them.
	lossy bool
	// inject brings the fault about and returns how to end it, which is called once. ctx lasts for the
	// phase.
	inject func(ctx context.Context, s *stand) (heal func(context.Context) error, err error)
}

// Fault names a fault and says what it is.
type Fault struct{ Name, About string }

// Faults are those that a run can inject, in the order in which it does.
func Faults() []Fault {
	var all []Fault
	for _, f := range catalogue() {
		all = append(all, Fault{f.name, f.about})
	}
	return all
}

func catalogue() []fault {
	var all []fault
	all = append(all, fault{name: "none", about: "nothing goes wrong", inject: func(context.Context, *stand) (func(context.Context) error, error) {
		return none, nil
	}})
	all = append(all, natsFaults()...)
	all = append(all, redisFaults()...)
	all = append(all, postgresFaults()...)
	all = append(all, processFaults()...)
	return append(all, partitionFaults()...)
}

// none ends a fault that has ended.
func none(context.Context) error { return nil }

// again does something every so often until the fault is healed.
func again(every time.Duration, do func(ctx context.Context, s *stand) error) func(context.Context, *stand) (func(context.Context) error, error) {
	return func(ctx context.Context, s *stand) (func(context.Context) error, error) {
		return during(ctx, func(ctx context.Context) error {
			pace := newPace(float64(time.Second) / float64(every))
			for pace.wait(ctx) {
				if err := do(ctx, s); err != nil && ctx.Err() == nil {
					return err
				}
			}
			return nil
		}), nil
	}
}

// during runs do until the returned heal is called, which returns its error.
func during(ctx context.Context, do func(ctx context.Context) error) (heal func(context.Context) error) {
	ctx, cancel := context.WithCancel(ctx)
	done := make(chan error, 1)
	go func() { done <- do(ctx) }()
	return func(context.Context) error {
		cancel()
		return <-done
	}
}

func natsFaults() []fault {
	return []fault{
		{
			name: "nats-outage", about: "the NATS server is gone", least: 5 * time.Second,
			inject: func(_ context.Context, s *stand) (func(context.Context) error, error) {
				return func(context.Context) error { return s.stack.NATS.Start() }, s.stack.NATS.Stop()
			},
		},
		{
			name: "nats-restarts", about: "the NATS server ends and starts again, twice a second", least: 3 * time.Second,
			inject: func(ctx context.Context, s *stand) (func(context.Context) error, error) {
				stop := during(ctx, func(ctx context.Context) error {
					pace := newPace(4)
					for up := false; pace.wait(ctx); up = !up {
						do := s.stack.NATS.Stop
						if up {
							do = s.stack.NATS.Start
						}
						if err := do(); err != nil {
							return err
						}
					}
					return nil
				})
				return func(ctx context.Context) error { return errors.Join(stop(ctx), s.stack.NATS.Start()) }, nil
			},
		},
		ofLinks("nats-half-open", "connections to NATS stay open but nothing passes", 5*time.Second,
			func(s *stand) []*devstack.Proxy { return s.links(toNATS) }, (*devstack.Proxy).Stall),
		{
			name: "nats-slow-consumer", about: "one replica gets 2 kB/s from NATS, messages that are no hints pile up, and the server cuts it off as a slow consumer", least: 5 * time.Second,
			inject: slowConsumer,
		},
		mishaps("hints-dropped", "half of the messages to each replica are lost", devstack.Mishaps{Drop: 0.5}),
		mishaps("hints-duplicated", "half of the messages to each replica come twice", devstack.Mishaps{Duplicate: 0.5, Delay: 20 * time.Millisecond}),
		mishaps("hints-reordered", "messages are up to 100 ms late, each by another time", devstack.Mishaps{Delay: 100 * time.Millisecond}),
		mishaps("hints-delayed", "messages are up to 3 s late, and a tenth is lost", devstack.Mishaps{Delay: 3 * time.Second, Drop: 0.1}),
		ofLinks("nats-slow", "what passes to and from NATS is half a second late", 3*time.Second,
			func(s *stand) []*devstack.Proxy { return s.links(toNATS) }, delayed(500*time.Millisecond)),
	}
}

// slowConsumer floods the subject of hints while one replica hardly reads.
func slowConsumer(ctx context.Context, s *stand) (func(context.Context) error, error) {
	server := s.stack.NATS
	if err := server.LimitPending(1<<20, 500*time.Millisecond); err != nil {
		return nil, err
	}
	restore := func(context.Context) error { return server.LimitPending(0, 0) }
	conn, err := nats.Connect(server.URL(), nats.MaxReconnects(-1))
	if err != nil {
		return nil, errors.Join(err, restore(ctx))
	}
	link := s.all()[0].links.nats
	link.Limit(devstack.Down, 2000)
	stop := during(ctx, func(ctx context.Context) error {
		pace := newPace(10)
		for pace.wait(ctx) {
			for range 16 {
				if err := conn.Publish("freshet."+s.app+".hint", make([]byte, 32<<10)); err != nil {
					return err
				}
			}
		}
		return nil
	})
	return func(ctx context.Context) error {
		err := stop(ctx)
		conn.Close()
		s.note("the server cut off %d slow consumers", server.SlowConsumers())
		link.Heal()
		return errors.Join(err, restore(ctx))
	}, nil
}

// mishaps is a fault of what NATS delivers to replicas.
func mishaps(name, about string, m devstack.Mishaps) fault {
	return fault{name: name, about: about, least: 3 * time.Second, inject: func(_ context.Context, s *stand) (func(context.Context) error, error) {
		sites := s.all()
		for _, site := range sites {
			site.links.nats.Meddle(devstack.Down, m)
		}
		return func(context.Context) error {
			for _, site := range sites {
				site.links.nats.Meddle(devstack.Down, devstack.Mishaps{})
			}
			return nil
		}, nil
	}}
}

// ofLinks is a fault of links.
func ofLinks(name, about string, least time.Duration, which func(*stand) []*devstack.Proxy, do func(*devstack.Proxy)) fault {
	return fault{name: name, about: about, least: least, inject: func(_ context.Context, s *stand) (func(context.Context) error, error) {
		links := which(s)
		for _, l := range links {
			do(l)
		}
		return func(context.Context) error {
			for _, l := range links {
				l.Heal()
			}
			return nil
		}, nil
	}}
}

func delayed(d time.Duration) func(*devstack.Proxy) {
	return func(p *devstack.Proxy) { p.Delay(d) }
}

// The servers that links lead to.
func toNATS(l links) []*devstack.Proxy     { return []*devstack.Proxy{l.nats.Proxy} }
func toRedis(l links) []*devstack.Proxy    { return l.redis.All() }
func toPostgres(l links) []*devstack.Proxy { return []*devstack.Proxy{l.postgres} }

// links are those of all replicas.
func (s *stand) links(to func(links) []*devstack.Proxy) []*devstack.Proxy {
	var all []*devstack.Proxy
	for _, site := range s.all() {
		all = append(all, to(site.links)...)
	}
	return all
}

func redisFaults() []fault {
	return []fault{
		{
			name: "redis-primary-killed", about: "a primary is killed whose replica lacks the last half second of writes, and takes over", least: 6 * time.Second,
			inject: func(ctx context.Context, s *stand) (func(context.Context) error, error) {
				n, err := s.primary() //nolint:contextcheck // Primary bounds itself to a second
				if err != nil {
					return nil, err
				}
				if err := s.stack.Redis.CutReplication(ctx, n); err != nil {
					return nil, err
				}
				newPace(2).wait(ctx)
				return s.restored(func(ctx context.Context) error {
					return errors.Join(n.Start(ctx), s.stack.Redis.HealReplication(ctx))
				}), n.Kill()
			},
		},
		{
			name: "redis-primary-paused", about: "a primary freezes for longer than the cluster waits, and comes back when its replica has taken over", least: 5 * time.Second,
			inject: func(_ context.Context, s *stand) (func(context.Context) error, error) {
				n, err := s.primary() //nolint:contextcheck // Primary bounds itself to a second
				if err != nil {
					return nil, err
				}
				return s.restored(func(context.Context) error { return n.Resume() }), n.Pause()
			},
		},
		{
			name: "redis-outage", about: "all six Redis servers are killed", least: 5 * time.Second,
			inject: func(_ context.Context, s *stand) (func(context.Context) error, error) {
				return s.restored(s.stack.Redis.StartAll), s.stack.Redis.KillAll()
			},
		},
		{
			name: "redis-old-dump", about: "all nodes are killed and come back with the data of two seconds ago", least: 6 * time.Second,
			inject: func(ctx context.Context, s *stand) (func(context.Context) error, error) {
				if err := s.stack.Redis.Save(ctx); err != nil {
					return nil, err
				}
				newPace(0.5).wait(ctx)
				return s.restored(none), s.stack.Redis.Restore(context.WithoutCancel(ctx))
			},
		},
		{name: "redis-flushed", about: "every primary is emptied, twice a second", inject: again(500*time.Millisecond, func(ctx context.Context, s *stand) error {
			return s.stack.Redis.Flush(ctx)
		})},
		{
			name: "redis-evicting", about: "each node has room for a few KiB, about 2 % of the rows", least: 3 * time.Second,
			inject: func(ctx context.Context, s *stand) (func(context.Context) error, error) {
				err := errors.Join(s.stack.Redis.Flush(ctx), s.stack.Redis.LimitMemory(ctx, 16<<10))
				return func(ctx context.Context) error { return s.stack.Redis.LimitMemory(ctx, 0) }, err
			},
		},
		{
			name: "redis-resharding", about: "slots move from primary to primary, with their keys", least: 4 * time.Second,
			inject: func(ctx context.Context, s *stand) (func(context.Context) error, error) {
				return during(ctx, func(ctx context.Context) error {
					moved := 0
					defer func() { s.note("%d slots moved", moved) }()
					for ctx.Err() == nil {
						to, err := s.primary() //nolint:contextcheck // Primary bounds itself to a second
						if err != nil {
							return err
						}
						slots := make([]uint16, 4)
						for i := range slots {
							slots[i] = uint16(rand.IntN(1 << 14))
						}
						// Not to be interrupted in the middle of a slot.
						if err := s.stack.Redis.Reshard(context.WithoutCancel(ctx), to, slots...); err != nil {
							return err
						}
						moved += len(slots)
					}
					return nil
				}), nil
			},
		},
		{
			name: "redis-moved", about: "all six nodes move to other addresses at once", least: 6 * time.Second,
			inject: func(ctx context.Context, s *stand) (func(context.Context) error, error) {
				return s.restored(none), s.stack.Redis.Move(context.WithoutCancel(ctx))
			},
		},
		ofLinks("redis-deaf", "commands reach Redis and are executed, but no reply comes back", 3*time.Second,
			func(s *stand) []*devstack.Proxy { return s.links(toRedis) }, func(p *devstack.Proxy) { p.HalfOpen(devstack.Down) }),
		ofLinks("redis-slow", "each round trip to Redis takes 200 ms longer", 3*time.Second,
			func(s *stand) []*devstack.Proxy { return s.links(toRedis) }, delayed(100*time.Millisecond)),
		ofLinks("redis-half-open", "connections to Redis stay open but nothing passes", 3*time.Second,
			func(s *stand) []*devstack.Proxy { return s.links(toRedis) }, (*devstack.Proxy).Stall),
	}
}

// primary is that of a random slot.
func (s *stand) primary() (*devstack.RedisNode, error) {
	var n *devstack.RedisNode
	err := errors.New("not asked")
	for tries := 0; err != nil && tries < 10; tries++ { // on a starved machine the answer takes long
		n, err = s.stack.Redis.Primary(uint16(rand.IntN(1 << 14)))
	}
	return n, err
}

// restored starts what was ended, and has the cluster whole before the phase ends.
func (s *stand) restored(start func(context.Context) error) func(context.Context) error {
	return func(ctx context.Context) error {
		s.afterwards(s.stack.Redis.WaitReady)
		return start(ctx)
	}
}

func postgresFaults() []fault {
	return []fault{
		{
			name: "postgres-killed", about: "Postgres and its backends are killed, and start again after a second", least: 3 * time.Second,
			inject: func(ctx context.Context, s *stand) (func(context.Context) error, error) {
				if err := s.stack.Postgres.Kill(); err != nil {
					return nil, err
				}
				starting := during(ctx, func(ctx context.Context) error {
					newPace(1).wait(ctx)
					return s.stack.Postgres.Start(context.WithoutCancel(ctx))
				})
				return starting, nil
			},
		},
		{
			name: "postgres-outage", about: "Postgres is shut down for 10 s", least: 10 * time.Second,
			inject: func(_ context.Context, s *stand) (func(context.Context) error, error) {
				return s.stack.Postgres.Start, s.stack.Postgres.Stop()
			},
		},
		{
			name: "postgres-paused", about: "Postgres freezes: connections stay open, nothing answers", least: 6 * time.Second,
			inject: func(_ context.Context, s *stand) (func(context.Context) error, error) {
				return func(context.Context) error { return s.stack.Postgres.Resume() }, s.stack.Postgres.Pause()
			},
		},
		{
			name: "postgres-failover", about: "the primary is killed, and a standby takes over that lacks the last second of commits", least: 4 * time.Second, lossy: true,
			inject: func(ctx context.Context, s *stand) (func(context.Context) error, error) {
				if err := s.stack.Postgres.Standby(ctx); err != nil {
					return nil, err
				}
				if err := s.stack.Postgres.CutReplication(ctx); err != nil {
					return nil, err
				}
				newPace(1).wait(ctx)
				moved, err := s.stack.Postgres.Failover(context.WithoutCancel(ctx))
				s.lostUntil = Now()
				s.note("nobody served for %v", moved.Serves.Sub(moved.Killed).Round(time.Millisecond))
				return none, err
			},
		},
		ofLinks("postgres-slow", "each round trip to Postgres takes 200 ms longer", 3*time.Second,
			func(s *stand) []*devstack.Proxy { return s.links(toPostgres) }, delayed(100*time.Millisecond)),
		{
			name: "postgres-idle-in-transaction", about: "writers stay idle in their transactions, and commit in the end", least: 5 * time.Second,
			inject: func(ctx context.Context, s *stand) (func(context.Context) error, error) {
				release := make(chan struct{})
				var holding sync.WaitGroup
				errs := make([]error, 3)
				for i := range errs {
					// Rows that are seldom written: who writes them waits.
					holding.Go(func() { errs[i] = s.outside().hold(ctx, s.options.keys()-uint64(i), release) })
				}
				return func(context.Context) error {
					close(release)
					holding.Wait()
					return errors.Join(errs...)
				}, nil
			},
		},
		{name: "postgres-key-changes", about: "primary keys change all the time", inject: again(10*time.Millisecond, func(ctx context.Context, s *stand) error {
			c := s.choices()
			key := c.key()
			to := c.key()
			if to == key {
				to = 1 + key%c.keys
			}
			s.ledger.attempt(s.outside().change(ctx, Change{Kind: Rename, Key: key, To: to}))
			return nil
		})},
		{name: "postgres-delete-insert", about: "the hottest rows are deleted and inserted all the time, by several writers at once", inject: func(ctx context.Context, s *stand) (func(context.Context) error, error) {
			return during(ctx, func(ctx context.Context) error {
				var racing sync.WaitGroup
				for range 3 {
					racing.Go(func() {
						c := s.choices()
						pace := newPace(60)
						for pace.wait(ctx) {
							key := 1 + c.Uint64N(16)
							do := Change{Kind: Remove, Key: key}
							if c.IntN(2) == 0 {
								do = Change{Kind: Set, Key: key, Group: c.home(key)}
							}
							s.ledger.attempt(s.outside().change(ctx, do))
						}
					})
				}
				racing.Wait()
				return nil
			}), nil
		}},
		{name: "postgres-copy", about: "rows are replaced by COPY, a hundred at a time", inject: again(100*time.Millisecond, func(ctx context.Context, s *stand) error {
			c := s.choices()
			s.ledger.attempt(s.outside().replace(ctx, c, true, c.some(100)...))
			return nil
		})},
		{name: "postgres-truncate", about: "the table is truncated and filled again, in one transaction", inject: again(time.Second, func(ctx context.Context, s *stand) error {
			s.ledger.attempt(s.outside().truncate(ctx, s.choices()))
			return nil
		})},
		{name: "postgres-bulk-update", about: "one statement updates every row", inject: again(500*time.Millisecond, func(ctx context.Context, s *stand) error {
			s.ledger.attempt(s.outside().update(ctx))
			return nil
		})},
	}
}

func processFaults() []fault {
	return []fault{
		{
			name: "replica-killed", about: "replicas are killed, one after the other, and start again", least: 4 * time.Second,
			inject: func(ctx context.Context, s *stand) (func(context.Context) error, error) {
				sites := s.all()
				return during(ctx, func(ctx context.Context) error {
					pace := newPace(1)
					for i := 0; pace.wait(ctx); i++ {
						victim := sites[i%len(sites)]
						victim.kill()
						if err := victim.start(context.WithoutCancel(ctx)); err != nil {
							return err
						}
					}
					return nil
				}), nil
			},
		},
		{
			name: "replica-killed-in-write", about: "replicas are killed at every await point of a write: when the k-th chunk of bytes passes, which is lost or still delivered", least: 8 * time.Second,
			inject: killInWrites,
		},
		{
			name: "replica-stopped-in-load", about: "replicas stand still for 3 s at every await point of a load, longer than every budget and lease", least: 10 * time.Second,
			inject: stopInLoads,
		},
		{
			name: "replica-stopped", about: "a replica stands still (SIGSTOP) for 3 s, longer than every budget and lease, and goes on", least: 3 * time.Second,
			inject: func(_ context.Context, s *stand) (func(context.Context) error, error) {
				p := s.all()[0].here()
				if p == nil {
					return nil, errGone
				}
				return func(context.Context) error { return p.signal(syscall.SIGCONT) }, p.signal(syscall.SIGSTOP)
			},
		},
		{
			name: "replica-joins", about: "a replica joins, serves, and leaves again, while NATS restarts", least: 5 * time.Second,
			inject: func(ctx context.Context, s *stand) (func(context.Context) error, error) {
				return during(ctx, func(ctx context.Context) error {
					pace := newPace(1)
					for up := true; pace.wait(ctx); up = !up {
						do := s.stack.NATS.Start
						if up {
							do = s.stack.NATS.Stop
						}
						if err := errors.Join(do(), s.visit(ctx)); err != nil {
							return err
						}
					}
					return s.stack.NATS.Start()
				}), nil
			},
		},
	}
}

// visit has one more replica serve for a while.
func (s *stand) visit(ctx context.Context) error {
	guest, err := s.addSite()
	if err != nil {
		return err
	}
	defer s.removeSite(guest)
	if err := guest.start(context.WithoutCancel(ctx)); err != nil {
		return err
	}
	newPace(2).wait(ctx)
	return guest.leave(context.WithoutCancel(ctx))
}

// partitionFaults are those of one replica alone and one server.
func partitionFaults() []fault {
	var all []fault
	for _, server := range []struct {
		name string
		to   func(links) []*devstack.Proxy
	}{{"postgres", toPostgres}, {"redis", toRedis}, {"nats", toNATS}} {
		which := func(s *stand) []*devstack.Proxy { return server.to(s.all()[0].links) }
		all = append(all,
			ofLinks("partition-"+server.name+"-cut", fmt.Sprintf("one replica's connections to %s break, and new ones are refused", server.name), 3*time.Second, which, (*devstack.Proxy).Cut),
			ofLinks("partition-"+server.name+"-mute", fmt.Sprintf("nothing of one replica reaches %s; connections stay open", server.name), 3*time.Second, which,
				func(p *devstack.Proxy) { p.HalfOpen(devstack.Up) }),
			ofLinks("partition-"+server.name+"-deaf", fmt.Sprintf("%s hears one replica, which hears nothing; connections stay open", server.name), 3*time.Second, which,
				func(p *devstack.Proxy) { p.HalfOpen(devstack.Down) }),
			ofLinks("partition-"+server.name+"-stall", fmt.Sprintf("between one replica and %s nothing passes; connections stay open", server.name), 3*time.Second, which, (*devstack.Proxy).Stall),
			ofLinks("partition-"+server.name+"-delay", fmt.Sprintf("between one replica and %s everything takes 150 ms, each way", server.name), 2*time.Second, which, delayed(150*time.Millisecond)),
		)
	}
	return all
}
