package tiers

import "errors"

// ErrTooLarge: a value or an entry is above the size that its tier takes. It is not stored.
var ErrTooLarge = errors.New("tiers: too large")
