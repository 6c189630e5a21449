-- The part of Freshet that lives in Postgres: a log of what changed, written by the transaction that
-- changed it, and what a reader of that log must know about its own view of time.

-- +goose Up

-- What changed. A row is written in the writer's own transaction, by a trigger (freshet.watch), by
-- the functions below, or by the library through them. xid is the writer's transaction: whether a
-- cached value knows the change is the question whether the value's snapshot sees this xid.
create table freshet.log (
    xid       xid8        not null default pg_current_xact_id(),
    kind      "char"      not null check (kind in ('v', 'e', 't', 'n', 'a')),
    namespace text        not null default '',
    id        text        not null default '',
    view      text        not null default '',
    at        timestamptz not null default clock_timestamp()
);
comment on table freshet.log is
    'changes of cached things; kind: v view, e entity, t tag (in id), n namespace, a everything';
create index log_xid on freshet.log (xid);

-- The timeline: a random number that names one unbroken history of transaction ids. The table is
-- unlogged on purpose. Postgres may hand out a transaction id twice only after a crash, a failover
-- or a restore from a backup, and in exactly these cases it empties unlogged tables. server, database
-- and home (this table itself) tell a row that came here with a dump or a copy of the database. A value
-- or a change of another timeline is never compared with this one's.
create unlogged table freshet.timeline (
    only_row boolean     primary key default true check (only_row),
    id       bigint      not null check (id > 0),
    server   bigint      not null,
    database oid         not null,
    home     oid         not null,
    begun    timestamptz not null default clock_timestamp()
);

-- Which rows of the log may be gone: those visible to kept_from. next replaces it when it is old
-- enough (freshet.trim).
create table freshet.horizon (
    only_row  boolean     primary key default true check (only_row),
    kept_from pg_snapshot not null,
    next      pg_snapshot not null,
    next_at   timestamptz not null
);
insert into freshet.horizon (kept_from, next, next_at)
values (pg_current_snapshot(), pg_current_snapshot(), clock_timestamp());

-- The timeline of the calling statement's snapshot; 0 when there is none: on a standby, whose values
-- prove nothing, and after a crash until the first node has begun a new one.
-- +goose StatementBegin
create function freshet.current_timeline() returns bigint
language plpgsql stable as $$
begin
    if pg_is_in_recovery() then
        return 0;
    end if;
    return coalesce((select t.id from freshet.timeline t
                       join pg_catalog.pg_database d on d.oid = t.database and d.datname = current_database()
                      where t.home = t.tableoid), 0);
end $$;
-- +goose StatementEnd

-- Begins a timeline if there is none, or if the one that is there belongs to another server or
-- database, or if it is the given one, which the caller has seen to be broken. Returns the current one.
-- +goose StatementBegin
create function freshet.begin_timeline(broken bigint default 0) returns bigint
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
declare
    here_server   bigint := (select c.system_identifier from pg_control_system() c);
    here_database oid    := (select d.oid from pg_database d where d.datname = current_database());
    current       bigint;
begin
    if pg_is_in_recovery() then
        return 0;
    end if;
    for attempt in 1..2 loop
        select t.id into current from freshet.timeline t
         where t.server = here_server and t.database = here_database and t.home = t.tableoid
           and t.id is distinct from broken;
        if current is not null then
            return current;
        end if;
        -- Look again when no other session can be about to do the same.
        lock table freshet.timeline in share row exclusive mode;
    end loop;
    delete from freshet.timeline;
    insert into freshet.timeline (id, server, database, home)
    values (('x' || substr(replace(gen_random_uuid()::text, '-', ''), 1, 15))::bit(60)::bigint + 1,
            here_server, here_database, 'freshet.timeline'::regclass)
    returning timeline.id into current;
    -- Whoever sees the new timeline sees all that is visible here. The horizon that was there may be in
    -- another server's numbers.
    update freshet.horizon
       set kept_from = pg_current_snapshot(), next = pg_current_snapshot(), next_at = clock_timestamp();
    return current;
end $$;
-- +goose StatementEnd

-- Deletes rows of the log, at most the given number, that every transaction has been able to see for
-- at least keep. Runs in one session at a time; the others return 0 at once.
-- +goose StatementBegin
create function freshet.trim(keep interval, at_most integer default 10000) returns bigint
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
declare
    gone bigint;
    upto pg_snapshot;
begin
    if keep is null or keep < interval '0' then
        raise exception 'freshet.trim: keep is %; want how long rows stay, 0 or more', coalesce(keep::text, 'null')
            using errcode = '22023';
    end if;
    if at_most is null or at_most < 1 then
        raise exception 'freshet.trim: at_most is %; want a number of rows, 1 or more', coalesce(at_most::text, 'null')
            using errcode = '22023';
    end if;
    if not pg_try_advisory_xact_lock(hashtext('freshet.trim')) then
        return 0;
    end if;
    update freshet.horizon h
       set kept_from = h.next, next = pg_current_snapshot(), next_at = clock_timestamp()
     where h.next_at < clock_timestamp() - keep;
    select h.kept_from into upto from freshet.horizon h;
    with old as (
        (select l.ctid from freshet.log l
          where l.xid < pg_snapshot_xmax(upto) and pg_visible_in_snapshot(l.xid, upto)
          limit at_most)
        union all
        -- Another server's, come with a dump: no row of this one's could be visible here.
        (select l.ctid from freshet.log l
          where l.xid >= pg_snapshot_xmax(pg_current_snapshot())
            and l.xid is distinct from pg_current_xact_id_if_assigned()
          limit at_most)
        limit at_most
    )
    delete from freshet.log l using old where l.ctid = old.ctid;
    get diagnostics gone = row_count;
    return gone;
