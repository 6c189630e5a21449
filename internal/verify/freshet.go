package verify

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"net"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/lib/pq"

	"github.com/freshet-cache/freshet/cluster"
	"github.com/freshet-cache/freshet/node"
)

// What a replica of Freshet is opened with. L1 holds a part of the rows only, so that L2 is read all
// the time.
const (
	freshetL1       = 600
	freshetConns    = 8
	freshetMaxStale = time.Minute
	freshetWrite    = 5 * time.Second
	freshetGrace    = 2 * time.Second // of a sixteenth of the writes
	freshetBatch    = "verify"
	freshetSoft     = 250 * time.Millisecond
	freshetVerify   = time.Second
	freshetSample   = 40
)

// Freshet opens a node with its caches, each of which begins with what the others read. Get says which rows are
// read in which way; one write in 64 changes a generation besides.
func Freshet(ctx context.Context, at Endpoints) (Subject, error) {
	n, err := node.Open(ctx, node.Config{
		App: at.App, ID: fmt.Sprintf("replica-%d", at.Replica),
		Postgres: node.PostgresConfig{DSN: at.Postgres, MaxConns: freshetConns, WriteTimeout: freshetWrite},
		Redis:    node.RedisConfig{Addrs: at.Redis, Dial: at.dialRedis},
		NATS:     node.NATSConfig{URLs: []string{at.NATS}},
		MaxStale: freshetMaxStale,
		Verify:   node.VerifyConfig{Every: freshetVerify, Sample: freshetSample},
		Logger:   slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelWarn})),
	})
	if err != nil {
		return nil, err
	}
	f := &freshet{node: n, groups: at.Groups}
	if err := errors.Join(f.openCaches(), n.Ready(ctx)); err != nil { //nolint:contextcheck // what a cache starts lives as long as its node
		return nil, errors.Join(err, n.Close())
	}
	return f, nil
}

func (e Endpoints) dialRedis(ctx context.Context, network, addr string) (net.Conn, error) {
	var d net.Dialer
	return d.DialContext(ctx, network, e.RedisAddr(addr))
}

type freshet struct {
	node   *node.Node
	rows   *node.Cache[freshetRow]
	funcs  *node.Cache[freshetRow]
	ahead  *node.Cache[freshetRow]
	packed *node.Cache[packedRow]
	raw    *node.Cache[string] // the op as text
	twins  *node.Cache[uint64] // by ids of two columns
	lists  *node.QueryCache[[]freshetRow]
	puts   *node.Cache[freshetPut]
	joint  joint

	groups uint64
}

// freshetPut is a row as it is written through.
type freshetPut struct {
	ID       uint64 `json:"id" db:"id"`
	Op       uint64 `json:"op" db:"op"`
	Category uint64 `json:"category" db:"category"`
	Sent     int64  `json:"sent" db:"sent"`
}

// freshetStore writes rows as every change does.
type freshetStore struct{}

func (freshetStore) Put(ctx context.Context, tx *node.Tx, values map[string]freshetPut) error {
	for _, v := range values {
		if _, err := (Change{Kind: Set, Key: v.ID, Group: v.Category, Op: v.Op, Sent: time.Duration(v.Sent)}).Apply(ctx, tx); err != nil {
			return err
		}
	}
	return nil
}

func (freshetStore) Delete(context.Context, *node.Tx, []string) error {
	return errors.New("rows are removed by other changes")
}

type freshetRow struct {
	ID uint64 `json:"id" db:"id"`
	Op uint64 `json:"op" db:"op"`
}

// packedRow is a row that is worth compressing, and says its op twice.
type packedRow struct {
	ID  uint64 `json:"id" db:"id"`
	Op  uint64 `json:"op" db:"op"`
	Pad string `json:"pad" db:"pad"`
}

const packedQuery = `select r.*, repeat('op ', 100) || r.op as pad from (` + RowQuery + `) r`

// whole reports whether nothing of the row is another's.
func (r packedRow) whole() bool {
	return r.Pad == strings.Repeat("op ", 100)+strconv.FormatUint(r.Op, 10)
}

