package verify

import (
	"cmp"
	"context"
	"math/rand/v2"
	"time"

	"github.com/freshet-cache/freshet/internal/history"
)

// Sessions hop: they carry their token from replica to replica.
const (
	hoppers   = 6               // sessions at once
	hopRate   = 40              // steps per second of each
	hopLimit  = 7 * time.Second // a replica that does not answer by then is left alone
	hopWrites = 0.15            // share of steps that write
)

// hop is one session: it reads and writes, each time on another replica, with the token of its last
// step.
func (s *stand) hop(ctx context.Context, session uint64) {
	c := s.choices()
	pace := newPace(hopRate)
	var token string
	// What a session has seen of a few rows is what it is held to.
	keys := c.some(4)
	for pace.wait(ctx) {
		sites := s.all()
		p := sites[rand.IntN(len(sites))].here()
		if p == nil {
			continue
		}
		key := keys[c.IntN(len(keys))]
		limited, cancel := context.WithTimeout(ctx, hopLimit)
		if c.Float64() < hopWrites {
			change := c.change()
			if change.Kind != Rename {
				change.Key = key
			}
			change.Op, change.Sent = s.ledger.number(), Now()
			r, err := p.ask(limited, request{Verb: verbWrite, Change: change})
			acked := history.Never
			if err == nil {
				acked = r.Returned
				token = cmp.Or(r.Answer.Token, token) // one that changed nothing has none
			} else {
				s.ledger.attempt(err)
			}
			s.ledger.wrote(history.Write{Op: change.Op, Keys: change.keys(), Sent: change.Sent, Acked: acked, Session: session, Idle: change.Kind != Set})
		} else {
			budget := []time.Duration{shortBudget, longBudget}[c.IntN(2)]
			r, err := p.ask(limited, request{Verb: verbGet, Key: key, Budget: budget, Token: token})
			if err == nil {
				token = r.Answer.Token
				s.ledger.read(history.Read{
					Key: key, Op: r.Answer.Op, Fresh: r.Answer.Fresh, Tier: r.Answer.Tier, Replica: p.number, Session: session,
					Budget: budget, Invoked: r.Invoked, Returned: r.Returned,
				})
			}
		}
		cancel()
	}
}
