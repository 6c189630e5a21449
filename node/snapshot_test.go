package node_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/lib/pq"

	"github.com/freshet-cache/freshet/cluster"
	"github.com/freshet-cache/freshet/internal/devstack/stacktest"
	"github.com/freshet-cache/freshet/node"
)

// Account is a row of which transfers change two at a time, so that all balances together stay the same.
type Account struct {
	ID      string `json:"id"`
	Balance int64  `json:"balance"`
}

// The accounts: the last bankSize are in bank 2.
const (
	accounts     = 12
	bankSize     = 4
	accountTotal = 100 * accounts
	accountQuery = `select id, balance from accounts where id = any($1)`
)

// branch is a replica with caches of the accounts.
type branch struct {
	*replica
	site     *site
	accounts *node.Cache[Account]
	brief    *node.Cache[Account]
	funcs    *node.Cache[Account]
	banks    *node.QueryCache[[]Account]
}

// openBranches makes accounts and replicas that cache them.
func (s *site) openBranches(n int, change func(*node.Config, *node.CacheConfig[Thing])) []*branch {
	s.t.Helper()
	s.exec(`create table accounts (id text primary key, bank text not null, balance bigint not null)`)
	s.exec(fmt.Sprintf(`insert into accounts select 'account-' || n, case when n > %d then '2' else '1' end, 100 from generate_series(1, %d) n`,
		accounts-bankSize, accounts))
	s.exec(`select freshet.watch('accounts', namespace => 'account', tags => array['bank:{bank}'])`)
	var branches []*branch
	for _, r := range s.openAll(n, change) {
		b := &branch{replica: r, site: s}
		var errs [4]error
		b.accounts, errs[0] = node.NewCache(r.Node, node.CacheConfig[Account]{Namespace: "account", Source: node.SQL[Account](accountQuery)})
		b.brief, errs[1] = node.NewCache(r.Node, node.CacheConfig[Account]{Namespace: "account", View: "brief", Source: node.SQL[Account](accountQuery)})
		b.funcs, errs[2] = node.NewCache(r.Node, node.CacheConfig[Account]{Namespace: "account", View: "func", Source: node.Func(b.load)})
		b.banks, errs[3] = node.NewQueryCache(r.Node, node.QueryConfig[[]Account]{
			Namespace: "account", View: "bank",
			Query: func(p cluster.Params) (string, []any, error) {
				return `select json_agg(a) from (select id, balance from accounts where bank = $1) a`, []any{p["bank"]}, nil
			},
			Tags: func(p cluster.Params, _ []Account) []string { return []string{"bank:" + p["bank"]} },
		})
		if err := errors.Join(errs[:]...); err != nil {
			s.t.Fatal(err)
		}
		branches = append(branches, b)
	}
	return branches
}

func (b *branch) load(ctx context.Context, ids []string) (map[string]Account, error) {
	var rows []Account
	if err := b.DB().SelectContext(ctx, &rows, accountQuery, pq.Array(ids)); err != nil {
		return nil, err
	}
	found := map[string]Account{}
	for _, a := range rows {
		found[a.ID] = a
	}
	return found, nil
}

func accountIDs(from, to int) []string {
	var ids []string
	for n := from; n <= to; n++ {
		ids = append(ids, fmt.Sprintf("account-%d", n))
	}
	return ids
}

// The ways in which a branch adds up all accounts.
const (
	byMany    = iota // by one GetMany
	byCaches         // over two caches and a list
	byFunc           // and one that a function loads
	byNothing        // by one GetMany that promises nothing of one moment
	sumWays
)

