package nodeconfig

import (
	"errors"
	"maps"
	"math"
	"slices"
	"strings"
	"time"

	"github.com/freshet-cache/freshet/cluster"
	"github.com/freshet-cache/freshet/node"
)

const day = 24 * time.Hour

// Node declares the keys of a node: all of its [node.Config] but what is code. Load validates it.
func (s *Settings) Node(c *node.Config) {
	s.Add("app", "Name of the application in keys, subjects and metrics, which its replicas share: a letter a-z, then up to 31 of a-z, 0-9 and dashes.", Text(&c.App).Without("none: required"))
	s.Add("id", "Name of this replica among its peers, up to 64 letters, digits, dots, dashes and underscores.", Text(&c.ID).Without("the host name, and what sets it apart"))
	s.Add("address", "Address at which peers and operators reach this replica, host:port.", Text(&c.Address))
	s.Add("budget", "Freshness budget of reads that name none: how old a FRESH answer may be. Above postgres.poll_interval.", Duration(&c.Budget, time.Millisecond, node.MaxBudget).Default("1s"))
	s.Add("max_stale", "How old a STALE answer may be while freshness cannot be proven; 0s gives none.", Duration(&c.MaxStale, 0, node.MaxBudget).Default("0s"))
	s.postgres(&c.Postgres)
	s.redis(&c.Redis)
	s.Add("nats.urls", "URLs of NATS servers; without, the node works without hints and peers.", URLs(&c.NATS.URLs))
	s.Add("nats.credentials_file", "Path of a credentials file of NATS.", Text(&c.NATS.Credentials))
	s.ClientTLS("nats.tls", "NATS", &c.NATS.TLS)
	s.writeBehind(&c.WriteBehind)
	s.Add("verify.every", "Time between two samples of L1 that are compared with the source.", Duration(&c.Verify.Every, time.Second, day).Without("never"))
	s.Add("verify.sample", "Entries of one sample, of all caches together.", Int(&c.Verify.Sample, 1, 1000).Default("32"))
	finish := s.caches()
	s.Check(func() error {
		c.Caches = finish()
		return c.Validate()
	})
}

func (s *Settings) postgres(c *node.PostgresConfig) {
	dsn := Text(&c.DSN)
	dsn.hide = hideDSN
	s.secret("postgres.dsn", "DSN of the primary, lib/pq's URL or key=value text: postgres://user:password@host:5432/database.", dsn.Without("none: required"))
	s.Add("postgres.max_conns", "Loads that run at once. Writes have as many connections of their own, the log has one.", Int(&c.MaxConns, 1, 1000).Default("16"))
	s.Add("postgres.queue", "Loads that wait for their turn; beyond them reads are refused as overload.", Int(&c.Queue, 1, 1_000_000).Default("256"))
	s.Add("postgres.poll_interval", "Time between two polls of the log of changes.", Duration(&c.PollInterval, time.Millisecond, time.Minute).Default("250ms"))
	s.Add("postgres.poll_timeout", "Longest wait for one poll.", Duration(&c.PollTimeout, 10*time.Millisecond, time.Minute).Default("1s"))
	s.Add("postgres.relay_from", "Up to how many replicas each polls for itself; of more, two, or one in 64, relay to the others. Off: nobody relays.",
		Int(&c.RelayFrom, 1, math.MaxInt32).Word("off", func() { c.RelayFrom = -1 }).Default("32"))
	s.Add("postgres.load_timeout", "Longest load, waiting included.", Duration(&c.LoadTimeout, 10*time.Millisecond, 10*time.Minute).Default("5s"))
	s.Add("postgres.write_timeout", "Longest wait for the answer to each statement of a write.", Duration(&c.WriteTimeout, 10*time.Millisecond, day).Default("30s"))
	s.Add("postgres.retention", "How long changes stay in the log.", Duration(&c.Retention, time.Minute, 7*day).Default("1h"))
	s.Add("postgres.watch_interval", "Time between two checks of the watches of tables: so long may the changes of a table whose triggers are disabled go unnoticed.",
		Duration(&c.WatchInterval, 10*time.Millisecond, 10*time.Minute).Default("5s"))
}

