package verify

import (
	"context"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/freshet-cache/freshet/internal/history"
)

// The shape of the load.
const (
	readers     = 6               // goroutines that share the rate
	burst       = 16              // their reads in a row, so that few timers are needed
	strict      = 2               // goroutines that ask for budget 0, each read a poll if nobody shares it
	strictRate  = 60              // reads per second of each
	writers     = 2               // goroutines, each a session that reads what it wrote
	readLimit   = 6 * time.Second // longer than a load may take
	writeLimit  = 6 * time.Second
	moodTime    = 400 * time.Millisecond // then a replica asks for other budgets
	listShare   = 0.04
	jointShare  = 0.03 // half of them of all accounts
	removeShare = 0.06 // of writes
	renameShare = 0.04
	moneyShare  = 0.10
	moveShare   = 0.10 // of the writes that set a row: into another category
	skew        = 1.1  // of the Zipf distribution of keys
	skewFlat    = 8    // its constant: how many keys are about as hot as the hottest
)

// The budgets of reads.
const (
	shortBudget = 50 * time.Millisecond
	longBudget  = time.Second
)

// load is reads and writes on one replica, in closed loop, until it is stopped.
type load struct {
	config  loadConfig
	setup   setup
	subject Subject
	history *history.Recorder
	began   time.Duration

	end  context.CancelFunc
	work sync.WaitGroup

	mu     sync.Mutex
	counts loadCounts
	writes uint64 // begun
}

func startLoad(ctx context.Context, s setup, c loadConfig, subject Subject) (*load, error) {
	recorder, err := history.Create(c.File)
	if err != nil {
		return nil, err
	}
	ctx, end := context.WithCancel(ctx)
	l := &load{config: c, setup: s, subject: subject, history: recorder, began: Now(), end: end}
	for i := range uint64(readers) {
		l.work.Go(func() { l.read(ctx, i) })
	}
	for i := range uint64(strict) {
		l.work.Go(func() { l.readStrictly(ctx, readers+i) })
	}
	if c.Writes > 0 {
		for i := range uint64(writers) {
			l.work.Go(func() { l.write(ctx, i) })
		}
	}
	return l, nil
}

// stop ends the load and returns when its history is in the file.
func (l *load) stop() (loadCounts, error) {
	l.end()
	l.work.Wait()
	err := l.history.Close()
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.counts, err
}

// choices are the random ones of one goroutine.
type choices struct {
	*rand.Rand
	zipf         *rand.Zipf
	keys, groups uint64
}

func newChoices(seed, stream, keys, groups uint64) *choices {
	r := rand.New(rand.NewPCG(seed, stream)) //nolint:gosec // choices of a load
	return &choices{r, rand.NewZipf(r, skew, skewFlat, keys-1), keys, groups}
}

func (c *choices) key() uint64   { return 1 + c.zipf.Uint64() }
func (c *choices) group() uint64 { return 1 + c.zipf.Uint64()%c.groups }

// mood is what readers ask for by now. Moods change for all of a replica at once, so that there are times
// in which nobody asks for budget 0, or for less than a second, and the replica learns by its own polls
// only.
func (l *load) mood() (zero, short bool) {
	mood := (uint64(Now()/moodTime)*0x9e3779b97f4a7c15 ^ l.config.Seed*0xbf58476d1ce4e5b9) >> 32 % 4
	return mood >= 2, mood >= 1
}

// read is one reader: bursts of reads, as many as the rate allows.
func (l *load) read(ctx context.Context, i uint64) {
	c := newChoices(l.config.Seed, i, l.setup.Keys, l.setup.Groups)
	pace := newPace(l.config.Rate / readers / burst)
	for pace.wait(ctx) {
		_, short := l.mood()
		for range burst {
			budget := longBudget
			if short && c.IntN(2) == 0 {
				budget = shortBudget
			}
			l.readOne(ctx, c, budget)
			if ctx.Err() != nil {
				return
			}
		}
	}
}

// readStrictly is one reader with a budget of 0.
func (l *load) readStrictly(ctx context.Context, i uint64) {
	c := newChoices(l.config.Seed, i, l.setup.Keys, l.setup.Groups)
	pace := newPace(strictRate)
	for pace.wait(ctx) {
		if zero, _ := l.mood(); zero {
			l.readOne(ctx, c, 0)
		}
	}
}

func (l *load) readOne(ctx context.Context, c *choices, budget time.Duration) {
	switch p := c.Float64(); {
	case p < listShare:
		l.list(ctx, c.group(), budget)
		return
	case p < listShare+jointShare/2:
		l.join(ctx, c.account(), budget)
		return
	case p < listShare+jointShare:
		l.join(ctx, c.key(), budget)
		return
	}
	l.get(ctx, c.key(), Want{Budget: budget, Lenient: budget == longBudget && c.IntN(2) == 0}, 0)
}

func (l *load) get(ctx context.Context, key uint64, want Want, session uint64) {
	limited, cancel := context.WithTimeout(ctx, readLimit)
	defer cancel()
	invoked := Now()
	a, err := l.subject.Get(limited, key, want)
	returned := Now()
	if !l.count(ctx, invoked, returned, err) {
		return
	}
	l.history.Read(history.Read{
		Key: key, Op: a.Op, Fresh: a.Fresh, Budget: want.Budget, Invoked: invoked, Returned: returned,
		Replica: l.setup.At.Replica, Session: session, Tier: a.Tier,
	})
}