// sum adds up all accounts.
func (b *branch) sum(ctx context.Context, way int, options ...node.ReadOption) (sum int64, moment node.Moment, err error) {
	if way == byMany || way == byNothing {
		if way == byMany {
			options = append(options, node.Consistent())
		}
		entries, err := b.accounts.GetMany(ctx, accountIDs(1, accounts), options...)
		for _, e := range entries {
			sum += e.Value.Balance
			if way == byMany && !moment.Token.IsZero() && moment.Age != e.Age {
				b.site.t.Errorf("entries of age %v and %v are of one moment", moment.Age, e.Age)
			}
			moment = node.Moment{Age: e.Age, Token: e.Token}
		}
		return sum, moment, err
	}
	moment, err = b.Snapshot(ctx, func(s *node.Snapshot) error {
		sum = 0
		some, err := b.accounts.ManyIn(s, accountIDs(1, 4))
		if err != nil {
			return err
		}
		for _, a := range some {
			sum += a.Balance
		}
		for n := 5; n <= accounts-bankSize; n++ {
			cache := b.brief
			if way == byFunc && n == 5 {
				cache = b.funcs
			}
			a, err := cache.In(s, fmt.Sprintf("account-%d", n))
			if err != nil {
				return err
			}
			sum += a.Balance
		}
		list, err := b.banks.In(s, cluster.Params{"bank": "2"})
		for _, a := range list {
			sum += a.Balance
		}
		return err
	}, options...)
	return sum, moment, err
}

// transfer moves an amount between two accounts, of any bank, in one transaction.
const transfer = `update accounts set balance = balance + case id when $1 then -$3::bigint else $3::bigint end where id in ($1, $2)`

// transfers are made all the time, half of them through branches, until stop.
type transfers struct {
	site   *site
	stop   context.CancelFunc
	ctx    context.Context //nolint:containedctx // its lifetime
	work   sync.WaitGroup
	made   atomic.Int64
	ended  [][sumWays]atomic.Int64 // reads with an answer, by branch and way
	failed atomic.Int64            // reads with none
	astray atomic.Int64            // sums that were not the total, of [byNothing]
}

// transfers starts them, and reads of all branches in all ways; allowed says that reads may fail now.
func (s *site) transfers(branches []*branch, allowed func() bool) *transfers {
	f := &transfers{site: s, ended: make([][sumWays]atomic.Int64, len(branches))}
	f.ctx, f.stop = context.WithCancel(s.t.Context())
	s.t.Cleanup(func() { f.stop(); f.work.Wait() })
	for n := range 2 {
		f.work.Go(func() {
			for f.ctx.Err() == nil {
				from := 1 + rand.IntN(accounts)
				to := 1 + (from+rand.IntN(accounts-1))%accounts
				args := []any{fmt.Sprintf("account-%d", min(from, to)), fmt.Sprintf("account-%d", max(from, to)), rand.Int64N(20) - 10}
				var err error
				if n == 0 {
					_, err = s.db.ExecContext(f.ctx, transfer, args...)
				} else {
					_, err = branches[rand.IntN(len(branches))].Write(f.ctx, func(tx *node.Tx) error {
						_, err := tx.ExecContext(f.ctx, transfer, args...)
						return err
					})
				}
				if err == nil {
					f.made.Add(1)
				}
				f.wait(rand.N(8 * time.Millisecond))
			}
		})
	}
	for i, b := range branches {
		for way := range sumWays {
			f.work.Go(func() { f.read(b, &f.ended[i][way], way, allowed) })
		}
	}
	return f
}

func (f *transfers) wait(d time.Duration) {
	select {
	case <-time.After(d):
	case <-f.ctx.Done():
	}
}

func (f *transfers) read(b *branch, ended *atomic.Int64, way int, allowed func() bool) {
	budgets := []time.Duration{0, 300 * time.Millisecond, time.Second}
	var token node.Token
	for f.ctx.Err() == nil {
		excused := allowed()
		sum, moment, err := b.sum(f.ctx, way, node.Within(budgets[rand.IntN(len(budgets))]), node.AtLeast(token))
		switch {
		case f.ctx.Err() != nil:
			return
		case err != nil:
			f.failed.Add(1)
			// What a function loads may change faster than it can be compared.
			if !excused && !allowed() && (way != byFunc || !errors.Is(err, node.ErrUncertain)) {
				f.site.t.Errorf("way %d: %v", way, err)
			}
			f.wait(10 * time.Millisecond)
			continue
		case sum != accountTotal && way != byNothing:
			f.site.t.Errorf("way %d: the sum wavers: %d, want %d", way, sum, accountTotal)
		case sum != accountTotal:
			f.astray.Add(1)
		}
		token = moment.Token
		ended.Add(1)
		f.wait(time.Millisecond)
	}
}

