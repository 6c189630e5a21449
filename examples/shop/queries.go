package shop

import (
	"strconv"
	"strings"

	"github.com/freshet-cache/freshet/cluster"
)

// Times are turned to UTC by Postgres: a session in another time zone gives the same bytes.
const (
	productColumns = `id, name, description, category_id, price_cents, status, stock, attributes, revision,
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
			'price_cents', price_cents, 'status', status, 'stock', stock, 'attributes', attributes, 'revision', revision,
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
	arguments = append(arguments, filter["offset"], filter["limit"])
	var where strings.Builder
	joint := " where "
	for _, c := range listConditions {
		value, given := filter[c.parameter]
		if !given {
			continue
		}
		arguments = append(arguments, value)
		where.WriteString(joint + c.before + "$" + strconv.Itoa(len(arguments)) + c.after)
		joint = " and "
	}
	return `
		select json_build_object(
			'items', coalesce((select json_agg(` + productJSON + ` order by id) from (
				select * from products` + where.String() + ` order by id offset $1::bigint limit $2::bigint) page), '[]'),
			'total', (select count(*) from products` + where.String() + `),
			'offset', $1::bigint, 'limit', $2::bigint)`, arguments, nil
}

// listTags are the scopes, beside its namespace, that a list with the filter depends on. They are also what
// freshet.watch logs for a changed product: its category before and after, and product.
func listTags(filter cluster.Params) []string {
	if category, given := filter["category"]; given {
		return []string{"category:" + category}
	}
	return []string{"product"}
}
