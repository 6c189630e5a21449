package node

import (
	"errors"
	"testing"
	"testing/synctest"
	"time"
)

// Of too many surveys at once one waits, and is refused when none of them ends in time.
func TestSurveysAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := &Node{surveys: make(chan struct{}, maxSurveys)}
		var ends []func()
		for range maxSurveys {
			end, err := n.survey(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			ends = append(ends, end)
		}
		began := time.Now()
		if _, err := n.survey(t.Context()); !errors.Is(err, ErrOverloaded) || time.Since(began) != surveyTimeout {
			t.Errorf("one too many: %v after %v", err, time.Since(began))
		}
		time.AfterFunc(time.Second, ends[0])
		if _, err := n.survey(t.Context()); err != nil {
			t.Errorf("when one ends: %v", err)
		}
	})
}
