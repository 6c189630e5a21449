package tiers

import "context"

// Store is what the read path asks of the tier that all replicas share. [*L2] is the real one. Its
// bytes are not trusted, so a Store may lose, keep too long or change anything; what it must not do is
// take long: every call comes back within a bounded time, whatever its context says.
//
// Its errors are [ErrMiss], [ErrUnavailable] and [ErrTooLarge], as [L2] says of each method. It is
// used by any number of goroutines.
type Store interface {
	Get(ctx context.Context, key string) ([]byte, error)
	GetMany(ctx context.Context, keys []string) []Reply
	LeaseMany(ctx context.Context, leases []LeaseRequest) []LeaseReply
	Release(ctx context.Context, leaseKey, token string) error
	SetMany(ctx context.Context, fillings []Filling) []error
	Unlink(ctx context.Context, keys ...string) error
	// Available reports, without asking anybody, whether a call for the key is worth making.
	Available(key string) bool
}

var _ Store = (*L2)(nil)