func (s *Settings) redis(c *node.RedisConfig) {
	s.Add("redis.addrs", "Some servers of the Redis Cluster, host:port; without, the node works without L2.", URLs(&c.Addrs))
	s.Add("redis.username", "ACL user at Redis.", Text(&c.Username))
	s.Secret("redis.password", "Password at Redis.", &c.Password)
	s.ClientTLS("redis.tls", "Redis", &c.TLS)
	s.Add("redis.timeout", "Longest wait for each call of Redis.", Duration(&c.Timeout, time.Millisecond, time.Minute).Default("50ms"))
	s.Add("redis.lease_wait", "How long a miss waits for another replica that is loading the same key before it loads, too, out of postgres.load_timeout; at most a quarter of that by default.",
		Duration(&c.LeaseWait, time.Millisecond, time.Minute).Default("500ms"))
	s.Add("redis.max_value", "Largest entry that is stored in Redis; larger ones stay in L1, if they fit.", Size(&c.MaxValue, 1, 512<<20).Default("8MiB"))
	s.Add("redis.clean_rate", "Keys that the primaries go through in a second, all together, when entries of old generations are removed.", Int(&c.CleanRate, 1, 1_000_000).Default("10000"))
}

func (s *Settings) writeBehind(c *node.WriteBehind) {
	add := func(name, doc string, v Value) { s.Add("write_behind."+name, doc, v) }
	add("max_pending", "Puts that wait in the stream, over all namespaces; beyond them they are refused as overload.", Int(&c.MaxPending, 1, 1_000_000).Default("10000"))
	add("max_bytes", "Bytes that wait in the stream, which JetStream sets aside.", Size(&c.MaxBytes, 1, 16<<30).Default("64MiB"))
	add("replicas", "Replicas of the stream among the servers of a NATS cluster.", Int(&c.Replicas, 1, 5).Default("1"))
	add("timeout", "Longest wait of one put for the stream.", Duration(&c.Timeout, 10*time.Millisecond, time.Minute).Default("5s"))
	add("batch", "Puts of one transaction.", Int(&c.Batch, 1, 10_000).Default("100"))
	add("flush_every", "How long the first put of a batch waits for others.", Duration(&c.FlushEvery, time.Millisecond, time.Minute).Default("20ms"))
	add("flushers", "Batches of one cache that this replica writes at once. None: other replicas flush.",
		Int(&c.Flushers, 1, 16).Word("none", func() { c.Flushers = -1 }).Default("1"))
	add("ack_wait", "How long nothing may be heard of a batch before another replica takes it.", Duration(&c.AckWait, 100*time.Millisecond, time.Hour).Default("5s"))
	add("max_attempts", "How often a put is tried that Postgres refuses before it becomes a dead letter.", Int(&c.MaxAttempts, 1, 1000).Default("5"))
	add("min_retry", "Pause after the first attempt that failed; it doubles.", Duration(&c.MinRetry, time.Millisecond, time.Hour).Default("100ms"))
	add("max_retry", "Longest pause between two attempts.", Duration(&c.MaxRetry, time.Millisecond, day).Default("10s"))
}

// caches declares the family of settings of caches, and returns what makes them a map when they are in place.
func (s *Settings) caches() func() map[string]node.CacheSettings {
	all := map[string]*cacheKeys{}
	f := &family{section: "caches", example: "product", declared: map[string]bool{}}
	f.check = func(name string) error {
		namespace, view, both := strings.Cut(name, "/")
		if both && cluster.CheckView(view) != nil || cluster.CheckNamespace(namespace) != nil {
			return errors.New("no name of a cache; want a namespace, or namespace/view, each a letter a-z, then up to 63 of a-z 0-9 _ . -")
		}
		return nil
	}
	f.declare = func(name string) {
		all[name] = &cacheKeys{}
		all[name].declare(func(suffix, doc string, v Value) { s.Add("caches."+name+"."+suffix, doc, v) })
	}
	(&cacheKeys{}).declare(func(suffix, _ string, _ Value) { f.suffixes = append(f.suffixes, suffix) })
	s.families = append(s.families, f)
	return func() map[string]node.CacheSettings {
		made := map[string]node.CacheSettings{}
		for _, name := range slices.Sorted(maps.Keys(all)) {
			made[name] = all[name].settings(func(suffix string) bool { return s.byName["caches."+name+"."+suffix].said != nil })
		}
		return made
	}
}

