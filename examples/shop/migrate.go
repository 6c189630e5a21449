package shop

import (
	"context"
	"embed"
	"errors"
	"fmt"
	"io/fs"

	"github.com/jmoiron/sqlx"
	"github.com/pressly/goose/v3"
	"github.com/pressly/goose/v3/lock"
)

//go:embed migrations/*.sql
var migrations embed.FS

// Migrate brings the catalogue's tables in db up to date and puts them under freshet.watch. The schema
// freshet (coherence.Migrate) must be there first. Several processes may call Migrate at once: one
// works, the others wait for it. Calling it again changes nothing.
func Migrate(ctx context.Context, db *sqlx.DB) error {
	var watch bool
	if err := db.GetContext(ctx, &watch, `select to_regproc('freshet.watch') is not null`); err != nil {
		return fmt.Errorf("shop: migrate: %w", err)
	}
	if !watch {
		return errors.New("shop: migrate: the function freshet.watch is missing: run the migrations of freshet first")
	}
	folder, err := fs.Sub(migrations, "migrations")
	if err != nil {
		return fmt.Errorf("shop: migrate: %w", err)
	}
	locker, err := lock.NewPostgresSessionLocker(lock.WithLockID(migrationLock), lock.WithLockTimeout(1, 300))
	if err != nil {
		return fmt.Errorf("shop: migrate: %w", err)
	}
	provider, err := goose.NewProvider(goose.DialectPostgres, db.DB, folder,
		goose.WithTableName("shop_migrations"), goose.WithSessionLocker(locker), goose.WithDisableGlobalRegistry(true))
	if err != nil {
		return fmt.Errorf("shop: migrate: %w", err)
	}
	// provider.Close would close db, which is the caller's.
	if _, err := provider.Up(ctx); err != nil {
		return fmt.Errorf("shop: migrate: %w", err)
	}
	return nil
}

// migrationLock is the advisory lock that migrations of the shop take turns on.
const migrationLock int64 = 0x73686f70_00000001 // "shop", 1
