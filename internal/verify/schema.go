package verify

import (
	"context"
	"database/sql"
	_ "embed"
	"fmt"
)

// schema makes the table under test and its audit.
//
//go:embed schema.sql
var schema string

// CreateSchema makes the tables in an empty database and fills the rows 1 to keys, each written by the op of its
// own number, over the categories 1 to groups, and the accounts. watch = by Freshet's triggers, too, whose log
// must be there.
func CreateSchema(ctx context.Context, db *sql.DB, keys, groups uint64, watch bool) error {
	steps := []string{schema}
	if watch {
		steps = append(steps, `select freshet.watch('verify_row', namespace => 'row', tags => array['category:{category}'])`,
			`select freshet.watch('verify_account', namespace => 'account', tags => array['bank:{bank}'])`,
			`select freshet.watch('verify_twin', namespace => 'twin', id => 'half, id', columns => array['op'])`)
	}
	steps = append(steps, fmt.Sprintf(
		`insert into verify_row (id, category, op, sent) select n, 1 + n %% %d, n, 0 from generate_series(1, %d) n`, groups, keys),
		fmt.Sprintf(`insert into verify_account (id, bank, balance, op) select n, %d + n %% 2, %d, n from generate_series(%d, %d) n`,
			firstBank, balance, firstAccount, firstAccount+Accounts-1))
	for _, s := range steps {
		if _, err := db.ExecContext(ctx, s); err != nil {
			return fmt.Errorf("verify: schema: %w", err)
		}
	}
	return nil
}
