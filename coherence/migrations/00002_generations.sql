-- Generations: a number for the whole application and one for each namespace, under which entries are
-- kept. Another number, and no entry of the others is used any more; the number of before, and those that
-- nothing has invalidated meanwhile are used again.

-- +goose Up

-- What every poll reads, in its one statement: so a node knows the generations as of the poll's snapshot.
create table freshet.generations (
    only_row boolean primary key default true check (only_row),
    version  uuid    not null default gen_random_uuid(), -- another with every change
    current  jsonb   not null default '{}',              -- namespace, '' for all of them -> its generation, 1 if it is not here
    highest  jsonb   not null default '{}'               -- the same -> the highest it has ever had
);
insert into freshet.generations default values;

create table freshet.generation_history (
    number     bigint      primary key generated always as identity,
    namespace  text        not null,
    generation bigint      not null,
    previous   bigint      not null,
    action     text        not null check (action in ('increment', 'set', 'rollback')),
    who        text        not null,
    why        text        not null,
    at         timestamptz not null default clock_timestamp(),
    xid        xid8        not null default pg_current_xact_id()
);
comment on table freshet.generation_history is
    'who changed which generation when and why; namespace '''' is all of them. The last 1000 changes of each';
create index generation_history_namespace on freshet.generation_history (namespace, number);

-- Which replica removes the entries of old generations, and up to which change of the history that is done.
create table freshet.generation_cleaning (
    only_row boolean     primary key default true check (only_row),
    done     bigint      not null default 0,
    by       text        not null default '',
    until    timestamptz not null default '-infinity'
);
insert into freshet.generation_cleaning default values;

-- 'g': the generations have changed. The row carries no more: it lets writers tell others at once.
alter table freshet.log drop constraint log_kind_check;
alter table freshet.log add constraint log_kind_check check (kind in ('v', 'e', 't', 'n', 'a', 'g')) not valid;
comment on table freshet.log is
    'changes of cached things; kind: v view, e entity, t tag (in id), n namespace, a everything, g generations';

-- The current generation of a namespace; '' for that of all of them.
create function freshet.generation(namespace text default '') returns bigint
language sql stable set search_path = pg_catalog, pg_temp as $$
    select coalesce((g.current ->> $1)::bigint, 1) from freshet.generations g
$$;

-- What the three functions below have in common. target: the generation that it becomes; null for what the
-- action makes of the present one. Whoever changes a generation waits for the others who do so.
-- +goose StatementBegin
create function freshet.change_generation(
    action    text,
    namespace text,
    target    bigint,
    why       text,
    expected  bigint,
    who       text
) returns bigint language plpgsql set search_path = pg_catalog, pg_temp as $$
#variable_conflict use_variable
declare
    name    text := case action when 'increment' then 'next_generation' else action || '_generation' end;
    whose   text := case namespace when '' then 'all namespaces' else namespace end;
    present bigint;
    highest bigint;
    state   freshet.generations;
begin
    if namespace is null or (namespace <> '' and namespace !~ '^[a-z][a-z0-9_.-]{0,63}$') then
        raise exception 'freshet.%: namespace is "%"; want that of a cache, or '''' for all of them', name, coalesce(namespace, 'null')
            using errcode = '22023';
    end if;
    if coalesce(why, '') = '' or length(why) > 1000 then
        raise exception 'freshet.%: why: want the reason, in 1 to 1000 characters', name using errcode = '22023';
    end if;
    who := coalesce(nullif(who, ''), session_user);
    if length(who) > 200 then
        raise exception 'freshet.%: who has % characters; want at most 200', name, length(who) using errcode = '22023';
    end if;
    if target not between 1 and 4294967295 then
        raise exception 'freshet.%: generation is %; want 1 to 4294967295', name, target using errcode = '22023';
    end if;
    select g.* into state from freshet.generations g for update;
    if not found then
        raise exception 'freshet.generations is empty: put its row back, or drop the schema freshet and migrate again';
    end if;
    present := coalesce((state.current ->> namespace)::bigint, 1);
    highest := coalesce((state.highest ->> namespace)::bigint, 1);
    if expected <> present then
        raise exception 'freshet.%: the generation of % is %, not % as expected', name, whose, present, expected
            using errcode = 'ZF001', hint = 'Somebody has changed it meanwhile: look at freshet.generation_history.';
    end if;
    if not state.current ? namespace and (select count(*) from jsonb_object_keys(state.current)) >= 1024 then
        raise exception 'freshet.%: 1024 namespaces have generations of their own, which is the most; use that of all namespaces', name
            using errcode = '54000';
    end if;
    if action = 'increment' then
        target := highest + 1;
    elsif action = 'rollback' and target is null then
        -- What was there before the present one came, if that did not come by a rollback itself.
        select h.previous into target from freshet.generation_history h
         where h.namespace = namespace and h.generation = present and h.action <> 'rollback'
         order by h.number desc limit 1;
        if target is null then
            raise exception 'freshet.%: no generation of % is known from before %', name, whose, present using errcode = '22023';
        end if;
    elsif action = 'rollback' and (target = present or not exists (
            select from freshet.generation_history h
             where h.namespace = namespace and target in (h.generation, h.previous))) then
        raise exception 'freshet.%: % has not had the generation % before %', name, whose, target, present using errcode = '22023';
    end if;
    if target > 4294967295 then
        raise exception 'freshet.%: % has had the highest generation, 4294967295: set one that is free', name, whose using errcode = '54000';
    end if;
    if target = present then
        return present;
    end if;
    update freshet.generations g
       set version = gen_random_uuid(),
           current = g.current || jsonb_build_object(namespace, target),
           highest = g.highest || jsonb_build_object(namespace, greatest(highest, target));
    insert into freshet.generation_history (namespace, generation, previous, action, who, why)
    values (namespace, target, present, action, who, why);
    delete from freshet.generation_history h
     where h.namespace = namespace
       and h.number <= (select o.number from freshet.generation_history o
                         where o.namespace = namespace order by o.number desc offset 1000 limit 1);
    insert into freshet.log (kind) values ('g');
    return target;
