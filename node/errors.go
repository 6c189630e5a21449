package node

import (
	"errors"

	"github.com/freshet-cache/freshet/internal/spans"
	"github.com/freshet-cache/freshet/tiers"
)

// Errors that callers branch on, with errors.Is.
var (
	// ErrNotFound: the source says that there is no such thing.
	ErrNotFound = errors.New("not found")
	// ErrOverloaded: a bound on concurrent work was reached.
	ErrOverloaded = tiers.ErrOverloaded
	// ErrUncertain: the freshness asked for cannot be proven and no STALE answer is allowed or there.
	ErrUncertain = tiers.ErrUncertain
	// ErrClosed: the node is closed.
	ErrClosed = tiers.ErrClosed
	// ErrTooLarge: a value is above a limit.
	ErrTooLarge = tiers.ErrTooLarge
	// ErrConflict: somebody else has changed what was expected to be otherwise; nothing has changed.
	ErrConflict = errors.New("conflict")
	// ErrBadID: no entry can have that id.
	ErrBadID = tiers.ErrBadID
)

// wrap says what was being read; a plain nil and the sentinel of a frequent answer cost nothing.
func wrap(name cacheName, err error) error {
	if err == nil || err == ErrNotFound { //nolint:errorlint // identity: it is our own, unwrapped
		return err
	}
	return &Error{Op: "read", Namespace: name.namespace, View: name.view, Err: err}
}

// endSpan ends a span with the class of the error, if anybody sees it.
func endSpan(s spans.Span, err error) {
	if s.Recording() {
		s.End(tiers.ClassOf(err).String())
	}
}

// Loggable is what may be logged of an error of a cache or a write where ids and values must not be: its class, and
// its SQLSTATE or the type of its cause, but not its text.
func Loggable(err error) string { return tiers.Loggable(err) }

// Error says what failed. Its text holds the beginning of the id that was read; see [Loggable].
type Error struct {
	Op        string // "read", "write", "snapshot", "put", "delete", "put later", or what else was asked for
	Namespace string // empty for what is not about one cache
	View      string // likewise
	Err       error  // the cause; errors.Is finds the sentinels in it
}

func (e *Error) Error() string {
	if e.Namespace == "" {
		return "node: " + e.Op + ": " + e.Err.Error()
	}
	return "node: " + e.Op + " " + e.Namespace + " (" + e.View + "): " + e.Err.Error()
}

// Unwrap is the cause.
func (e *Error) Unwrap() error { return e.Err }
