-- Changes with a grace, and changes that count later: after a delay, or when a named batch is run.

-- +goose Up

-- How long after its commit values from before the change may still be served, labelled, in
-- milliseconds: what the transaction has said by freshet.grace, also for rows that triggers write.
alter table freshet.log add column grace integer not null
    default coalesce(nullif(current_setting('freshet.grace', true), ''), '0')::integer
    check (grace between 0 and 3600000);

-- A grace in milliseconds; null = what the transaction has said by freshet.grace.
-- +goose StatementBegin
create function freshet.grace_of(caller text, grace interval) returns integer
language plpgsql stable set search_path = pg_catalog, pg_temp as $$
begin
    if grace < interval '0' or grace > interval '1 hour' then
        raise exception '%: grace is %; want 0 to 1 hour', caller, grace using errcode = '22023';
    end if;
    return coalesce(floor(extract(epoch from grace) * 1000)::integer,
                    coalesce(nullif(current_setting('freshet.grace', true), ''), '0')::integer);
end $$;
-- +goose StatementEnd

-- Says that values from before what this transaction changes from here on may still be served for so
-- long after its commit, labelled, while they are loaded anew. 0 = not any more.
-- +goose StatementBegin
create function freshet.grace(grace interval) returns void
language plpgsql set search_path = pg_catalog, pg_temp as $$
begin
    if grace is null then
        raise exception 'freshet.grace: grace is null; want 0 to 1 hour' using errcode = '22023';
    end if;
    perform set_config('freshet.grace', freshet.grace_of('freshet.grace', grace)::text, true);
end $$;

-- freshet.invalidate and its like for the kind of what changes, with a grace; null = that of the transaction.
create function freshet.log_change(
    caller text, kind "char", namespace text, ids text[], view text, grace interval
) returns void language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
begin
    perform freshet.check_change(caller, kind, namespace, ids, view);
    insert into freshet.log (kind, namespace, id, view, grace)
    select log_change.kind, coalesce(log_change.namespace, ''), i, coalesce(log_change.view, ''), freshet.grace_of(caller, log_change.grace)
      from unnest(ids) i group by i;
end $$;

create function freshet.check_change(caller text, kind "char", namespace text, ids text[], view text) returns void
language plpgsql immutable set search_path = pg_catalog, pg_temp as $$
begin
    if kind <> 't' and coalesce(namespace, '') = '' then
        raise exception '%: namespace is empty; want the namespace of a cache', caller using errcode = '22023';
    end if;
    if ids is null or kind <> 'n' and exists (select from unnest(ids) id where coalesce(id, '') = '') then
        raise exception '%: % is empty or null; want %', caller,
            case kind when 't' then 'a tag' else 'an id' end,
            case kind when 't' then 'the tag of an entry' else 'the id of an entity' end using errcode = '22023';
    end if;
    if kind = 'v' and coalesce(view, '') = '' then
        raise exception '%: view is empty; want the view of a cache', caller using errcode = '22023';
    end if;
end $$;

-- freshet.invalidate with a grace of its own.
create function freshet.invalidate_with_grace(grace interval, namespace text, variadic ids text[]) returns void
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
begin
    perform freshet.log_change('freshet.invalidate_with_grace', 'e', namespace, ids, null, coalesce(grace, interval '-1'));
end $$;
-- +goose StatementEnd

-- Changes that wait. They go into the log in the transaction that deletes them here, so that they take
-- effect once, whoever runs them and whoever dies meanwhile.
create table freshet.scheduled (
    seq       bigint      generated always as identity primary key,
    batch     text        not null default '', -- '' = of no batch
    due       timestamptz,                     -- null = not before its batch is run
    kind      "char"      not null check (kind in ('v', 'e', 't', 'n')),
    namespace text        not null default '',
    id        text        not null default '',
    view      text        not null default '',
    grace     integer     not null check (grace between 0 and 3600000),
    who       text        not null default session_user,
    at        timestamptz not null default clock_timestamp(),
    check (batch <> '' or due is not null)
);
comment on table freshet.scheduled is
    'changes that go into freshet.log when they are due or their batch is run; kind, namespace, id, view, grace as there';
create index scheduled_due on freshet.scheduled (due) where due is not null;
create index scheduled_batch on freshet.scheduled (batch) where batch <> '';

