-- Watches that can be listed, told apart, ended and checked: which tables write the log, how, and whether they
-- still do; ids of several columns.

-- +goose Up

-- What freshet.watch was told of each table, and what it made. One row per call; the partitions and children
-- of a table have none of their own.
create table freshet.watches (
    relation  regclass    primary key,
    home      text        not null, -- schema and name of the table, as they were then
    name      text        not null,
    namespace text        not null,
    id        text[],               -- the columns of the id; null = not known, as with all watches of before this table
    tags      text[],               -- null = not known
    columns   text[],               -- null = all
    uses      text[]      not null default '{}', -- every column that the function looks at
    function  text        not null unique, -- the trigger function, in the schema freshet
    body      text        not null, -- freshet.watched_body of it
    members   regclass[]  not null, -- the tables with its triggers
    marks     text        not null, -- freshet.watched_marks of them; 'broken' = freshet.mend() found it so
    made_by   text        not null default session_user,
    made_at   timestamptz not null default clock_timestamp()
);
comment on table freshet.watches is 'tables that freshet.watch watches; freshet.drift() tells what is wrong with them';

-- The id of an entity that several columns name together: their texts, joined by slashes, with % as %25 and / as
-- %2F in each. Null if one of them is null. Immutable, so that an index can hold it.
-- +goose StatementBegin
create function freshet.id(variadic parts text[]) returns text
language plpgsql immutable strict parallel safe set search_path = pg_catalog, pg_temp as $$
declare
    part text;
    id   text;
begin
    foreach part in array parts loop
        if part is null then
            return null;
        end if;
        id := concat(id || '/', replace(replace(part, '%', '%25'), '/', '%2F'));
    end loop;
    return coalesce(id, '');
end $$;

-- The parts of what freshet.id wrote; null for any other text.
create function freshet.id_parts(id text) returns text[]
language sql immutable strict parallel safe set search_path = pg_catalog, pg_temp as $$
    select case when id !~ '%(?!25|2F)' then
        array(select replace(replace(p.part, '%2F', '/'), '%25', '%')
                from unnest(string_to_array(id || '/', '/')) with ordinality p(part, n)
               where p.n < cardinality(string_to_array(id || '/', '/'))
               order by p.n)
    end
$$;
-- +goose StatementEnd

-- The table with its partitions and children, those that can have triggers of their own.
-- +goose StatementBegin
create function freshet.watched_family(relation regclass) returns regclass[]
language sql stable set search_path = pg_catalog, pg_temp as $$
    with recursive family as (
        select relation::oid as member
        union select i.inhrelid from pg_inherits i join family f on i.inhparent = f.member
    )
    select coalesce(array_agg(f.member::regclass order by f.member), '{}')
      from family f join pg_class c on c.oid = f.member where c.relkind in ('r', 'p')
$$;

-- A fingerprint of a watch's function.
create function freshet.watched_body(function text) returns text
language sql stable set search_path = pg_catalog, pg_temp as $$
    select md5(concat_ws(E'\n', p.prosecdef, p.proconfig, p.prosrc))
      from pg_proc p where p.pronamespace = 'freshet'::regnamespace and p.proname = function
$$;

-- A fingerprint of a watch's triggers and of the transactions that touched them last: it is another one after a
-- trigger was disabled, also when it has been enabled again since.
create function freshet.watched_marks(function text, members regclass[]) returns text
language sql stable set search_path = pg_catalog, pg_temp as $$
    select md5(coalesce(string_agg(concat_ws(' ', t.tgrelid, t.tgtype, t.xmin), ',' order by t.tgrelid, t.tgtype), ''))
      from pg_proc p join pg_trigger t on t.tgfoid = p.oid
     where p.pronamespace = 'freshet'::regnamespace and p.proname = function and t.tgrelid = any (members::oid[])
$$;

-- Says that everything that a watch with these tags can tell of may have changed.
create function freshet.log_watch(namespace text, tags text[]) returns void
language sql set search_path = pg_catalog, pg_temp as $$
    insert into freshet.log (kind, namespace, id, grace) -- at once, whatever grace the caller gives its own changes
    select 'n'::"char", namespace, '', 0
    union all select 't', '', t.tag, 0 from unnest(tags) t(tag) where t.tag !~ '[{]'
    union all select 'a', '', '', 0 where tags is null or exists (select from unnest(tags) t(tag) where t.tag ~ '[{]')
$$;
-- +goose StatementEnd