// progress waits until each branch has been read in each way so many times more.
func (f *transfers) progress(n int64) {
	f.site.t.Helper()
	goals := make([][sumWays]int64, len(f.ended))
	for i := range goals {
		for way := range sumWays {
			goals[i][way] = f.ended[i][way].Load() + n
		}
	}
	for i := range goals {
		for way, goal := range goals[i] {
			f.site.until(fmt.Sprintf("branch %d is read in way %d", i, way), func() bool { return f.ended[i][way].Load() >= goal })
		}
	}
}

// sums is how often all branches were read in the way.
func (f *transfers) sums(way int) (n int64) {
	for i := range f.ended {
		n += f.ended[i][way].Load()
	}
	return n
}

// I8: without writes, what is read as of one moment takes one poll at most, and none when all is in L1.
func TestI8ConsistentReadsCost(t *testing.T) {
	s := newSite(t)
	b := s.openBranches(2, func(c *node.Config, _ *node.CacheConfig[Thing]) {
		c.Postgres.PollInterval, c.Budget = 30*time.Second, time.Minute // no polls but those that reads wait for
	})
	for i, b := range b { // the first loads, the other finds everything in L2
		for round, most := range []uint64{1, 0, 0} {
			for _, way := range []int{byMany, byCaches, byFunc} {
				before := b.Stats()
				sum, moment, err := b.sum(t.Context(), way, node.Within(time.Minute))
				after := b.Stats()
				if err != nil || sum != accountTotal || moment.Age > time.Minute || moment.Token.IsZero() {
					t.Errorf("the sum is %d, %+v: %v", sum, moment, err)
				}
				polls, again := after.ConsistentPolls-before.ConsistentPolls, after.ConsistentRepeats-before.ConsistentRepeats
				if polls > most || again > 0 {
					t.Errorf("replica %d, round %d, way %d: %d polls and %d repeats, want at most %d and 0", i, round, way, polls, again, most)
				}
				// A load by a function takes two more.
				if all := after.Polls - before.Polls; all > most && (round > 0 || way != byFunc) {
					t.Errorf("replica %d, round %d, way %d: %d polls in all, want at most %d", i, round, way, all, most)
				}
			}
		}
	}
	if n := b[1].Stats(); n.Source.Peak > 0 {
		t.Errorf("the second replica has loaded: %+v", n.Source)
	}
	if _, _, err := b[0].sum(t.Context(), byMany, node.Within(0)); err != nil {
		t.Error(err)
	}
}

// I8: transfers by replicas and by another service, while a Redis shard is cut off and Postgres goes away and comes
// back: no sum over several rows, caches and lists ever wavers. Reads that promise nothing of it do.
func TestI8ConsistentReads(t *testing.T) {
	s := newSite(t)
	proxies, err := stacktest.Stack().Redis.Proxies()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(proxies.Close)
	postgres := stacktest.Stack().Postgres
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 40*time.Second)
		defer cancel()
		if err := postgres.Start(ctx); err != nil {
			t.Error(err)
		}
	})
	b := s.openBranches(2, func(c *node.Config, _ *node.CacheConfig[Thing]) { c.Redis.Dial, c.Redis.Timeout = proxies.Dial, 0 })
	var faulty atomic.Bool
	f := s.transfers(b, faulty.Load)
	f.progress(20)
	primary, replica := s.primaryOf("account-1")
	for _, p := range proxies.Of(primary, replica) {
		p.Cut()
	}
	f.progress(15)
	faulty.Store(true)
	failed := f.failed.Load()
	if err := postgres.Stop(); err != nil {
		t.Fatal(err)
	}
	s.until("reads fail", func() bool { return f.failed.Load() > failed+5 })
	for _, p := range proxies.All() {
		p.Heal()
	}
	if err := postgres.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	f.progress(15)
	faulty.Store(false)
	f.progress(15)
	s.until("plain reads waver", func() bool { return f.astray.Load() > 0 })
	f.stop()
	f.work.Wait()
	var took [3]uint64
	for _, b := range b {
		n := b.Stats()
		took[0], took[1], took[2] = took[0]+n.ConsistentPolls, took[1]+n.ConsistentRepeats, took[2]+n.ConsistentTransactions
	}
	t.Logf("%d transfers; %d, %d and %d sums as of one moment, %d failed; they took %d polls, %d repeats, %d transactions; %d of %d plain sums wavered",
		f.made.Load(), f.sums(byMany), f.sums(byCaches), f.sums(byFunc), f.failed.Load(),
		took[0], took[1], took[2], f.astray.Load(), f.sums(byNothing))
}

