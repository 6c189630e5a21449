package sim

import (
	"strings"
	"time"

	"github.com/freshet-cache/freshet/coherence"
	"github.com/freshet-cache/freshet/internal/model"
)

// faults says until when each fault lasts, on the history's clock; 0 = it has not been. Those of
// replicas stand by place.
type faults struct {
	postgresDown, postgresSilent, commitsUnknown time.Duration
	redisDown, redisSilent, redisLate            time.Duration
	shardSilent                                  [shards]time.Duration
	pollsLost, pollsSlow, loadsSlow, standby     [maxReplicas]time.Duration
	hintsLost, hintsLate, hintsTwice             [maxReplicas]time.Duration
}

// during extends a fault to the given span from now on.
func (w *world) during(until *time.Duration, span time.Duration) { *until = max(*until, w.now()+span) }

// fault brings one about.
func (w *world) fault(op Op) {
	f := &w.faults
	places := []int{op.Replica}
	if op.Replica < 0 {
		places = places[:0]
		for place := range w.replicas {
			places = append(places, place)
		}
	}
	each := func(until *[maxReplicas]time.Duration) {
		for _, place := range places {
			w.during(&until[place], op.For)
		}
	}
	w.out.Faults[op.Kind]++
	switch op.Kind {
	case PostgresDown:
		w.during(&f.postgresDown, op.For)
	case PostgresSilent:
		w.during(&f.postgresSilent, op.For)
	case PostgresCrash:
		w.postgres.Crash(op.N%2 == 0)
		w.olds = nil
		w.during(&f.postgresDown, op.For)
	case PostgresFailover:
		w.out.Lost += len(w.postgres.Failover(op.N, op.N%2 == 0))
		w.olds = nil
		w.observe()
		w.during(&f.postgresDown, op.For)
	case LoadsFromStandby:
		each(&f.standby)
	case CommitsUnknown:
		w.during(&f.commitsUnknown, op.For)
	case TrimLog:
		w.postgres.Trim(w.now(), 0, model.TrimAtMost)
		w.postgres.Trim(w.now()+1, 0, model.TrimAtMost)
	case Regenerate:
		w.postgres.SetGeneration([]string{namespace, ""}[op.N%2], uint32(1+op.N/2%3))
	case PollsLost:
		each(&f.pollsLost)
	case PollsSlow:
		each(&f.pollsSlow)
	case LoadsSlow:
		each(&f.loadsSlow)
	case RedisDown:
		w.during(&f.redisDown, op.For)
	case RedisSilent:
		w.during(&f.redisSilent, op.For)
	case RedisLate:
		w.during(&f.redisLate, op.For)
	case ShardSilent:
		w.during(&f.shardSilent[op.N%shards], op.For)
	case RedisFailover:
		for shard := range shards {
			w.redis.Replicate(shard, max(w.redis.Behind(shard)-op.N, 0))
			w.redis.Failover(shard)
		}
	case RedisDump:
		for shard, dump := range w.dumps[0] {
			w.redis.Restart(shard, dump)
		}
	case RedisFlush:
		for shard := range shards {
			w.redis.Flush(shard)
		}
	case RedisEvict, RedisMixed:
		w.spoil(op)
	case HintsLost:
		each(&f.hintsLost)
	case HintsLate:
		each(&f.hintsLate)
	case HintsTwice:
		each(&f.hintsTwice)
	case HintsAbsurd, HintsOfAnother, HintsFromBefore:
		w.oddHint(op)
	case Stop:
		r := w.replicas[op.Replica]
		w.during(&r.stoppedUntil, op.For)
	case Restart:
		w.restart(op.Replica)
	default:
	}
}

// lagging is the state that the replica's loads are answered from; nil = the present one.
func (w *world) lagging(r *replica) *coherence.Snapshot {
	if w.faults.standby[r.place] <= w.now() || len(w.olds) == 0 {
		return nil
	}
	return &w.olds[0]
}

// spoil evicts some keys, or puts the value of one under the next, or cuts it.
func (w *world) spoil(op Op) {
	_, d := w.name(scheduler, callOp, op.Kind.String())
	before := ""
	for shard := range shards {
		for _, key := range w.redis.Keys(w.now(), shard) {
			value, _ := w.redis.Get(w.now(), key)
			switch {
			case op.Kind == RedisEvict:
				if d.one(op.N) {
					w.redis.Evict(key)
				}
			case strings.HasSuffix(key, ":lease"):
				continue
			case d.one(8):
				w.redis.Set(w.now(), key, value[:d.n(len(value))], time.Hour)
			case before != "":
				w.redis.Set(w.now(), key, before, time.Hour)
			}
			before = value
		}
	}
}

// save lets Redis write its state to disk now and then.
func (w *world) save() {
	w.dumps[0], w.dumps[1] = w.dumps[1], nil
	for shard := range shards {
		w.dumps[1] = append(w.dumps[1], w.redis.Save(shard))
	}
	w.at(w.now()+saveEvery, scheduler, callOp, "save", 0, w.save)
}

// shards of the simulated Redis, and how often it saves.
const (
	shards    = 2
	saveEvery = 500 * time.Millisecond
)

// heal ends every fault.
func (w *world) heal() {
	w.faults = faults{}
	for _, r := range w.replicas {
		r.stoppedUntil = min(r.stoppedUntil, w.now())
	}
}

// The ways of requests. They are asked for under the world's lock, with draws of their own.

func (w *world) wayToPostgres(*draw) way { return way{lost: w.faults.postgresSilent > w.now()} }

func (w *world) wayOfCommits(d *draw) way {
	way := w.wayToPostgres(d)
	way.replyLost = w.faults.commitsUnknown > w.now()
	return way
}

func (r *replica) wayOfPolls(d *draw) way {
	w := r.world
	way := w.wayToPostgres(d)
	switch timeout := w.plan.PollTimeout; {
	case w.faults.pollsLost[r.place] > w.now():
		way.replyLost = true
	case w.faults.pollsSlow[r.place] > w.now():
		way.slow, way.slowReply = d.span(0, timeout), d.span(0, timeout)
	}
	return way
}

func (r *replica) wayOfLoads(d *draw) way {
	w := r.world
	way := w.wayToPostgres(d)
	if w.faults.loadsSlow[r.place] > w.now() {
		way.slow, way.slowReply = d.span(0, 600*time.Millisecond), d.span(0, 600*time.Millisecond)
	}
	return way
}

func (w *world) wayToRedis(key string) func(d *draw) way {
	return func(d *draw) way {
		switch {
		case w.faults.redisSilent > w.now(), w.faults.shardSilent[w.redis.Shard(key)] > w.now():
			return way{lost: true}
		case w.faults.redisLate > w.now():
			return way{slow: d.span(0, time.Second)}
		}
		return way{}
	}
}