drop function freshet.watch(regclass, text, text, text[]);

-- Makes every change of a table write the log, whoever makes it: the rows' entities and the tags
-- made from their columns, before and after. id is the column that names the entity, or several,
-- 'order_id, line', whose id is freshet.id of their texts; rows with a null in it are no entities. A tag
-- may name columns in braces, 'category:{category_id}'; a row whose column is null does not carry that
-- tag. Dates are written as ISO, times in UTC, whatever the writer's settings.
--
-- columns: only an UPDATE that changes one of these matters, or a column of the id, of a tag or of the
-- primary key, which the table must have then; what it leaves as it is by all of these is not logged. null =
-- all columns matter. INSERT, DELETE and TRUNCATE always do.
--
-- A statement that changes more than 1000 entities writes one row for the namespace instead, one with
-- more than 1000 tags one row for everything, and so does TRUNCATE for a table with such tags.
-- Partitions and children that the table has by now are watched with it; with others freshet.drift() finds
-- fault. Call again to change it, or freshet.rewatch after adding partitions. Either says that all of the
-- namespace changed, since nothing is known of the time before.
--
-- Not seen: rows that logical replication applies (it fires no statement triggers), and writers that
-- disable triggers, until freshet.drift() notices.
-- +goose StatementBegin
create function freshet.watch(
    relation  regclass,
    namespace text,
    id        text   default 'id',
    tags      text[] default '{}',
    columns   text[] default null
) returns void language plpgsql set search_path = pg_catalog, pg_temp as $watch$
declare
    there     text[];  -- the table's columns
    key       text[];  -- those of its primary key
    ids       text[];
    used      text[];
    settings  text := 'set search_path = pg_catalog, pg_temp';
    made      text := 'watch_' || replace(gen_random_uuid()::text, '-', ''); -- the function
    tag       text;
    part      text;
    expr      text;
    exprs     text[] := '{}';
    fixed     text[] := '{}';  -- the tags without columns
    templated boolean := false;
    state     text;    -- what matters of a row besides its id and tags
    rows_of   text;
    body      text := '';
    op        text;
    target    regclass;
    family    regclass[];
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
    there := array(select a.attname::text from pg_attribute a
                    where a.attrelid = relation and a.attnum > 0 and not a.attisdropped);
    ids := case when id = any (there) then array[id] else array(
        select btrim(p.part) from unnest(string_to_array(coalesce(id, ''), ',')) with ordinality p(part, n) order by p.n) end;
    if ids = '{}' then
        ids := array[''];
    end if;
    foreach part in array ids loop
        if not part = any (there) then
            raise exception 'freshet.watch: id: table % has no column "%"', relation, part using errcode = '42703';
        end if;
    end loop;
    used := ids;
    tags := coalesce(tags, '{}');
    foreach tag in array tags loop
        if coalesce(tag, '') = '' then
            raise exception 'freshet.watch: tags: a tag is empty or null' using errcode = '22023';
        end if;
        expr := null;
        -- The text between braces is a column, all else is itself.
        for part in select m[1] from regexp_matches(tag, '(\{[^{}]*\}|[^{}]+|[{}])', 'g') m loop
            if part like '{%}' then
                part := substr(part, 2, length(part) - 2);
                if not part = any (there) then
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
        exprs := exprs || format('(%s) collate "C"', expr);
        if tag !~ '[{]' then
            fixed := fixed || tag;
        end if;
    end loop;
    if columns is not null then
        foreach part in array columns loop
            if part is null or not part = any (there) then
                raise exception 'freshet.watch: columns: table % has no column "%"', relation, coalesce(part, '') using errcode = '42703';
            end if;
        end loop;
        key := array(select a.attname::text from pg_index i join pg_attribute a on a.attrelid = i.indrelid and a.attnum = any (i.indkey)
                      where i.indrelid = relation and i.indisprimary);
        if key = '{}' then
            raise exception 'freshet.watch: columns: table % has no primary key, by which rows are told apart; want one, or all columns', relation
                using errcode = '42704';
        end if;
        used := used || key || columns;
        state := array_to_string(array(
            select distinct format('r.%I::text collate "C"', u.name) from unnest(key || columns) u(name)), ', ');
    end if;

    -- Compared and told apart byte by byte, whatever the columns' collations.
    expr := case when cardinality(ids) = 1 then format('r.%I::text', id)
        else array_to_string(array(
            select format('replace(replace(r.%I::text, %L, %L), %L, %L)', p.part, '%', '%25', '/', '%2F')
              from unnest(ids) with ordinality p(part, n) order by p.n), $$ || '/' || $$) end;
    expr := format('select (%s) collate "C" as id, array[%s]::text[] as tags', expr, array_to_string(exprs, ', '));
    foreach op in array array['INSERT', 'DELETE', 'UPDATE'] loop
        rows_of := case
            when op = 'INSERT' then expr || ' from freshet_new r'
            when op = 'DELETE' then expr || ' from freshet_old r'
            when columns is null then expr || ' from freshet_old r union all ' || expr || ' from freshet_new r'
            -- What is the same before and after is left out. The primary key is part of it: two rows that have
            -- exchanged what they hold are not the same.
            else format($rows$select c.id, c.tags from (
                   (%1$s, array[%2$s]::text[] as state from freshet_old r except all %1$s, array[%2$s]::text[] from freshet_new r)
                   union all
                   (%1$s, array[%2$s]::text[] as state from freshet_new r except all %1$s, array[%2$s]::text[] from freshet_old r)) c$rows$,
                expr, state)
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
                where a.attrelid = relation and a.attname = any (used) and t.typname <> 'uuid'
                  and (t.typcategory not in ('N', 'S', 'B', 'E')
                       or t.typcategory = 'N' and t.typname not in ('int2', 'int4', 'int8', 'numeric', 'oid'))) then
        settings := settings || ' set datestyle = ''ISO, YMD'' set timezone = ''UTC'' set intervalstyle = ''postgres'''
            ' set extra_float_digits = 3 set bytea_output = ''hex''';
    end if;
    execute format('create function freshet.%I() returns trigger language plpgsql security definer %s as %L',
        made, settings, body);
    execute format('comment on function freshet.%I() is %L', made, format('freshet.watch of %s as %s', relation, namespace));

    -- One watch of a table at a time, and no writer between the old triggers and the new ones.
    execute format('lock table only %s in share row exclusive mode', relation);
    for existing in
        select w.relation, w.namespace, w.tags from freshet.watches w where w.relation = watch.relation
    loop
        perform freshet.drop_watch(relation);
        perform freshet.log_watch(existing.namespace, existing.tags)
          where (existing.namespace, existing.tags) is distinct from (namespace, tags);
    end loop;
    family := freshet.watched_family(relation);
    foreach target in array array[relation] || array_remove(family, relation) loop
        execute format('lock table only %s in share row exclusive mode', target);
        -- A watch of a part gives way to that of the whole, and of the whole in this part.
        for existing in
            select t.tgname, p.proname from pg_trigger t join pg_proc p on p.oid = t.tgfoid
             where t.tgrelid = target and t.tgname like 'freshet\_%' and not t.tgisinternal
               and p.pronamespace = 'freshet'::regnamespace
        loop
            execute format('drop trigger %I on %s', existing.tgname, target);
            if not exists (select from pg_trigger t join pg_proc p on p.oid = t.tgfoid
                            where p.pronamespace = 'freshet'::regnamespace and p.proname = existing.proname) then
                execute format('drop function freshet.%I()', existing.proname);
                -- What it told of is told of by this watch, or by nobody: it may be of another namespace.
                perform freshet.log_watch(w.namespace, w.tags) from freshet.watches w where w.function = existing.proname;
                delete from freshet.watches w where w.function = existing.proname;
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
                made);
            -- Also for sessions with session_replication_role = replica.
            execute format('alter table only %s enable always trigger %I', target, 'freshet_' || lower(op));
        end loop;
    end loop;

    -- A table that had this name before is known by its own now, or gone.
    for existing in
        select w.relation, c.oid is not null as there
          from freshet.watches w
          join pg_class t on t.oid = watch.relation
          join pg_namespace s on s.oid = t.relnamespace
          left join pg_class c on c.oid = w.relation
         where w.relation <> watch.relation and w.home = s.nspname and w.name = t.relname
    loop
        if existing.there then
            update freshet.watches w set home = s.nspname, name = c.relname
              from pg_class c join pg_namespace s on s.oid = c.relnamespace
             where w.relation = existing.relation and c.oid = existing.relation;
        else
            perform freshet.unwatch(existing.relation);
        end if;
    end loop;
    insert into freshet.watches (relation, home, name, namespace, id, tags, columns, uses, function, body, members, marks)
    select watch.relation, s.nspname, c.relname, watch.namespace, ids, watch.tags, watch.columns,
           array(select distinct u.name from unnest(used) u(name)), made, freshet.watched_body(made), family, freshet.watched_marks(made, family)
      from pg_class c join pg_namespace s on s.oid = c.relnamespace where c.oid = watch.relation;
    perform freshet.log_watch(namespace, tags);
