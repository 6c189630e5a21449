package verify

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"sync"
)

const (
	requestLimit = 256 // under way at once; then the replica stops reading more
	sweepers     = 16  // reads at once of a sweep
)

// RunReplica is the life of a replica's process: it reads a setup and then requests from stdin, and
// writes replies to stdout, until stdin or ctx ends. The program that runs a verification calls it,
// and nothing else, when it is started with the arguments of [Options.Program].
func RunReplica(ctx context.Context, open Open, stdin io.Reader, stdout io.Writer) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	decoder := json.NewDecoder(bufio.NewReader(stdin))
	r := &replica{out: json.NewEncoder(stdout), places: make(chan struct{}, requestLimit)}
	if err := decoder.Decode(&r.setup); err != nil {
		return fmt.Errorf("verify: replica: setup: %w", err)
	}
	var err error
	if r.subject, err = open(ctx, r.setup.At); err != nil {
		return errors.Join(err, r.reply(reply{Error: err.Error()}))
	}
	if err := r.reply(reply{}); err != nil {
		return errors.Join(err, r.subject.Close())
	}
	err = r.serve(ctx, decoder)
	cancel()
	r.work.Wait()
	if r.load != nil {
		_, stopped := r.load.stop()
		err = errors.Join(err, stopped)
	}
	return errors.Join(err, r.subject.Close())
}

// replica serves requests.
type replica struct {
	setup   setup
	subject Subject
	places  chan struct{} // one for each request under way
	work    sync.WaitGroup
	load    *load // nil = none

	mu  sync.Mutex
	out *json.Encoder
}

func (r *replica) reply(answer reply) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.out.Encode(answer)
}

// serve answers requests until there are no more.
func (r *replica) serve(ctx context.Context, from *json.Decoder) error {
	for {
		var q request
		if err := from.Decode(&q); errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return fmt.Errorf("verify: replica: request: %w", err)
		}
		switch q.Verb {
		case verbLoad, verbStop: // in their order
			answer := r.steer(ctx, q)
			answer.ID = q.ID
			if err := r.reply(answer); err != nil {
				return err
			}
			continue
		default:
		}
		r.places <- struct{}{}
		r.work.Go(func() {
			defer func() { <-r.places }()
			answer := r.answer(ctx, q)
			answer.ID = q.ID
			_ = r.reply(answer) // a parent that is gone needs none
		})
	}
}

func (r *replica) steer(ctx context.Context, q request) (answer reply) {
	var err error
	if q.Verb == verbLoad {
		if r.load != nil {
			return reply{Error: "there is a load already"}
		}
		r.load, err = startLoad(ctx, r.setup, q.Load, r.subject)
	} else {
		// Also what the parent no longer waits for: a write would be taken for one that came after the end.
		r.work.Wait()
		if r.load != nil {
			answer.Load, err = r.load.stop()
			r.load = nil
		}
	}
	if err != nil {
		answer.Error = err.Error()
	}
	return answer
}

func (r *replica) answer(ctx context.Context, q request) (answer reply) {
	var err error
	want := Want{Budget: q.Budget, Token: q.Token}
	answer.Invoked = Now()
	switch q.Verb {
	case verbGet:
		ctx, cancel := context.WithTimeout(ctx, readLimit)
		defer cancel()
		answer.Answer, err = r.subject.Get(ctx, q.Key, want)
	case verbList:
		ctx, cancel := context.WithTimeout(ctx, readLimit)
		defer cancel()
		answer.List, err = r.subject.List(ctx, q.Key, want)
	case verbWrite:
		ctx, cancel := context.WithTimeout(ctx, writeLimit)
		defer cancel()
		answer.Answer.Token, err = r.subject.Write(ctx, q.Change)
	case verbSweep:
		answer.Sweep = r.sweep(ctx, want)
	case verbStats:
		if s, ok := r.subject.(SourceLoader); ok {
			answer.Stats = s.SourceLoad()
		}
	default:
		err = fmt.Errorf("no such request: %q", q.Verb)
	}
	answer.Returned = Now()
	if err != nil {
		answer.Error = err.Error()
	}
	return answer
}

// sweep reads every row and every list.
func (r *replica) sweep(ctx context.Context, want Want) sweep {
	s := sweep{Rows: make([]swept, r.setup.Keys), Lists: make([]sweptList, r.setup.Groups)}
	var mu sync.Mutex
	lacked := func(err error) {
		mu.Lock()
		defer mu.Unlock()
		if s.Lacked++; s.Lacked == 1 {
			s.First = err.Error()
		}
	}
	var work sync.WaitGroup
	for first := range uint64(sweepers) {
		work.Go(func() {
			for i := first; i < r.setup.Keys; i += sweepers {
				a := r.answer(ctx, request{Verb: verbGet, Key: i + 1, Budget: want.Budget})
				if a.Answer.Token = ""; a.Error != "" {
					lacked(errors.New(a.Error))
				}
				s.Rows[i] = swept{a.Answer, a.Invoked, a.Returned, a.Error != ""}
			}
			for i := first; i < r.setup.Groups; i += sweepers {
				a := r.answer(ctx, request{Verb: verbList, Key: i + 1, Budget: want.Budget})
				if a.List.Token = ""; a.Error != "" {
					lacked(errors.New(a.Error))
				}
				s.Lists[i] = sweptList{a.List, a.Invoked, a.Returned, a.Error != ""}
			}
		})
	}
	work.Wait()
	return s
}
