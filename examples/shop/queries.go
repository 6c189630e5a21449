package shop

import (
	"strconv"

	"github.com/freshet-cache/freshet/cluster"
)

// Times are turned to UTC by Postgres: a session in another time zone gives the same bytes.
const (
	// The clock goes on behind the snapshot: who reloads when a sale begins or ends sees that it has.
	salePrice = `(select s.price_cents from sales s
		 where s.product_id = id and s.starts <= clock_timestamp() and clock_timestamp() < s.ends)`

	productColumns = `id, name, description, category_id, price_cents, ` + salePrice + ` as sale_price_cents, status, stock, attributes, revision,
		created_at at time zone 'UTC' as created_at, updated_at at time zone 'UTC' as updated_at`
	productsByID = `select ` + productColumns + ` from products where id = any($1::bigint[])`

	categoryColumns = `id, slug, name, description, revision,
		created_at at time zone 'UTC' as created_at, updated_at at time zone 'UTC' as updated_at`
	categoriesByID = `select ` + categoryColumns + ` from categories where id = any($1::bigint[])`
)

// The statements of lists give one column of JSON, the page. They see one snapshot: the total is that of the items.
const (
	jsonTime = `'YYYY-MM-DD"T"HH24:MI:SS.US"Z"'`

	productJSON = `json_build_object('id', id, 'name', name, 'description', description, 'category_id', category_id,
			'price_cents', price_cents, 'sale_price_cents', ` + salePrice + `, 'status', status, 'stock', stock, 'attributes', attributes, 'revision', revision,
			'created_at', to_char(created_at at time zone 'UTC', ` + jsonTime + `),
			'updated_at', to_char(updated_at at time zone 'UTC', ` + jsonTime + `))`

	categoryJSON = `json_build_object('id', id, 'slug', slug, 'name', name, 'description', description, 'revision', revision,
			'created_at', to_char(created_at at time zone 'UTC', ` + jsonTime + `),
			'updated_at', to_char(updated_at at time zone 'UTC', ` + jsonTime + `))`

	categoryList = `
		select json_build_object(
			'items', coalesce((select json_agg(` + categoryJSON + ` order by name, id) from (
				select * from categories order by name, id limit 1000) page), '[]'),
			'total', (select count(*) from categories))`
)

// listConditions are the parts of a filter that narrow a list, in the order of their arguments.
var listConditions = []struct{ parameter, before, after string }{
	{"category", "category_id = ", "::bigint"},
	{"status", "status = ", "::text"},
	{"min_price", "price_cents >= ", "::bigint"},
	{"max_price", "price_cents <= ", "::bigint"},
	{"search", "document @@ websearch_to_tsquery('english', ", "::text)"},
}

// productList is the statement for a canonical filter (parseFilter) and its arguments. The text depends only
// on which conditions there are, so that each combination has one plan; values are always arguments.
func productList(filter cluster.Params) (query string, arguments []any, err error) {
	where, arguments := conditions(filter, filter["offset"], filter["limit"])
	return `
		select json_build_object(
			'items', coalesce((select json_agg(` + productJSON + ` order by id) from (
				select * from products` + where + ` order by id offset $1::bigint limit $2::bigint) page), '[]'),
			'total', (select count(*) from products` + where + `),
			'offset', $1::bigint, 'limit', $2::bigint)`, arguments, nil
}

// productCount is the statement for the conditions of a list.
func productCount(filter cluster.Params) (query string, arguments []any, err error) {
	where, arguments := conditions(filter)
	return `select count(*) from products` + where, arguments, nil
}

// conditions are the where clause of a filter; its arguments follow those that are there.
func conditions(filter cluster.Params, before ...any) (where string, arguments []any) {
	arguments = before
	joint := " where "
	for _, c := range listConditions {
		value, given := filter[c.parameter]
		if !given {
			continue
		}
		arguments = append(arguments, value)
		where += joint + c.before + "$" + strconv.Itoa(len(arguments)) + c.after
		joint = " and "
	}
	return where, arguments
}

// listTags are the scopes, beside its namespace, that a list with the filter depends on. They are also what
// freshet.watch logs for a changed product: its category before and after, and product; and for a changed sale.
func listTags(filter cluster.Params) []string {
	return append(countTags(filter), "sale")
}

// countTags are those of a count, which no sale changes: filters are by the ordinary price.
func countTags(filter cluster.Params) []string {
	if category, given := filter["category"]; given {
		return []string{"category:" + category}
	}
	return []string{"product"}
}
