package replay

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"strings"
)

// price is what access n sets, in cents. Any update counts up the revision, so it need not differ.
func price(n uint64) int64 { return int64(100 + n%1_000_000) }

// patch updates a product over HTTP and reads it twice with the session's token.
func (d *Driver) patch(ctx context.Context, base string, w access) {
	write := d.checker.Begin(w.id, 0, d.clock())
	a, err := d.ask(ctx, question{
		method: http.MethodPatch, url: base + "/products/" + strconv.FormatInt(w.id, 10),
		body: fmt.Sprintf(`{"price_cents":%d}`, price(w.number)), budget: -1,
	})
	if err == nil && a.ID != w.id {
		err = &failure{"wrong_product", fmt.Sprintf("updated product %d, got %d", w.id, a.ID)}
	}
	if err != nil {
		if refused(err) {
			write.Aborted()
		} else {
			write.Unknown(0)
		}
		d.fail(ctx, a, err)
		return
	}
	write.Acked(a.Revision, a.returned)
	d.tally.wrote(writeHTTP, a.returned-a.invoked, a.returned-w.due)
	d.prober.offer(probe{id: w.id, revision: a.Revision, acked: a.returned})
	if a.token == "" {
		d.fail(ctx, a, &failure{"no_token", "the answer to a PATCH had no " + headerToken})
		return
	}
	own := read{id: w.id, budget: w.budget, due: -1, token: a.token, wrote: a.Revision}
	next, ok := d.read(ctx, base, own)
	if !ok || next.token == "" {
		return
	}
	own.token, own.saw = next.token, next.Revision
	d.read(ctx, base, own)
}

// refused reports whether the failure says that the write certainly did not happen: the shop looked
// at the request and declined, or nothing was ever connected.
func refused(err error) bool {
	f, is := errors.AsType[*failure](err)
	return is && (strings.HasPrefix(f.kind, "http_4") || f.kind == "refused")
}

// update updates a product by SQL, as another service would.
func (d *Driver) update(ctx context.Context, w access) {
	limit, cancel := context.WithTimeout(ctx, d.config.timeout())
	defer cancel()
	began := d.clock()
	fail := func(step string, err error) {
		kind := "sql_" + step
		if errors.Is(err, context.DeadlineExceeded) {
			kind += "_timeout"
		}
		d.fail(ctx, answer{invoked: began, returned: d.clock()}, &failure{kind, err.Error()})
	}
	tx, err := d.config.DB.BeginTx(limit, nil)
	if err != nil {
		fail("begin", err)
		return
	}
	var revision int64
	err = tx.QueryRowContext(limit, "update products set price_cents = $2 where id = $1 returning revision", w.id, price(w.number)).Scan(&revision)
	if err != nil {
		_ = tx.Rollback() // the update's error is the one to tell; without COMMIT nothing happened
		fail("update", err)
		return
	}
	write := d.checker.Begin(w.id, revision, d.clock())
	if err := tx.Commit(); err != nil {
		if errors.Is(err, sql.ErrTxDone) {
			write.Aborted() // COMMIT was never sent: the time was over and the transaction rolled back
		} else {
			write.Unknown(revision)
		}
		fail("commit", err)
		return
	}
	acked := d.clock()
	write.Acked(revision, acked)
	d.tally.wrote(writeSQL, acked-began, acked-w.due)
	d.prober.offer(probe{id: w.id, revision: revision, acked: acked, sql: true})
}
