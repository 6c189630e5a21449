package main

import (
	"context"
	"errors"
	"time"
)

// cache is what a rival does for one replica: keep texts in front of a load. What the load cannot find
// is cached in the way that the rival's documentation names.
type cache interface {
	// get answers from the cache, or calls load and stores its text. It returns errAbsent when load did,
	// then or earlier, and any other error of load as it is.
	get(ctx context.Context, key string, load load) (string, error)
	// invalidate is called after a change of key was committed. An error means that the cached text may
	// still be there.
	invalidate(ctx context.Context, key string) error
	// close ends connections and goroutines.
	close() error
}

// load reads a text from Postgres; errAbsent when there is nothing.
type load func(ctx context.Context) (string, error)

// errAbsent says that the source has nothing under a key.
var errAbsent = errors.New("absent")

const (
	// ttl is how long every rival keeps a text in Redis: the minute that rueidisaside's README has, and
	// the one that a cache-aside without a better idea gets.
	ttl = time.Minute
	// capacity of an L1 in entries: more than the load has keys.
	capacity = 10_000
)