-- The batches with something in them. A batch is due as a whole with the first of its changes.
create view freshet.batches as
select batch as name, count(*) as entries, min(due) as due, min(at) as since
  from freshet.scheduled where batch <> '' group by batch;

-- The one way into freshet.scheduled, for the functions below. It refuses what would make about 100,000
-- changes wait.
-- +goose StatementBegin
create function freshet.schedule(
    caller text, batch text, delay interval, kind "char", namespace text, ids text[], view text, grace interval default null
) returns void language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
declare
    most constant integer := 100000;
begin
    if batch is null or length(batch) > 200 or (batch = '' and delay is null) then
        raise exception '%: batch is %; want a name of 1 to 200 characters', caller, coalesce(quote_literal(left(batch, 20)), 'null')
            using errcode = '22023';
    end if;
    if delay <= interval '0' or delay > interval '1 year' then
        raise exception '%: delay is %; want more than 0 and at most 1 year', caller, delay using errcode = '22023';
    end if;
    perform freshet.check_change(caller, kind, namespace, ids, view);
    -- Rows are 70 bytes at least: only a large table needs to be counted.
    if (pg_relation_size('freshet.scheduled'::regclass) > 4000000 or cardinality(ids) > 30000)
        and (select count(*) from (select from freshet.scheduled limit most) waiting) + cardinality(ids) > most then
        raise exception '%: % changes wait already; want at most %: run or drop batches, or use a tag or a namespace',
            caller, (select count(*) from (select from freshet.scheduled limit most) waiting), most using errcode = '54000';
    end if;
    insert into freshet.scheduled (batch, due, kind, namespace, id, view, grace)
    select schedule.batch, clock_timestamp() + delay, schedule.kind, coalesce(schedule.namespace, ''), i, coalesce(schedule.view, ''),
           freshet.grace_of(caller, schedule.grace)
      from unnest(ids) i group by i;
end $$;

-- Says that entities, one view of one, all entries with a tag, or a whole namespace change when the
-- delay is over, counted from the call. If the transaction is rolled back, they do not.
create function freshet.invalidate_after(delay interval, namespace text, variadic ids text[]) returns void
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
begin
    perform freshet.schedule('freshet.invalidate_after', '', coalesce(delay, interval '0'), 'e', namespace, ids, null);
end $$;

create function freshet.invalidate_view_after(delay interval, namespace text, id text, view text) returns void
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
begin
    perform freshet.schedule('freshet.invalidate_view_after', '', coalesce(delay, interval '0'), 'v', namespace, array[id], view);
end $$;

create function freshet.invalidate_tag_after(delay interval, variadic tags text[]) returns void
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
begin
    perform freshet.schedule('freshet.invalidate_tag_after', '', coalesce(delay, interval '0'), 't', null, tags, null);
end $$;

create function freshet.invalidate_namespace_after(delay interval, namespace text) returns void
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
begin
    perform freshet.schedule('freshet.invalidate_namespace_after', '', coalesce(delay, interval '0'), 'n', namespace, array[''], null);
end $$;

-- Puts changes of entities, one view of one, tags, or a whole namespace into the named batch, which
-- begins with its first. They take effect when the batch is run.
create function freshet.batch_add(batch text, namespace text, variadic ids text[]) returns void
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
begin
    perform freshet.schedule('freshet.batch_add', batch, null, 'e', namespace, ids, null);
end $$;

create function freshet.batch_add_view(batch text, namespace text, id text, view text) returns void
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
begin
    perform freshet.schedule('freshet.batch_add_view', batch, null, 'v', namespace, array[id], view);
end $$;

create function freshet.batch_add_tag(batch text, variadic tags text[]) returns void
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
begin
    perform freshet.schedule('freshet.batch_add_tag', batch, null, 't', null, tags, null);
end $$;

create function freshet.batch_add_namespace(batch text, namespace text) returns void
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
begin
    perform freshet.schedule('freshet.batch_add_namespace', batch, null, 'n', namespace, array[''], null);
end $$;

-- Says when the batch is to be run by itself, counted from the call; null = not any more. Returns how many
-- changes are in it.
create function freshet.batch_after(batch text, delay interval) returns bigint
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
declare
    entries bigint;
