-- +goose Up

-- Carts are stored whole. Their lines name products that may be gone by now: a cart that was put is never refused.
create table carts (
    id         text primary key check (id ~ '^[A-Za-z0-9_-]{1,64}$'),
    lines      jsonb not null check (jsonb_typeof(lines) = 'array' and jsonb_array_length(lines) <= 100),
    updated_at timestamptz not null default now()
);

-- The one sale that a product has now, had last or will have next.
create table sales (
    product_id  bigint primary key constraint sales_product_exists references products (id) on delete cascade,
    price_cents bigint not null check (price_cents between 0 and 10000000000),
    starts      timestamptz not null,
    ends        timestamptz not null check (ends > starts)
);

select freshet.watch('carts', namespace => 'cart', id => 'id');

-- A changed sale is a change of its product, and of every list: those are tagged with sale, too. What the triggers
-- cannot log is that a sale begins or ends, since nobody writes then: who makes a sale schedules both (putSale).
select freshet.watch('sales', namespace => 'product', id => 'product_id', tags => array['sale']);
