package tiers

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"runtime"

	"github.com/lib/pq"

	"github.com/freshet-cache/freshet/coherence"
	"github.com/freshet-cache/freshet/internal/spans"
)

// ErrorClass is what kind of failure an error is, for metrics, spans and logs: an error's text may name an id, and
// there are too many of them. The zero value is no failure.
type ErrorClass uint8

// The classes.
const (
	ClassCanceled   ErrorClass = iota + 1 // the caller gave up, or the cache was closed
	ClassTimeout                          // no answer in time
	ClassOverloaded                       // a bound on concurrent work was reached
	ClassRefused                          // not tried: the shard has no connection, or its breaker is open
	ClassConnection                       // the connection failed
	ClassServer                           // the server answered that it cannot
	ClassData                             // a value or an id that cannot be
	ClassUncertain                        // freshness that could not be proven
	ClassOther                            // what the application's own code said, or panicked with
)

// Classes is how many there are, the zero value included.
const Classes = int(ClassOther) + 1

// String is the class in metrics, spans and logs; empty for the zero value.
func (c ErrorClass) String() string {
	switch c {
	case ClassCanceled:
		return "canceled"
	case ClassTimeout:
		return "timeout"
	case ClassOverloaded:
		return "overloaded"
	case ClassRefused:
		return "refused"
	case ClassConnection:
		return "connection"
	case ClassServer:
		return "server"
	case ClassData:
		return "data"
	case ClassUncertain:
		return "uncertain"
	case ClassOther:
		return "other"
	}
	return ""
}

// Loggable is what may be logged of an error that Postgres or the application gave about ids or values: its class,
// and its SQLSTATE or the type of its cause, but not its text, which may hold them.
func Loggable(err error) string {
	class := ClassOf(err)
	if answer, ok := errors.AsType[*pq.Error](err); ok {
		return class.String() + ": SQLSTATE " + string(answer.Code)
	}
	if class != ClassOther {
		return class.String()
	}
	for cause := errors.Unwrap(err); cause != nil; cause = errors.Unwrap(err) {
		err = cause
	}
	return fmt.Sprintf("%v: %T", class, err)
}

// loggablePanic is [Loggable] for what the application's code panicked with. Errors of the Go runtime are told.
func loggablePanic(p any) string {
	if err, ok := p.(runtime.Error); ok {
		return err.Error()
	}
	return fmt.Sprintf("%T", p)
}

// endSpan ends a span with the class of the error, if anybody sees it.
func endSpan(s spans.Span, err error) {
	if s.Recording() {
		s.End(ClassOf(err).String())
	}
}

// ClassOf is the class of an error of a read, a load or a write: that of the cause that is named first below, where
// several are.
func ClassOf(err error) ErrorClass {
	if err == nil {
		return 0
	}
	is := func(targets ...error) bool {
		for _, target := range targets {
			if errors.Is(err, target) {
				return true
			}
		}
		return false
	}
	if answer, ok := errors.AsType[*pq.Error](err); ok {
		switch answer.Code.Class() {
		case "22", "23": // data exception, integrity constraint violation
			return ClassData
		case "08":
			return ClassConnection
		}
		if answer.Code == "57014" { // query_canceled: by a context, or statement_timeout
			return ClassTimeout
		}
		return ClassServer
	}
	switch {
	case is(ErrBadID, ErrTooLarge, errRow):
		return ClassData
	case is(ErrOverloaded):
		return ClassOverloaded
	case is(ErrUncertain):
		return ClassUncertain
	case is(ErrClosed, context.Canceled, coherence.ErrTrackerClosed):
		return ClassCanceled
	case is(context.DeadlineExceeded, os.ErrDeadlineExceeded):
		return ClassTimeout
	case is(driver.ErrBadConn, sql.ErrConnDone, io.EOF, io.ErrUnexpectedEOF, net.ErrClosed):
		return ClassConnection
	}
	if network, ok := errors.AsType[net.Error](err); ok {
		if network.Timeout() {
			return ClassTimeout
		}
		return ClassConnection
	}
	return ClassOther
}
