-- Write-behind: what of the queue in JetStream has come to Postgres, and what Postgres would not have.
-- A role that is not these tables' owner and runs nodes needs select, insert, update and delete on them.

-- +goose Up

-- The order of puts. A stream of NATS numbers its messages, but a stream that is made anew, or that has lost
-- its end in a power cut, gives out numbers again: then a later epoch begins. Puts are in the order of (epoch,
-- number).
create table freshet.queues (
    epoch   bigint      generated always as identity primary key,
    app     text        not null,
    stream  text        not null,
    after   bigint      not null,
    trimmed bigint      not null default 0,
    begun   timestamptz not null default clock_timestamp()
);
comment on table freshet.queues is
    'epochs of the streams of puts: stream is when NATS made it, in ns; the epoch is that of the messages above after, '
    'but for those of later epochs of the same stream; trimmed is the highest message whose row in applied is deleted';
create index queues_app on freshet.queues (app);

-- The last put of each key that is in the tables, written by the transaction that put it there. A put that is
-- not later is not written again.
create table freshet.applied (
    app       text        not null,
    namespace text        not null,
    id        text        not null,
    epoch     bigint      not null,
    seq       bigint      not null,
    at        timestamptz not null default clock_timestamp(),
    primary key (app, namespace, id)
);
create index applied_order on freshet.applied (app, epoch, seq);
create index applied_at on freshet.applied (app, namespace, at);

-- Puts that were given up.
create table freshet.dead_letters (
    letter    bigint      generated always as identity primary key,
    app       text        not null,
    namespace text        not null,
    id        text        not null,
    epoch     bigint      not null,
    seq       bigint      not null,
    value     text,
    error     text        not null,
    attempts  integer     not null,
    put_at    timestamptz not null,
    dead_at   timestamptz not null default clock_timestamp(),
    unique (app, epoch, seq)
);
comment on table freshet.dead_letters is 'puts that Postgres would not have; value is JSON, null for a deletion';
create index dead_letters_key on freshet.dead_letters (app, namespace, id);