func (f *freshet) openCaches() error {
	var rows, funcs, ahead, packed, raw, lists, twins error
	f.rows, rows = node.NewCache(f.node, node.CacheConfig[freshetRow]{
		Namespace: "row", Source: node.SQL[freshetRow](RowQuery), MaxEntries: freshetL1, WarmUp: node.WarmUp{Peers: true},
	})
	f.funcs, funcs = node.NewCache(f.node, node.CacheConfig[freshetRow]{
		Namespace: "row", View: "func", Source: node.Func(f.load), MaxEntries: freshetL1,
	})
	f.ahead, ahead = node.NewCache(f.node, node.CacheConfig[freshetRow]{
		Namespace: "row", View: "ahead", Source: node.SQL[freshetRow](RowQuery), MaxEntries: freshetL1, WarmUp: node.WarmUp{Peers: true},
		TTL: time.Second, NegativeTTL: time.Second, Refresh: node.Refresh{Ahead: 0.6, Beta: 1}, SoftTimeout: freshetSoft,
	})
	f.packed, packed = node.NewCache(f.node, node.CacheConfig[packedRow]{
		Namespace: "row", View: "packed", Source: node.SQL[packedRow](packedQuery), MaxEntries: freshetL1,
		Codec: node.CBOR, Compress: node.Compression{Algorithm: node.Zstd, Above: 100},
	})
	f.raw, raw = node.NewCache(f.node, node.CacheConfig[string]{
		Namespace: "row", View: "raw", Source: node.SQL[string](RowQuery), MaxEntries: freshetL1, Codec: node.Bytes,
	})
	f.lists, lists = node.NewQueryCache(f.node, node.QueryConfig[[]freshetRow]{
		Namespace: "row", View: "list",
		Query: func(p cluster.Params) (string, []any, error) {
			group, err := strconv.ParseInt(p["category"], 10, 64)
			return `select coalesce(json_agg(l order by id), '[]') from (` + ListQuery + `) l`, []any{group}, err
		},
		Tags: func(p cluster.Params, _ []freshetRow) []string { return []string{"category:" + p["category"]} },
	})
	f.twins, twins = node.NewCache(f.node, node.CacheConfig[uint64]{
		Namespace: "twin", MaxEntries: freshetL1, Source: node.SQL[uint64](`
select freshet.id(t.half::text, t.id::text) as id, t.op
  from unnest($1::text[]) wanted(id), freshet.id_parts(wanted.id) part
  join verify_twin t on t.half = part[1]::bigint and t.id = part[2]::bigint`),
	})
	var puts error
	f.puts, puts = node.NewCache(f.node, node.CacheConfig[freshetPut]{
		Namespace: "row", View: "put", MaxEntries: freshetL1, Store: freshetStore{},
		Source: node.SQL[freshetPut](`select id, op, category, sent from verify_row where id = any($1)`),
	})
	return errors.Join(rows, funcs, ahead, packed, raw, lists, twins, puts, f.openJoint())
}

// load is a source in Go.
func (f *freshet) load(ctx context.Context, ids []string) (map[string]freshetRow, error) {
	var rows []freshetRow
	if err := f.node.DB().SelectContext(ctx, &rows, RowQuery, pq.Array(ids)); err != nil {
		return nil, err
	}
	m := make(map[string]freshetRow, len(rows))
	for _, r := range rows {
		m[strconv.FormatUint(r.ID, 10)] = r
	}
	return m, nil
}

func options(want Want) ([]node.ReadOption, error) {
	token, err := node.ParseToken(want.Token)
	if want.Lenient {
		return []node.ReadOption{node.AtLeast(token)}, err
	}
	return []node.ReadOption{node.Within(want.Budget), node.AtLeast(token)}, err
}

