create table verify_row (
    id       bigint primary key,
    category bigint not null,
    revision bigint not null default 1,
    op       bigint not null,           -- the number of the write that made this state
    sent     bigint not null default 0  -- when it was sent, in ns of CLOCK_MONOTONIC; 0 = not told
);
create index on verify_row (category);

-- The rows whose id is 3 modulo 16 once more, under a key of two columns. verify_note keeps it.
create table verify_twin (
    half bigint not null, -- of the id
    id   bigint not null,
    op   bigint not null,
    primary key (half, id)
);

-- Every change of a row, by whomever. It is written in the writer's transaction while that holds the
-- row's lock, so that seq orders the changes of one id as their commits do.
create table verify_audit (
    seq      bigserial primary key,
    xid      xid8   not null default pg_current_xact_id(),
    id       bigint not null,
    op       bigint not null,
    category bigint not null, -- 0 = the row does not exist after the change
    sent     bigint not null
);

-- Accounts, whose ids begin where those of rows cannot be: a transfer moves something between two of them, so
-- that all balances together stay the same.
create table verify_account (
    id      bigint primary key,
    bank    bigint not null,
    balance bigint not null,
    op      bigint not null,
    sent    bigint not null default 0
);

create function verify_note_account() returns trigger language plpgsql as $$
begin
    insert into verify_audit (id, op, category, sent) values (new.id, new.op, new.bank, new.sent);
    return null;
end $$;

create trigger verify_account_note after insert or update on verify_account
    for each row execute function verify_note_account();

create function verify_note() returns trigger language plpgsql as $$
declare
    -- Of what deletes: such a change has no row that could carry them.
    by_op   bigint := coalesce(nullif(current_setting('verify.op', true), ''), '0');
    by_sent bigint := coalesce(nullif(current_setting('verify.sent', true), ''), '0');
begin
    if tg_op = 'TRUNCATE' then
        insert into verify_audit (id, op, category, sent) select id, by_op, 0, by_sent from verify_row;
        truncate verify_twin;
        return null;
    end if;
    if tg_op = 'DELETE' or (tg_op = 'UPDATE' and old.id <> new.id) then
        if tg_op = 'UPDATE' then
            by_op := new.op;
            by_sent := new.sent;
        end if;
        insert into verify_audit (id, op, category, sent) values (old.id, by_op, 0, by_sent);
        delete from verify_twin where half = old.id / 2 and id = old.id;
    end if;
    if tg_op <> 'DELETE' then
        insert into verify_audit (id, op, category, sent) values (new.id, new.op, new.category, new.sent);
        if new.id % 16 = 3 then
            insert into verify_twin values (new.id / 2, new.id, new.op) on conflict (half, id) do update set op = excluded.op;
        end if;
    end if;
    return null;
end $$;

create trigger verify_row_note after insert or update or delete on verify_row
    for each row execute function verify_note();
create trigger verify_row_note_truncate before truncate on verify_row
    for each statement execute function verify_note();