func (l *load) list(ctx context.Context, group uint64, budget time.Duration) {
	limited, cancel := context.WithTimeout(ctx, readLimit)
	defer cancel()
	invoked := Now()
	a, err := l.subject.List(limited, group, Want{Budget: budget})
	returned := Now()
	if !l.count(ctx, invoked, returned, err) {
		return
	}
	l.history.List(listOf(group, a, history.List{
		Budget: budget, Invoked: invoked, Returned: returned, Replica: l.setup.At.Replica,
	}))
}

// join reads several rows as of one moment, if the subject can.
func (l *load) join(ctx context.Context, key uint64, budget time.Duration) {
	subject, can := l.subject.(Joiner)
	if !can {
		return
	}
	limited, cancel := context.WithTimeout(ctx, readLimit)
	defer cancel()
	invoked := Now()
	a, err := subject.Join(limited, key, Want{Budget: budget})
	returned := Now()
	if !l.count(ctx, invoked, returned, err) {
		return
	}
	joint := history.Joint{Fresh: a.Fresh, Budget: budget, Invoked: invoked, Returned: returned, Replica: l.setup.At.Replica}
	for _, r := range a.Rows {
		joint.Entries = append(joint.Entries, history.Entry{Key: r.Key, Op: r.Op})
		joint.Sum += r.Balance
	}
	if key >= firstAccount {
		joint.Total = Accounts * balance
	}
	l.history.Joint(joint)
}

// listOf completes the labels of a list with the answer.
func listOf(group uint64, a ListAnswer, l history.List) history.List {
	l.Group, l.Fresh, l.Tier = group, a.Fresh, a.Tier
	l.Entries = make([]history.Entry, len(a.Rows))
	for i, r := range a.Rows {
		l.Entries[i] = history.Entry{Key: r.Key, Op: r.Op}
	}
	return l
}

// count counts a read and reports whether there is an answer to note.
func (l *load) count(ctx context.Context, invoked, returned time.Duration, err error) bool {
	if ctx.Err() != nil {
		return false // the load ends; such an answer may have been cut short
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.counts.Reads++
	l.counts.Slowest = max(l.counts.Slowest, returned-invoked)
	if err == nil {
		return true
	}
	l.history.Failure(history.Failure{At: invoked, Replica: l.setup.At.Replica})
	if l.counts.Errors++; l.counts.Errors == 1 {
		l.counts.First = err.Error()
	}
	return false
}

// write is one writer: a session that writes a row and reads it again on this replica, which needs no
// token for that.
func (l *load) write(ctx context.Context, i uint64) {
	c := newChoices(l.config.Seed, readers+strict+i, l.setup.Keys, l.setup.Groups)
	session := uint64(l.setup.At.Replica)<<32 | (i + 1)
	pace := newPace(l.config.Writes / writers)
	for pace.wait(ctx) {
		change := c.change()
		if c.Float64() < moneyShare {
			change = c.transfer()
		}
		l.mu.Lock()
		l.writes++
		change.Op = l.config.Base + l.writes
		l.mu.Unlock()
		change.Sent = Now()
		limited, cancel := context.WithTimeout(ctx, writeLimit)
		_, err := l.subject.Write(limited, change)
		acked := Now()
		cancel()
		l.mu.Lock()
		l.counts.Writes++
		if err != nil {
			l.counts.WriteErrors++
			acked = history.Never
		}
		l.mu.Unlock()
		l.history.Write(history.Write{Op: change.Op, Keys: change.keys(), Sent: change.Sent, Acked: acked, Session: session, Idle: change.Kind != Set})
		if change.Kind == Transfer {
			l.join(ctx, change.Key, longBudget)
			continue
		}
		l.get(ctx, change.Key, Want{Budget: longBudget}, session)
	}
}

// change is a random one, without its number and time.
func (c *choices) change() Change {
	key := c.key()
	switch p := c.Float64(); {
	case p < removeShare:
		return Change{Kind: Remove, Key: key}
	case p < removeShare+renameShare:
		return Change{Kind: Rename, Key: key, To: 1 + key%c.keys}
	default:
		return Change{Kind: Set, Key: key, Group: c.home(key)}
	}
}

// account is one of the accounts.
func (c *choices) account() uint64 { return firstAccount + c.Uint64N(Accounts) }

// transfer is a random one, without its number and time.
func (c *choices) transfer() Change {
	from, to := c.account(), c.account()
	if from == to {
		to = firstAccount + (to+1)%Accounts
	}
	return Change{Kind: Transfer, Key: from, To: to, Money: c.Int64N(100)}
}

// home is the category that a row belongs to, mostly.
func (c *choices) home(key uint64) uint64 {
	if c.Float64() < moveShare {
		return c.group()
	}
	return 1 + key%c.groups
}

// pace is a rate that is not made up for when it could not be kept.
type pace struct {
	every time.Duration
	next  time.Time
	timer *time.Timer
}

func newPace(perSecond float64) *pace {
	timer := time.NewTimer(0)
	<-timer.C
	return &pace{every: time.Duration(float64(time.Second) / max(perSecond, 1e-3)), next: time.Now(), timer: timer}
}

// wait returns at the next time, and false when ctx has ended.
func (p *pace) wait(ctx context.Context) bool {
	now := time.Now()
	p.next = p.next.Add(p.every)
	if now.Sub(p.next) > 100*time.Millisecond {
		p.next = now
	}
	if d := p.next.Sub(now); d > 0 {
		p.timer.Reset(d)
		select {
		case <-p.timer.C:
		case <-ctx.Done():
		}
	}
	return ctx.Err() == nil
}