end $watch$;

-- Watches a table again as it was watched before: after partitions or children were added, or a trigger was
-- dropped.
create function freshet.rewatch(relation regclass) returns void
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
    w freshet.watches;
begin
    select * into w from freshet.watches t where t.relation = rewatch.relation;
    if not found then
        raise exception 'freshet.rewatch: relation: % is not watched; want a table in freshet.watches', coalesce(relation::text, 'null')
            using errcode = '42704';
    end if;
    if w.id is null then
        raise exception 'freshet.rewatch: relation: how % is watched was not noted then; call freshet.watch', relation using errcode = '55000';
    end if;
    perform freshet.watch(w.relation, w.namespace, array_to_string(w.id, ','), w.tags, w.columns);
end $$;

-- Ends the watch of a table and of its partitions and children: its changes write the log no more. A table that
-- is gone can be named by its number, the column relation of freshet.watches. Says that all of the namespace changed.
create function freshet.unwatch(relation regclass) returns void
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
    w     freshet.watches;
    whole regclass;
begin
    if exists (select from pg_class c where c.oid = relation and c.relkind in ('r', 'p')) then
        execute format('lock table only %s in share row exclusive mode', relation);
    end if;
    select * into w from freshet.watches t where t.relation = unwatch.relation;
    if not found then
        select t.relation into whole from freshet.watches t where unwatch.relation = any (t.members) limit 1;
        if found then
            raise exception 'freshet.unwatch: relation: % is watched as a part of %; want that', relation, whole using errcode = '42704';
        end if;
        raise exception 'freshet.unwatch: relation: % is not watched; want a table in freshet.watches', coalesce(relation::text, 'null')
            using errcode = '42704';
    end if;
    perform freshet.drop_watch(relation);
    perform freshet.log_watch(w.namespace, w.tags);