end $$;
-- +goose StatementEnd

-- Says that entities, one view of one, all entries with a tag, or a whole namespace changed. Call in
-- the transaction that changes them; the change counts from its commit.
-- +goose StatementBegin
create function freshet.invalidate(namespace text, variadic ids text[]) returns void
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
begin
    if coalesce(namespace, '') = '' then
        raise exception 'freshet.invalidate: namespace is empty; want the namespace of a cache' using errcode = '22023';
    end if;
    if ids is null or exists (select from unnest(ids) id where coalesce(id, '') = '') then
        raise exception 'freshet.invalidate: ids: an id is empty or null; want the id of an entity' using errcode = '22023';
    end if;
    insert into freshet.log (kind, namespace, id)
    select 'e', namespace, id from unnest(ids) id group by id;
end $$;

create function freshet.invalidate_view(namespace text, id text, view text) returns void
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
begin
    if coalesce(namespace, '') = '' then
        raise exception 'freshet.invalidate_view: namespace is empty; want the namespace of a cache' using errcode = '22023';
    end if;
    if coalesce(id, '') = '' then
        raise exception 'freshet.invalidate_view: id is empty; want the id of an entity' using errcode = '22023';
    end if;
    if coalesce(view, '') = '' then
        raise exception 'freshet.invalidate_view: view is empty; want the view of a cache' using errcode = '22023';
    end if;
    insert into freshet.log (kind, namespace, id, view) values ('v', namespace, id, view);
end $$;

create function freshet.invalidate_tag(variadic tags text[]) returns void
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
begin
    if tags is null or exists (select from unnest(tags) tag where coalesce(tag, '') = '') then
        raise exception 'freshet.invalidate_tag: tags: a tag is empty or null; want the tag of an entry' using errcode = '22023';
    end if;
    insert into freshet.log (kind, id) select 't', tag from unnest(tags) tag group by tag;
end $$;

create function freshet.invalidate_namespace(namespace text) returns void
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
begin
    if coalesce(namespace, '') = '' then
        raise exception 'freshet.invalidate_namespace: namespace is empty; want the namespace of a cache' using errcode = '22023';
    end if;
    insert into freshet.log (kind, namespace) values ('n', namespace);
end $$;
-- +goose StatementEnd

-- Makes every change of a table write the log, whoever makes it: the rows' entities and the tags
-- made from their columns, before and after. A tag may name columns in braces, 'category:{category_id}';
-- a row whose column is null does not carry that tag. Dates are written as ISO, times in UTC, whatever
-- the writer's settings. A statement that changes more than 1000 entities writes one row for the
-- namespace instead, one with more than 1000 tags one row for everything, and so does TRUNCATE for a
-- table with such tags. Partitions and children that the table has by now are watched with it. Call
-- again to change it, or after adding partitions that are written to by their own names.
--
-- Not seen: rows that logical replication applies (it fires no statement triggers), ATTACH and DETACH
-- of partitions, and writers that disable triggers.
-- +goose StatementBegin
create function freshet.watch(
    relation  regclass,
    namespace text,
    id        text   default 'id',
    tags      text[] default '{}'
) returns void language plpgsql set search_path = pg_catalog, pg_temp as $watch$
declare
    columns   text[];
    used      text[] := array[id];
    settings  text := 'set search_path = pg_catalog, pg_temp';
    name      text := 'watch_' || replace(gen_random_uuid()::text, '-', '');
    tag       text;
    part      text;
    expr      text;
    exprs     text[] := '{}';
    fixed     text[] := '{}';  -- the tags without columns
    templated boolean := false;
    rows_of   text;
    body      text := '';
    op        text;
    target    regclass;
    existing  record;
