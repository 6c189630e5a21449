package shop

import (
	"encoding/json"
	"fmt"
	"hash/fnv"
	"net/http"

	"github.com/freshet-cache/freshet/node"
)

// Quote is what some products cost together, as of one snapshot: no change of prices is in it by half.
type Quote struct {
	Items      []QuoteItem `json:"items"` // in the order that was asked for
	TotalCents int64       `json:"total_cents"`
}

// QuoteItem is what one product costs, a sale considered.
type QuoteItem struct {
	ProductID  int64 `json:"product_id"`
	PriceCents int64 `json:"price_cents"`
}

// MaxQuote bounds the products of a quote.
const MaxQuote = 100

func (a *API) getQuote(w http.ResponseWriter, r *http.Request, s session) error {
	ids, faults := parseQuote(r.URL.RawQuery)
	if faults != nil {
		return badRequest(faults)
	}
	entries, err := a.products.GetMany(r.Context(), ids, append(s.Options(), node.Consistent())...)
	if err != nil {
		return err
	}
	entry := node.Entry[Quote]{Fresh: true, Token: s.Token()}
	keys := make([]string, len(ids))
	for i, id := range ids {
		e, there := entries[id]
		if !there {
			faults = append(faults, fault{Parameter: "product", Detail: "there is no product " + id})
			continue
		}
		keys[i] = "product:" + id
		item := QuoteItem{ProductID: e.Value.ID, PriceCents: e.Value.cost()}
		entry.Value.Items = append(entry.Value.Items, item)
		entry.Value.TotalCents += item.PriceCents
		entry.Age, entry.Tier, entry.Token = e.Age, max(entry.Tier, e.Tier), entry.Token.Merge(e.Token)
		if i == 0 || e.TTL < entry.TTL {
			entry.TTL = e.TTL
		}
	}
	if faults != nil {
		p := notFound("There are not all of these products; errors names those that do not exist.")
		p.Errors = faults
		return p
	}
	entry.Version = versionOf(entry.Value)
	return answer(a, w, r, entry, nil, keys...)
}

// parseQuote reads the ids of the products, each once.
func parseQuote(rawQuery string) (ids []string, faults []fault) {
	values, faults := parseQuery(rawQuery)
	given := values["product"]
	delete(values, "product")
	if len(given) < 1 || len(given) > MaxQuote {
		faults = append(faults, fault{Parameter: "product", Detail: fmt.Sprintf("given %d times; want 1 to %d", len(given), MaxQuote)})
		given = nil
	}
	seen := make(map[string]bool, len(given))
	for _, text := range given {
		id, want := integer(1, maxID)(text)
		switch {
		case want != "":
			faults = append(faults, fault{Parameter: "product", Detail: want + "; got " + quote(text)})
		case seen[id]:
			faults = append(faults, fault{Parameter: "product", Detail: id + " is given twice; give each once"})
		}
		seen[id] = true
		ids = append(ids, id)
	}
	return ids, append(faults, unknownParameters(values, "known is product")...)
}

// versionOf is the version of an answer that is made of several entries: a hash of its JSON.
func versionOf(value any) uint64 {
	hash := fnv.New64a()
	_ = json.NewEncoder(hash).Encode(value) // it is sent as JSON later, where an error counts
	return hash.Sum64()
}
