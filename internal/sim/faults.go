package sim

import "time"

// faults says until when each fault lasts, on the history's clock; 0 = it has not been. Those of
// replicas stand by place.
type faults struct {
	postgresDown, postgresSilent, commitsUnknown time.Duration
	redisDown, redisSilent, redisLate            time.Duration
	shardSilent                                  [shards]time.Duration
	pollsLost, pollsSlow, loadsSlow              [maxReplicas]time.Duration
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
		w.postgres.crash()
		w.during(&f.postgresDown, op.For)
	case PostgresFailover:
		w.lost(w.postgres.failover(op.N))
		w.during(&f.postgresDown, op.For)
	case CommitsUnknown:
		w.during(&f.commitsUnknown, op.For)
	case TrimLog:
		w.postgres.trim(w.now(), 0)
		w.postgres.trim(w.now()+1, 0)
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
		w.redis.failover(op.N)
	case RedisDump:
		w.redis.restore()
	case RedisFlush:
		w.redis.flush()
	case RedisEvict:
		_, d := w.name(scheduler, callOp, "evict")
		w.redis.evict(d, op.N)
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
		case w.faults.redisSilent > w.now(), w.faults.shardSilent[shardOf(key)] > w.now():
			return way{lost: true}
		case w.faults.redisLate > w.now():
			return way{slow: d.span(0, time.Second)}
		}
		return way{}
	}
}
