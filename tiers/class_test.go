package tiers

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"testing"

	"github.com/lib/pq"
)

func TestClassOf(t *testing.T) {
	id := "an-id"
	because := func(cause error) error { return fmt.Errorf("thing %q: %w", id, cause) }
	for want, errs := range map[ErrorClass][]error{
		0:               {nil},
		ClassCanceled:   {context.Canceled, ErrClosed},
		ClassTimeout:    {context.DeadlineExceeded, os.ErrDeadlineExceeded, &pq.Error{Code: "57014"}, &net.DNSError{IsTimeout: true}},
		ClassOverloaded: {ErrOverloaded},
		ClassConnection: {io.EOF, &net.OpError{Op: "dial", Err: errors.New("refused")}, &pq.Error{Code: "08006"}},
		ClassServer:     {&pq.Error{Code: "42P01", Message: id}},
		ClassData:       {ErrBadID, ErrTooLarge, errRow, &pq.Error{Code: "22P02", Message: id}, &pq.Error{Code: "23505"}},
		ClassUncertain:  {ErrUncertain},
		ClassOther:      {errors.New(id)},
	} {
		for _, err := range errs {
			if err != nil {
				err = because(err)
			}
			if got := ClassOf(err); got != want {
				t.Errorf("%v is %q, want %q", err, got, want)
			}
			if err != nil && strings.Contains(Loggable(err), id) {
				t.Errorf("%q tells of the id", Loggable(err))
			}
		}
		if (want == 0) != (want.String() == "") {
			t.Errorf("class %d is called %q", want, want)
		}
	}
	if text := Loggable(because(&pq.Error{Code: "22P02"})); text != "data: SQLSTATE 22P02" {
		t.Errorf("got %q", text)
	}
	if text := Loggable(because(errors.New(id))); text != "other: *errors.errorString" {
		t.Errorf("got %q", text)
	}
}