begin
    if coalesce(batch, '') = '' then
        raise exception 'freshet.batch_after: batch is empty; want the name of a batch' using errcode = '22023';
    end if;
    if delay <= interval '0' or delay > interval '1 year' then
        raise exception 'freshet.batch_after: delay is %; want more than 0 and at most 1 year', delay using errcode = '22023';
    end if;
    perform pg_advisory_xact_lock(hashtext('freshet.batch'), hashtext(batch));
    update freshet.scheduled s set due = clock_timestamp() + delay where s.batch = batch_after.batch;
    get diagnostics entries = row_count;
    if entries = 0 and delay is not null then
        raise exception 'freshet.batch_after: batch % has nothing in it; want one that freshet.batches lists', quote_literal(batch)
            using errcode = '02000';
    end if;
    return entries;
end $$;

-- Runs what is in the batch by now, at most so many of its changes, null = all: from the commit on they
-- count like any. Returns how many entries were run; 0 when there is no such batch.
create function freshet.run_batch(batch text, at_most integer default null) returns bigint
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
declare
    ran bigint;
begin
    if coalesce(batch, '') = '' then
        raise exception 'freshet.run_batch: batch is empty; want the name of a batch' using errcode = '22023';
    end if;
    if at_most < 1 then
        raise exception 'freshet.run_batch: at_most is %; want a number of rows, 1 or more', at_most using errcode = '22023';
    end if;
    perform pg_advisory_xact_lock(hashtext('freshet.batch'), hashtext(batch));
    with picked as (
        -- The first that is due goes last: as long as anything is left, the batch is due.
        select s.seq from freshet.scheduled s where s.batch = run_batch.batch
         order by s.due desc nulls first, s.seq limit at_most
    ), gone as (
        delete from freshet.scheduled s using picked p where s.seq = p.seq returning s.kind, s.namespace, s.id, s.view, s.grace
    ), logged as (
        insert into freshet.log (kind, namespace, id, view, grace)
        select g.kind, g.namespace, g.id, g.view, min(g.grace) from gone g group by g.kind, g.namespace, g.id, g.view
    )
    select count(*) into ran from gone;
    return ran;
end $$;

-- Drops what is in the batch by now, and returns how many entries that was.
create function freshet.drop_batch(batch text) returns bigint
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
declare
    dropped bigint;
begin
    if coalesce(batch, '') = '' then
        raise exception 'freshet.drop_batch: batch is empty; want the name of a batch' using errcode = '22023';
    end if;
    perform pg_advisory_xact_lock(hashtext('freshet.batch'), hashtext(batch));
    delete from freshet.scheduled s where s.batch = drop_batch.batch;
    get diagnostics dropped = row_count;
    return dropped;
end $$;

-- Runs what is due by this server's clock, at most so many changes, and returns how many it ran; fewer
-- than asked for: the rest is not due, or being run by another session. Every replica calls it.
create function freshet.run_due(at_most integer default 1000) returns bigint
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
declare
    present constant timestamptz := clock_timestamp();
    ran bigint;
begin
    if at_most is null or at_most < 1 then
        raise exception 'freshet.run_due: at_most is %; want a number of rows, 1 or more', coalesce(at_most::text, 'null')
            using errcode = '22023';
    end if;
    with batches as materialized (
        -- One session at a time runs a batch: else the one that runs the change by which it is due could end
        -- well, and another with its other changes not.
        select b.batch from (select distinct s.batch from freshet.scheduled s where s.batch <> '' and s.due <= present) b
         where pg_try_advisory_xact_lock(hashtext('freshet.batch'), hashtext(b.batch))
    ), picked as (
        select s.seq from freshet.scheduled s
         where (s.batch = '' and s.due <= present) or s.batch in (select b.batch from batches b)
         order by s.batch <> '', case when s.batch = '' then s.due end, s.due desc nulls first, s.seq
         limit at_most for update skip locked
    ), gone as (
        delete from freshet.scheduled s using picked p where s.seq = p.seq returning s.kind, s.namespace, s.id, s.view, s.grace
    ), logged as (
        insert into freshet.log (kind, namespace, id, view, grace)
        select g.kind, g.namespace, g.id, g.view, min(g.grace) from gone g group by g.kind, g.namespace, g.id, g.view
    )
    select count(*) into ran from gone;
    return ran;
end $$;
-- +goose StatementEnd

grant select on freshet.scheduled, freshet.batches to public;
