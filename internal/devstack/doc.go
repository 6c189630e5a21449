// Package devstack runs the servers that Freshet needs, for real, for as long
// as a test, a benchmark or a demonstration lasts: a Redis Cluster of three
// primaries and three replicas, a Postgres server, and a NATS server with
// JetStream.
//
//	stack, err := devstack.Start(ctx, devstack.Options{})
//	if err != nil {
//		return err
//	}
//	defer stack.Close()
//	use(stack.Postgres.DSN(), stack.Redis.Addrs(), stack.NATS.URL())
//
// # Model
//
// A [Stack] is one temporary folder with everything in it: data, configuration
// and a log file per server. Redis and Postgres are child processes; NATS runs
// inside this process. All of them listen on 127.0.0.1 only, on ports of one
// reserved block outside the range from which operating systems take ports for
// outgoing connections, so that a stopped server finds its port free when it
// starts again. [Start] returns when every server does its work: all slots of
// the cluster are served, every replica is attached, Postgres answers a query,
// NATS accepts connections.
//
// Each part can be stopped, killed, paused (its processes freeze but its
// connections stay open, as when a machine hangs) and started again on the same
// port; a [Proxy] stands between one client and one server and cuts, stalls or
// delays what passes. What a failing server does to its clients can so be tested
// with the server itself.
//
// # What is left behind
//
// Nothing, and on every way out:
//   - [Stack.Close], a failed Start and a Start whose context ends stop all
//     processes and remove the folder before they return.
//   - When this process dies without Close (SIGKILL, a crash, a test timeout),
//     the kernel kills the children where it can (Linux: parent death signal).
//     Everywhere, a small shell process, the reaper, waits on a pipe that this
//     process holds open; when the pipe closes, it kills what still runs in the
//     folder and removes the folder.
//
// # Not promised
//
// The stack is for throw-away data on one machine. Redis keeps nothing on disk
// but its cluster configuration: a Redis node that was stopped starts empty.
// Postgres runs with fsync off: it keeps every commit when its processes are
// killed, but not when the operating system crashes. Postgres asks for the
// password that is part of [Postgres.DSN]; NATS asks for none, nor does Redis unless
// [Options.RedisSecure] says so.
package devstack