end $$;
-- +goose StatementEnd
revoke execute on function freshet.change_generation from public;

-- Gives a namespace ('' = all of them at once) a new generation, one that it has never had, and returns it:
-- from the commit on, whatever is cached of it must be loaded again. why is for the history. If expected is
-- given and not the present generation, it fails with SQLSTATE ZF001 and changes nothing. who is for the
-- history, too; null = the session's role.
create function freshet.next_generation(
    namespace text, why text, expected bigint default null, who text default null
) returns bigint language sql security definer set search_path = pg_catalog, pg_temp as $$
    select freshet.change_generation('increment', $1, null, $2, $3, $4)
$$;

-- The same with a generation of the caller's choice, 1 to 4294967295. One that was there before comes back
-- as by rollback_generation.
-- +goose StatementBegin
create function freshet.set_generation(
    namespace text, generation bigint, why text, expected bigint default null, who text default null
) returns bigint language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
begin
    if generation is null then
        raise exception 'freshet.set_generation: generation is null; want 1 to 4294967295' using errcode = '22023';
    end if;
    return freshet.change_generation('set', namespace, generation, why, expected, who);
end $$;
-- +goose StatementEnd

-- Goes back to the generation before the present one, or to an earlier one that the namespace has had. Of
-- its entries those are used that still hold; what has changed or was invalidated meanwhile stays out.
create function freshet.rollback_generation(
    namespace text, why text, "to" bigint default null, expected bigint default null, who text default null
) returns bigint language sql security definer set search_path = pg_catalog, pg_temp as $$
    select freshet.change_generation('rollback', $1, $3, $2, $4, $5)
$$;

-- For replicas: takes on, or goes on with, the removal of entries whose generation has not been current for
-- keep, for the time of lease. Nothing comes back if there is nothing to do or another is at it; else, for
-- each namespace with a generation of its own, which generations up to highest are to stay.
-- +goose StatementBegin
create function freshet.claim_generation_cleaning(keep interval, by text, lease interval)
returns table (namespace text, highest bigint, stay bigint[], upto bigint)
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
#variable_conflict use_column
declare
    last bigint;
begin
    if keep is null or keep < interval '0' or lease is null or coalesce(claim_generation_cleaning.by, '') = '' then
        raise exception 'freshet.claim_generation_cleaning: keep, by or lease is null, empty or negative' using errcode = '22023';
    end if;
    select max(h.number) into last from freshet.generation_history h where h.at <= clock_timestamp() - keep;
    if last is null or not exists (select from freshet.generation_cleaning c where c.done < last) then
        return;
    end if;
    update freshet.generation_cleaning c
       set by = claim_generation_cleaning.by, until = clock_timestamp() + lease
     where c.done < last and (c.until < clock_timestamp() or c.by = claim_generation_cleaning.by);
    if not found then
        return;
    end if;
    return query
    select k.key, k.value::bigint,
           array(select coalesce((g.current ->> k.key)::bigint, 1)
                 union
                 select h.previous from freshet.generation_history h
                  where h.namespace = k.key and h.at > clock_timestamp() - keep),
           last
      from freshet.generations g, jsonb_each_text(g.highest) k;
end $$;
-- +goose StatementEnd

-- Says that the removal which the caller had taken on is done up to the given change, or, with null, that it
-- is given up.
-- +goose StatementBegin
create function freshet.end_generation_cleaning(by text, upto bigint) returns void
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
begin
    update freshet.generation_cleaning c
       set done = greatest(c.done, upto), until = '-infinity'
     where c.by = end_generation_cleaning.by;
end $$;
-- +goose StatementEnd

grant select on freshet.generations, freshet.generation_history, freshet.generation_cleaning to public;