begin
    if relation is null then
        raise exception 'freshet.watch: relation is null; want a table' using errcode = '22023';
    end if;
    if not exists (select from pg_class c where c.oid = relation and c.relkind in ('r', 'p')) then
        raise exception 'freshet.watch: relation: % is not a table', relation using errcode = '42809';
    end if;
    if coalesce(namespace, '') = '' then
        raise exception 'freshet.watch: namespace is empty; want the namespace of a cache' using errcode = '22023';
    end if;
    columns := array(select a.attname::text from pg_attribute a
                      where a.attrelid = relation and a.attnum > 0 and not a.attisdropped);
    if id is null or not id = any (columns) then
        raise exception 'freshet.watch: id: table % has no column "%"', relation, coalesce(id, '') using errcode = '42703';
    end if;
    foreach tag in array coalesce(tags, '{}') loop
        if coalesce(tag, '') = '' then
            raise exception 'freshet.watch: tags: a tag is empty or null' using errcode = '22023';
        end if;
        expr := null;
        -- The text between braces is a column, all else is itself.
        for part in select m[1] from regexp_matches(tag, '(\{[^{}]*\}|[^{}]+|[{}])', 'g') m loop
            if part like '{%}' then
                part := substr(part, 2, length(part) - 2);
                if not part = any (columns) then
                    raise exception 'freshet.watch: tags: {%} in "%": table % has no such column', part, tag, relation
                        using errcode = '42703';
                end if;
                templated := true;
                used := used || part;
                expr := concat_ws(' || ', expr, format('r.%I::text', part));
            elsif part in ('{', '}') then
                raise exception 'freshet.watch: tags: "%": a brace without its partner', tag using errcode = '22023';
            else
                expr := concat_ws(' || ', expr, quote_literal(part) || '::text');
            end if;
        end loop;
        exprs := exprs || expr;
        if tag !~ '[{]' then
            fixed := fixed || tag;
        end if;
    end loop;

    expr := format('select r.%I::text as id, array[%s]::text[] as tags from ', id, array_to_string(exprs, ', '));
    foreach op in array array['INSERT', 'DELETE', 'UPDATE'] loop
        rows_of := case op
            when 'INSERT' then expr || 'freshet_new r'
            when 'DELETE' then expr || 'freshet_old r'
            else expr || 'freshet_old r union all ' || expr || 'freshet_new r'
        end;
        body := body || format($branch$
    if TG_OP = %L then
        with rows as materialized (%s),
             ids  as materialized (select distinct r.id from rows r where r.id is not null limit 1001),
             tags as materialized (select distinct t.tag from rows r, unnest(r.tags) t(tag) where t.tag is not null limit 1001),
             many as materialized (select (select count(*) from ids) > 1000 as ids, (select count(*) from tags) > 1000 as tags)
        insert into freshet.log (kind, namespace, id)
        select 'e'::"char", %L, i.id from ids i, many m where not m.ids
        union all select 'n', %L, '' from many m where m.ids
        union all select 't', '', t.tag from tags t, many m where not m.tags
        union all select 'a', '', '' from many m where m.tags;
        return null;
    end if;$branch$, op, rows_of, namespace, namespace);
    end loop;
    body := format($body$
begin%s
    insert into freshet.log (kind, namespace, id)
    select 'n'::"char", %L, ''
    union all select 't', '', t from unnest(%L::text[]) t
    union all select 'a', '', '' where %L;
    return null;
end $body$, body, namespace, fixed, templated);
    -- Settings cost time, and before Postgres 14 clients hear of each: only for types that look at them.
    if exists (select from pg_attribute a join pg_type t on t.oid = a.atttypid
                where a.attrelid = relation and a.attname = any (used)
                  and t.typcategory not in ('N', 'S', 'B', 'E') and t.typname <> 'uuid') then
        settings := settings || ' set datestyle = ''ISO, YMD'' set timezone = ''UTC''';
    end if;
    execute format('create function freshet.%I() returns trigger language plpgsql security definer %s as %L',
        name, settings, body);
    execute format('comment on function freshet.%I() is %L', name, format('freshet.watch of %s as %s', relation, namespace));

    for target in
        with recursive family as (
            select relation::oid as member
            union select i.inhrelid from pg_inherits i join family f on i.inhparent = f.member
        )
        select f.member from family f join pg_class c on c.oid = f.member where c.relkind in ('r', 'p')
    loop
        -- One watch of a table at a time, and no writer between the old triggers and the new ones.
        execute format('lock table only %s in share row exclusive mode', target);
        for existing in
            select t.tgname, t.tgfoid from pg_trigger t join pg_proc p on p.oid = t.tgfoid
             where t.tgrelid = target and t.tgname like 'freshet\_%' and not t.tgisinternal
               and p.pronamespace = 'freshet'::regnamespace
        loop
            execute format('drop trigger %I on %s', existing.tgname, target);
            if not exists (select from pg_trigger t where t.tgfoid = existing.tgfoid) then
                execute format('drop function %s', existing.tgfoid::regprocedure);
            end if;
        end loop;
        foreach op in array array['INSERT', 'UPDATE', 'DELETE', 'TRUNCATE'] loop
            execute format('create trigger %I after %s on %s %s for each statement execute function freshet.%I()',
                'freshet_' || lower(op), op, target,
                case op
                    when 'INSERT' then 'referencing new table as freshet_new'
                    when 'DELETE' then 'referencing old table as freshet_old'
                    when 'UPDATE' then 'referencing old table as freshet_old new table as freshet_new'
                    else ''
                end,
                name);
            -- Also for sessions with session_replication_role = replica.
            execute format('alter table only %s enable always trigger %I', target, 'freshet_' || lower(op));
        end loop;
    end loop;
end $watch$;
-- +goose StatementEnd

grant usage on schema freshet to public;
grant select on freshet.log, freshet.timeline, freshet.horizon to public;
