package verify

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/freshet-cache/freshet/cluster"
	"github.com/freshet-cache/freshet/node"
)

// joint is by what a replica of Freshet reads several rows as of one moment.
type joint struct {
	accounts *node.Cache[freshetAccount]
	brief    *node.Cache[freshetAccount]
	banks    *node.QueryCache[[]freshetAccount]
	// apart leaves it out that they are of one moment, for the test that this is noticed.
	apart bool
}

type freshetAccount struct {
	ID      uint64 `json:"id" db:"id"`
	Op      uint64 `json:"op" db:"op"`
	Balance int64  `json:"balance" db:"balance"`
}

func (a freshetAccount) row() JointRow { return JointRow{Key: a.ID, Op: a.Op, Balance: a.Balance} }

func (f *freshet) openJoint() error {
	const query = `select id, op, balance from verify_account where id = any($1)`
	var accounts, brief, banks error
	f.joint.accounts, accounts = node.NewCache(f.node, node.CacheConfig[freshetAccount]{
		Namespace: "account", Source: node.SQL[freshetAccount](query),
	})
	f.joint.brief, brief = node.NewCache(f.node, node.CacheConfig[freshetAccount]{
		Namespace: "account", View: "brief", Source: node.SQL[freshetAccount](query),
	})
	f.joint.banks, banks = node.NewQueryCache(f.node, node.QueryConfig[[]freshetAccount]{
		Namespace: "account", View: "bank",
		Query: func(p cluster.Params) (string, []any, error) {
			bank, err := strconv.ParseInt(p["bank"], 10, 64)
			return `select json_agg(a order by id) from (select id, op, balance from verify_account where bank = $1) a`, []any{bank}, err
		},
		Tags: func(p cluster.Params, _ []freshetAccount) []string { return []string{"bank:" + p["bank"]} },
	})
	return errors.Join(accounts, brief, banks)
}

// consistentLimit bounds the attempt at a consistent read of one row, so that an outage of Postgres, in which it
// has no answer, does not hold up the load.
const consistentLimit = 100 * time.Millisecond

// getConsistent reads one row with others as of one moment.
func (f *freshet) getConsistent(ctx context.Context, id string, options []node.ReadOption) (Answer, error) {
	ctx, cancel := context.WithTimeout(ctx, consistentLimit)
	defer cancel()
	key, err := strconv.ParseUint(id, 10, 64)
	if err != nil {
		return Answer{}, err
	}
	if key%16 == 6 {
		entries, err := f.rows.GetMany(ctx, []string{id, strconv.FormatUint(key+1, 10)}, append(options, node.Consistent())...)
		if e, there := entries[id]; there && err == nil {
			return Answer{Op: e.Value.Op, Fresh: e.Fresh, Tier: uint8(e.Tier), Token: e.Token.String()}, nil
		}
		return Answer{}, errors.Join(err, node.ErrNotFound)
	}
	var row freshetRow
	var absent bool
	moment, err := f.node.Snapshot(ctx, func(s *node.Snapshot) (err error) {
		if row, err = f.rows.In(s, id); errors.Is(err, node.ErrNotFound) {
			absent = true
			return nil
		}
		absent = false
		return err
	}, options...)
	if err != nil {
		return Answer{}, err
	}
	return Answer{Op: row.Op, Absent: absent, Fresh: true, Token: moment.Token.String()}, nil
}

// Join implements [Joiner].
func (f *freshet) Join(ctx context.Context, key uint64, want Want) (JointAnswer, error) {
	options, err := options(want)
	if err != nil {
		return JointAnswer{}, err
	}
	switch {
	case key < firstAccount:
		return f.joinRows(ctx, key, options)
	case f.joint.apart || key%2 == 0:
		return f.joinAccounts(ctx, options)
	}
	return f.joinBanks(ctx, options)
}

// joinAccounts reads all accounts by one call.
func (f *freshet) joinAccounts(ctx context.Context, options []node.ReadOption) (JointAnswer, error) {
	if !f.joint.apart {
		options = append(options, node.Consistent())
	}
	entries, err := f.joint.accounts.GetMany(ctx, accountIDs(firstAccount, Accounts), options...)
	if err != nil {
		return JointAnswer{}, err
	}
	if len(entries) != Accounts {
		return JointAnswer{}, fmt.Errorf("%d accounts are there, want %d", len(entries), Accounts)
	}
	a := JointAnswer{Fresh: true}
	for _, e := range entries {
		a.Fresh = a.Fresh && e.Fresh
		a.Rows = append(a.Rows, e.Value.row())
	}
	return a, nil
}

func accountIDs(first uint64, n int) []string {
	ids := make([]string, n)
	for i := range ids {
		ids[i] = strconv.FormatUint(first+uint64(i), 10)
	}
	return ids
}

// joinBanks reads the accounts of one bank from two caches and those of the other as a list.
func (f *freshet) joinBanks(ctx context.Context, options []node.ReadOption) (a JointAnswer, err error) {
	const bank = firstBank
	_, err = f.node.Snapshot(ctx, func(s *node.Snapshot) error {
		a = JointAnswer{Fresh: true}
		for i, id := range accountIDs(firstAccount, Accounts) {
			var account freshetAccount
			var err error
			switch i % 4 {
			case 1:
				account, err = f.joint.accounts.In(s, id)
			case 3:
				account, err = f.joint.brief.In(s, id)
			default:
				continue // of the other bank
			}
			if err != nil {
				return err
			}
			a.Rows = append(a.Rows, account.row())
		}
		list, err := f.joint.banks.In(s, cluster.Params{"bank": strconv.Itoa(bank)})
		for _, account := range list {
			a.Rows = append(a.Rows, account.row())
		}
		return err
	}, options...)
	return a, err
}

// joinRows reads a row, a neighbour, and the list of the category where the row mostly is.
func (f *freshet) joinRows(ctx context.Context, key uint64, options []node.ReadOption) (a JointAnswer, err error) {
	_, err = f.node.Snapshot(ctx, func(s *node.Snapshot) error {
		a = JointAnswer{Fresh: true}
		rows, err := f.rows.ManyIn(s, []string{strconv.FormatUint(key, 10), strconv.FormatUint(key+1, 10)})
		if err != nil {
			return err
		}
		for _, k := range []uint64{key, key + 1} {
			a.Rows = append(a.Rows, JointRow{Key: k, Op: rows[strconv.FormatUint(k, 10)].Op})
		}
		list, err := f.lists.In(s, cluster.Params{"category": strconv.FormatUint(1+key%f.groups, 10)})
		for _, row := range list {
			a.Rows = append(a.Rows, JointRow{Key: row.ID, Op: row.Op})
		}
		return err
	}, options...)
	return a, err
}
