package shop

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"regexp"

	"github.com/freshet-cache/freshet/node"
	"github.com/freshet-cache/freshet/node/nodehttp"
)

// Cart is what somebody is about to buy. It is read and written whole.
type Cart struct {
	ID    string    `json:"id" db:"id"`
	Lines CartLines `json:"lines" db:"lines"` // never nil; each product once
}

// CartLines are the lines of a cart. They are a jsonb column.
type CartLines []CartLine

// CartLine is one product of a cart.
type CartLine struct {
	ProductID int64 `json:"product_id"`
	Quantity  int64 `json:"quantity"` // pieces
}

// Scan reads the jsonb column.
func (l *CartLines) Scan(column any) error {
	text, ok := column.([]byte)
	if !ok {
		return fmt.Errorf("shop: cart lines: got %T; want the bytes of a jsonb column", column)
	}
	return json.Unmarshal(text, l)
}

// The bounds of a cart.
const (
	MaxCartLines = 100
	maxQuantity  = 1000 // pieces of one product
)

// Who knows the id of a cart has the cart: clients choose one that cannot be guessed.
var cartID = regexp.MustCompile(`^[A-Za-z0-9_-]{1,64}$`)

const cartsByID = `select id, lines from carts where id = any($1::text[])`

// cartStore writes carts where cartsByID finds them. The trigger of their table logs it, whoever flushes.
func cartStore() node.Store[Cart] {
	return node.SQLStore[Cart](`
		insert into carts (id, lines)
		select i.id, v.value->'lines' from unnest($1::text[]) with ordinality i (id, n)
		  join jsonb_array_elements($2::jsonb) with ordinality v (value, n) using (n)
		on conflict (id) do update set lines = excluded.lines, updated_at = now()`,
		`delete from carts where id = any($1::text[])`)
}

func (a *API) getCart(w http.ResponseWriter, r *http.Request, s session) error {
	id, err := identifyCart(r)
	if err != nil {
		return err
	}
	entry, err := a.carts.Lookup(r.Context(), id, s.Options()...)
	return answer(a, w, r, entry, err, "cart:"+id)
}

func (a *API) putCart(w http.ResponseWriter, r *http.Request, _ session) error {
	id, err := identifyCart(r)
	if err != nil {
		return err
	}
	fields, err := readObject(w, r, a.timeout, "Accept", "application/json")
	if err != nil {
		return err
	}
	cart := Cart{ID: id}
	if err := readFields(fields, field{name: "lines", required: true, read: cart.Lines.read}); err != nil {
		return err
	}
	var token node.Token
	if a.writeBehind {
		token, err = a.carts.PutLater(r.Context(), id, cart)
	} else {
		var entry node.Entry[Cart]
		entry, err = a.carts.Put(r.Context(), id, cart)
		token = entry.Token
	}
	if err != nil {
		return a.notPut(err)
	}
	return a.send(w, a.accept(w, r, token, http.StatusOK), cart)
}

func (a *API) deleteCart(w http.ResponseWriter, r *http.Request, _ session) error {
	id, err := identifyCart(r)
	if err != nil {
		return err
	}
	remove := func() (node.Token, error) { return a.carts.Delete(r.Context(), id) }
	if a.writeBehind {
		remove = func() (node.Token, error) { return a.carts.DeleteLater(r.Context(), id) }
	}
	token, err := remove()
	if err != nil {
		return a.notPut(err)
	}
	w.WriteHeader(a.accept(w, r, token, http.StatusNoContent))
	return nil
}

// accept says in the headers that a cart was taken, and in the status whether it has yet to get to Postgres.
func (a *API) accept(w http.ResponseWriter, r *http.Request, token node.Token, written int) (status int) {
	nodehttp.NoteToken(r.Context(), token)
	w.Header().Set("Cache-Control", "no-store")
	if !a.writeBehind {
		return written
	}
	w.Header().Set("Freshet-Pending", "true")
	return http.StatusAccepted
}

// notPut is the error of a put that failed: of what is written behind the queue is what may be away.
func (a *API) notPut(err error) error {
	if !a.writeBehind || errors.Is(err, node.ErrOverloaded) || errors.Is(err, node.ErrClosed) {
		return err
	}
	return away(err)
}

// identifyCart reads the request for one cart: the id in its path, and no parameters.
func identifyCart(r *http.Request) (id string, err error) {
	id = r.PathValue("id")
	faults := noParameters(r.URL.RawQuery)
	if !cartID.MatchString(id) {
		faults = append([]fault{{Parameter: "id", Detail: "want 1 to 64 letters, digits, dashes and underscores; got " + quote(id)}}, faults...)
	}
	if faults != nil {
		return "", badRequest(faults)
	}
	return id, nil
}

// read reads the lines that a client gave.
func (l *CartLines) read(text json.RawMessage) (want string) {
	decoder := json.NewDecoder(bytes.NewReader(text))
	decoder.DisallowUnknownFields()
	if decoder.Decode(l) != nil || *l == nil || len(*l) > MaxCartLines {
		return fmt.Sprintf("want a list of up to %d objects of product_id and quantity", MaxCartLines)
	}
	seen := make(map[int64]bool, len(*l))
	for i, line := range *l {
		switch {
		case line.ProductID < 1 || line.Quantity < 1 || line.Quantity > maxQuantity:
			return fmt.Sprintf("line %d: want a product_id of 1 or more and a quantity of 1 to %d", i, maxQuantity)
		case seen[line.ProductID]:
			return fmt.Sprintf("line %d: product %d has a line already: want each once", i, line.ProductID)
		}
		seen[line.ProductID] = true
	}
	return ""
}