end $$;

-- Takes a watch away with all that it made. The table, if it is there, is locked.
create function freshet.drop_watch(relation regclass) returns void
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
    made     text := (select w.function from freshet.watches w where w.relation = drop_watch.relation);
    existing record;
begin
    for existing in
        select t.tgrelid::regclass as target, t.tgname from pg_trigger t join pg_proc p on p.oid = t.tgfoid
         where p.pronamespace = 'freshet'::regnamespace and p.proname = made and not t.tgisinternal
         order by t.tgrelid
    loop
        execute format('lock table only %s in share row exclusive mode', existing.target);
        execute format('drop trigger %I on %s', existing.tgname, existing.target);
    end loop;
    execute format('drop function if exists freshet.%I()', made);
    delete from freshet.watches w where w.relation = drop_watch.relation;
end $$;
-- +goose StatementEnd

-- What is wrong with the watches, a row for each problem of a table: changes of it may have gone unlogged, and may
-- still. relation is the table, or the partition or child, that has it. tags are those of the watch; null = not known.
-- whole: the watch is as it should be by now, but was not all the time; freshet.mend() ends that. watch is the table
-- that is watched, as in freshet.watches. Reads catalogs only, by their indexes.
-- +goose StatementBegin
create function freshet.drift() returns table (namespace text, relation text, problem text, tags text[], whole boolean, watch regclass)
language sql stable set search_path = pg_catalog, pg_temp as $$
    with recursive family as (
        select w.relation as root, w.relation::oid as member from freshet.watches w
        union select f.root, i.inhrelid from family f join pg_inherits i on i.inhparent = f.member
    ), member as (
        select f.root, f.member from family f join pg_class c on c.oid = f.member where c.relkind in ('r', 'p')
    ), broken (root, member, problem) as (
        select w.relation, format('%I.%I', w.home, w.name), 'table gone'
          from freshet.watches w left join pg_class c on c.oid = w.relation
         where c.oid is null
        union all
        select w.relation, format('%I.%I', w.home, w.name), 'another table has its name'
          from freshet.watches w
          join pg_namespace s on s.nspname = w.home
          join pg_class c on c.relname = w.name and c.relnamespace = s.oid
         where c.oid <> w.relation
        union all
        select w.relation, w.relation::text, 'column gone'
          from freshet.watches w
          join pg_class c on c.oid = w.relation
         where exists (select from unnest(w.uses) u(name)
                        where not exists (select from pg_attribute a
                                           where a.attrelid = w.relation and a.attname = u.name and not a.attisdropped))
        union all
        select w.relation, w.relation::text, 'function changed'
          from freshet.watches w
         where freshet.watched_body(w.function) <> w.body
        union all
        select m.root, m.member::regclass::text, t.problem
          from member m
          join freshet.watches w on w.relation = m.root
          left join pg_proc p on p.pronamespace = 'freshet'::regnamespace and p.proname = w.function
          cross join lateral (
              select distinct case
                         when t.oid is null and not m.member = any (w.members::oid[]) then 'partition not covered'
                         when t.oid is null then 'trigger missing'
                         when t.tgenabled = 'D' then 'trigger disabled'
                         when t.tgenabled = 'R' then 'trigger for replicas only'
                     end as problem
                from unnest(array[4, 8, 16, 32]) event(bit) -- INSERT, DELETE, UPDATE, TRUNCATE; after, for each statement
                left join pg_trigger t on t.tgrelid = m.member and t.tgfoid = p.oid and t.tgtype = event.bit
          ) t
         where t.problem is not null
    ), mended (root, member, problem) as (
        select w.relation, w.relation::text, 'partition gone'
          from freshet.watches w
         where exists (select from unnest(w.members) x(member)
                        where not exists (select from member m where m.root = w.relation and m.member = x.member))
        union all
        select w.relation, w.relation::text, 'was not whole'
          from freshet.watches w
         where freshet.watched_marks(w.function, w.members) <> w.marks
    )
    select w.namespace, p.member, p.problem, w.tags, p.whole, w.relation
      from (select b.root, b.member, b.problem, false as whole from broken b
            union all
            select m.root, m.member, m.problem, true from mended m where m.root not in (select b.root from broken b)) p
      join freshet.watches w on w.relation = p.root
