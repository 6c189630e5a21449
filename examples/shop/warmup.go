package shop

import (
	"context"

	"github.com/freshet-cache/freshet/cluster"
	"github.com/freshet-cache/freshet/node"
)

// popularProducts are those that a shop shows first: what is for sale and in stock, in the order of the lists.
const popularProducts = `select id from products where status = 'active' and stock > 0 order by id limit 1000`

// warmUps are those of the four caches of the catalogue.
type warmUps struct {
	products, categories       node.WarmUp
	productPages, categoryPage node.QueryWarmUp
}

// allWarmUps fill the caches of a replica that starts with what the customers of the others read of late. The
// first of all has nobody to ask, and takes what a shop shows first.
func allWarmUps() warmUps {
	return warmUps{
		products:     node.WarmUp{Peers: true, Query: popularProducts},
		productPages: node.QueryWarmUp{Peers: true},
		categories:   node.WarmUp{Query: `select id from categories order by id limit 1000`},
		categoryPage: node.QueryWarmUp{Params: func(context.Context) ([]cluster.Params, error) {
			return []cluster.Params{{}}, nil
		}},
	}
}