// cacheKeys are the variables of a cache's keys.
type cacheKeys struct {
	node.CacheSettings

	refresh  node.Refresh
	compress node.Compression
	peers    bool
}

// declare hands the keys to add. None has a default: what is not given is as the code says.
func (c *cacheKeys) declare(add func(suffix, doc string, v Value)) {
	const tenYears = 10 * 365 * day
	add("ttl", "How long an entry of what exists is kept, with a tenth of jitter. It saves space; freshness does not need it.", Duration(&c.TTL, 10*time.Millisecond, tenYears))
	add("negative_ttl", "The same for what does not exist.", Duration(&c.NegativeTTL, 10*time.Millisecond, tenYears))
	add("refresh.ahead", "Part of its time to live behind which an entry that is hit is loaded anew; 0 is never. With it, refresh.beta is 0 unless given.", Number(&c.refresh.Ahead, 0, 0.999))
	add("refresh.beta", "XFetch: a hit refreshes the more likely the nearer the expiry is; 1 is usual, 0 is never. With it, refresh.ahead is 0 unless given.", Number(&c.refresh.Beta, 0, 100))
	add("budget", "Freshness budget of reads that name none. Above postgres.poll_interval.", Duration(&c.Budget, time.Millisecond, node.MaxBudget))
	add("max_stale", "How old a STALE answer may be while freshness cannot be proven.",
		Duration(&c.MaxStale, time.Millisecond, node.MaxBudget).Word("none", func() { c.MaxStale = -1 }))
	add("soft_timeout", "How long a read waits, for a poll or a load, before it takes a STALE answer that it may have. Up to load_timeout.", Duration(&c.SoftTimeout, time.Millisecond, 10*time.Minute))
	add("load_timeout", "Longest load, waiting included. Up to postgres.load_timeout.", Duration(&c.LoadTimeout, 10*time.Millisecond, 10*time.Minute))
	add("retry_after", "For how long after a load failed reads of its id that may have a STALE answer take it without asking again.", Duration(&c.RetryAfter, time.Millisecond, time.Hour))
	add("max_entries", "Entries in L1.", Int(&c.MaxEntries, 1, math.MaxInt32))
	add("max_bytes", "Bytes in L1, of encoded values and what stands around them.", Size(&c.MaxBytes, 1, 1<<40))
	add("max_value", "Largest encoded value that is kept, before compression.", Size(&c.MaxValue, 1, 64<<20))
	add("compress.algorithm", "How what is stored in Redis is compressed. With any of compress, the others are their defaults unless given.",
		OneOf(&c.compress.Algorithm, []string{"s2", "zstd", "none"}, []node.Algorithm{node.S2, node.Zstd, node.NoCompression}))
	add("compress.above", "Size of an encoded value above which it is compressed.", Size(&c.compress.Above, 1, 64<<20))
	add("compress.level", "From the fastest to the smallest.", Int(&c.compress.Level, 1, 3))
	add("warm_up.peers", "Whether L1 is filled with what other replicas read most before the node is ready.", Bool(&c.peers))
	add("warm_up.limit", "Ids of one run.", Int(&c.WarmUp.Limit, 1, 10_000_000))
	add("warm_up.rate", "Ids that are read in a second.", Int(&c.WarmUp.Rate, 1, 1_000_000))
	add("warm_up.timeout", "How long readiness waits.", Duration(&c.WarmUp.Timeout, 10*time.Millisecond, 10*time.Minute))
	add("warm_up.every", "Time after which it is done again.", Duration(&c.WarmUp.Every, time.Second, 7*day))
}

// settings are what was said.
func (c *cacheKeys) settings(said func(suffix string) bool) node.CacheSettings {
	made := c.CacheSettings
	if said("refresh.ahead") || said("refresh.beta") {
		made.Refresh = &c.refresh
	}
	if said("compress.algorithm") || said("compress.above") || said("compress.level") {
		made.Compress = &c.compress
	}
	if said("warm_up.peers") {
		made.WarmUp.Peers = &c.peers
	}
	return made
}