$$;

-- Takes note of what freshet.drift() finds. Of watches that are whole again it says that all that they tell of may have
-- changed: nobody knows what did meanwhile. Those that are not are whole again only when this has been said. Nodes call
-- it when there is drift. Returns how many are whole again.
create function freshet.mend() returns integer
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
declare
    w freshet.watches;
    n integer := 0;
begin
    update freshet.watches t set marks = 'broken'
     where t.marks <> 'broken' and t.relation in (select d.watch from freshet.drift() d where not d.whole);
    for w in
        select t.* from freshet.watches t
         where t.relation in (select d.watch from freshet.drift() d where d.whole) order by t.relation
    loop
        w.members := freshet.watched_family(w.relation);
        w.marks := freshet.watched_marks(w.function, w.members);
        -- Of several that see it at once, the first.
        update freshet.watches t set members = w.members, marks = w.marks
         where t.relation = w.relation and (t.members, t.marks) is distinct from (w.members, w.marks);
        if found then
            perform freshet.log_watch(w.namespace, w.tags);
            n := n + 1;
        end if;
    end loop;
    return n;
end $$;

-- Watches of before this table are known by their functions' comments.
do $$
declare
    f       record;
    members regclass[];
    root    regclass;
begin
    for f in
        select p.oid, p.proname, substring(obj_description(p.oid, 'pg_proc') from '^freshet\.watch of .* as (.*)$') as namespace
          from pg_catalog.pg_proc p where p.pronamespace = 'freshet'::regnamespace and p.proname like 'watch\_%'
    loop
        select array_agg(distinct t.tgrelid::regclass) into members from pg_catalog.pg_trigger t where t.tgfoid = f.oid;
        continue when members is null or f.namespace is null;
        select m.member into root from unnest(members) m(member)
         where not exists (select from pg_catalog.pg_inherits i where i.inhrelid = m.member and i.inhparent = any (members::oid[]))
         order by m.member::oid limit 1;
        insert into freshet.watches (relation, home, name, namespace, function, body, members, marks)
        select root, s.nspname, c.relname, f.namespace, f.proname,
               freshet.watched_body(f.proname), members, freshet.watched_marks(f.proname, members)
          from pg_catalog.pg_class c join pg_catalog.pg_namespace s on s.oid = c.relnamespace where c.oid = root
            on conflict (relation) do nothing;
    end loop;
end $$;
-- +goose StatementEnd

grant select on freshet.watches to public;