// I8: what changes in every run is read in one transaction in the end, in which nothing changes. A panic in it
// leaves no transaction behind, and Close waits for one that is under way.
func TestI8SnapshotInATransaction(t *testing.T) {
	s := newSite(t)
	b := s.openBranches(1, func(c *node.Config, _ *node.CacheConfig[Thing]) { c.Postgres.MaxConns = 1 })[0]
	other := s.open(nil)
	restless := func(do func(s *node.Snapshot, run int) error) (node.Moment, error) {
		run := 0
		return b.Snapshot(t.Context(), func(at *node.Snapshot) error {
			run++
			if _, err := b.accounts.In(at, "account-1"); err != nil {
				return err
			}
			var token node.Token
			token, err := other.Write(t.Context(), func(tx *node.Tx) error {
				_, err := tx.ExecContext(t.Context(), transfer, "account-1", "account-2", 1)
				return err
			})
			if err != nil {
				return err
			}
			if run <= 3 { // the change is known here before the rest is read
				if _, err := b.brief.Lookup(t.Context(), "account-3", node.AtLeast(token)); err != nil {
					return err
				}
			}
			return do(at, run)
		})
	}
	var sum int64
	var last int
	moment, err := restless(func(at *node.Snapshot, run int) error {
		last, sum = run, 0
		some, err := b.accounts.ManyIn(at, accountIDs(1, accounts-bankSize))
		if err != nil {
			return err
		}
		list, err := b.banks.In(at, cluster.Params{"bank": "2"})
		for _, a := range list {
			sum += a.Balance
		}
		for _, a := range some {
			sum += a.Balance
		}
		if _, err := b.accounts.In(at, "nobody"); !errors.Is(err, node.ErrNotFound) {
			t.Errorf("who is not there: %v", err)
		}
		return err
	})
	if err != nil || sum != accountTotal || last != 4 || moment.Token.IsZero() {
		t.Errorf("after %d runs the sum is %d, %+v: %v", last, sum, moment, err)
	}
	// What was read has changed by now, and this replica knows it with the next poll at the latest.
	if e, err := b.accounts.Lookup(t.Context(), "account-2", node.Within(0)); err != nil || e.Value.Balance != 104 {
		t.Errorf("afterwards: %+v, %v", e, err)
	}
	func() {
		defer func() {
			if p := recover(); p != "enough" {
				t.Errorf("the panic is %v", p)
			}
		}()
		_, err := restless(func(_ *node.Snapshot, run int) error {
			if run == 4 {
				panic("enough")
			}
			return nil
		})
		t.Errorf("no panic, but %v", err)
	}()
	own := errors.New("the function's own")
	closed := make(chan error, 1)
	_, err = restless(func(at *node.Snapshot, run int) error {
		if run == 4 { // on the one connection, which nobody has kept
			go func() { closed <- b.Close() }()
			s.until("the node closes", func() bool {
				_, err := b.Write(t.Context(), func(*node.Tx) error { return nil })
				return errors.Is(err, node.ErrClosed)
			})
			select {
			case err := <-closed:
				t.Errorf("closed in the middle of a transaction: %v", err)
			default:
			}
			if _, err := b.accounts.In(at, "account-4"); err != nil {
				t.Errorf("read while the node waits: %v", err)
			}
			return own
		}
		return nil
	})
	if err != own { // as it is
		t.Errorf("the error is %v, want the function's own", err)
	}
	if err := <-closed; err != nil {
		t.Error(err)
	}
	if _, err := b.Snapshot(t.Context(), func(at *node.Snapshot) error { _, err := b.accounts.In(at, "account-1"); return err }); !errors.Is(err, node.ErrClosed) {
		t.Errorf("of a closed node: %v", err)
	}
	foreign, err := other.Snapshot(t.Context(), func(at *node.Snapshot) error { _, err := b.accounts.In(at, "account-1"); return err })
	if err == nil || !foreign.Token.IsZero() {
		t.Errorf("of another node: %+v, %v", foreign, err)
	}
}