func (f *freshet) Get(ctx context.Context, key uint64, want Want) (Answer, error) {
	options, err := options(want)
	if err != nil {
		return Answer{}, err
	}
	id := strconv.FormatUint(key, 10)
	cache := f.rows
	switch key % 16 {
	case 3:
		e, err := f.twins.Lookup(ctx, node.ID(strconv.FormatUint(key/2, 10), id), options...)
		return answerOf(e.Value, e, err)
	case 0, 8:
		cache = f.funcs
	case 2: // rows that expire soon, and are refreshed ahead of that
		cache = f.ahead
	case 1:
		e, err := f.packed.Lookup(ctx, id, options...)
		op := e.Value.Op
		if err == nil && !e.Value.whole() {
			op = math.MaxInt64 // which nobody wrote
		}
		return answerOf(op, e, err)
	case 9:
		e, err := f.raw.Lookup(ctx, id, options...)
		var op uint64
		if err == nil {
			if op, err = strconv.ParseUint(e.Value, 10, 64); err != nil {
				op, err = math.MaxInt64, nil // which nobody wrote
			}
		}
		return answerOf(op, e, err)
	case 4, 12:
		several, err := cache.GetMany(ctx, []string{id, strconv.FormatUint(key+1, 10), strconv.FormatUint(key+8, 10)}, options...)
		if e, there := several[id]; there {
			return Answer{Op: e.Value.Op, Fresh: e.Fresh, Tier: uint8(e.Tier), Token: e.Token.String()}, nil
		} else if err != nil {
			return Answer{}, err
		}
		// It is absent, which such a call does not label.
	case 6, 10:
		if a, err := f.getConsistent(ctx, id, options); err == nil {
			return a, nil
		}
		// A STALE answer may be there.
	case 11:
		e, err := f.puts.Lookup(ctx, id, options...)
		return answerOf(e.Value.Op, e, err)
	}
	e, err := cache.Lookup(ctx, id, options...)
	return answerOf(e.Value.Op, e, err)
}

// answerOf is the answer that holds the op, from what a lookup returned.
func answerOf[V any](op uint64, e node.Entry[V], err error) (Answer, error) {
	absent := errors.Is(err, node.ErrNotFound)
	if err != nil && !absent {
		return Answer{}, err
	}
	return Answer{Op: op, Absent: absent, Fresh: e.Fresh, Tier: uint8(e.Tier), Token: e.Token.String()}, nil
}

func (f *freshet) List(ctx context.Context, group uint64, want Want) (ListAnswer, error) {
	options, err := options(want)
	if err != nil {
		return ListAnswer{}, err
	}
	e, err := f.lists.Lookup(ctx, cluster.Params{"category": strconv.FormatUint(group, 10)}, options...)
	if err != nil {
		return ListAnswer{}, err
	}
	rows := make([]ListRow, len(e.Value))
	for i, r := range e.Value {
		rows[i] = ListRow{Key: r.ID, Op: r.Op}
	}
	return ListAnswer{Rows: rows, Fresh: e.Fresh, Tier: uint8(e.Tier), Token: e.Token.String()}, nil
}

func (f *freshet) Write(ctx context.Context, change Change) (string, error) {
	if change.Op%16 == 11 && change.Kind == Set {
		e, err := f.puts.Put(ctx, strconv.FormatUint(change.Key, 10),
			freshetPut{ID: change.Key, Op: change.Op, Category: change.Group, Sent: int64(change.Sent)})
		return e.Token.String(), err
	}
	token, err := f.node.Write(ctx, func(tx *node.Tx) error {
		if change.Op%16 == 3 {
			if err := tx.Grace(freshetGrace); err != nil {
				return err
			}
		}
		if _, err := change.Apply(ctx, tx); err != nil {
			return err
		}
		return f.again(tx, change)
	})
	if err == nil && change.Op%16 == 9 {
		_, err = f.node.RunBatch(ctx, freshetBatch)
	}
	return token.String(), err
}

// regenerate takes the rows, or now and then everything, to another generation: a new one or, as often, one of
// those before. It comes last in a transaction, since others wait for the same.
func regenerate(tx *node.Tx, n uint64) error {
	namespace := "row"
	if n%8 == 7 {
		namespace = ""
	}
	return tx.SetGeneration(namespace, uint32(1+n%5), node.GenerationChange{Why: "verify"})
}

// again has some changes count once more, later, or under another generation.
func (f *freshet) again(tx *node.Tx, change Change) error {
	id := []string{strconv.FormatUint(change.Key, 10)}
	switch change.Op % 16 {
	case 1:
		if change.Op%64 == 17 {
			return regenerate(tx, change.Op/64)
		}
		return nil
	case 5:
		return tx.Invalidate("row", id, node.After(300*time.Millisecond))
	case 7:
		return tx.Invalidate("row", id, node.Batch(freshetBatch))
	default:
		return nil
	}
}

func (f *freshet) Close() error { return f.node.Close() }

// SourceLoad implements [SourceLoader].
func (f *freshet) SourceLoad() SourceLoad {
	s := f.node.Stats()
	load := SourceLoad{Peak: s.Source.Peak, Bound: s.Source.Places}
	for _, n := range s.Namespaces {
		load.Loads += n.Loads
		load.Verified += n.Verified
		load.Mismatched += n.Mismatched
	}
	return load
}
