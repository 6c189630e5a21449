package shop

import (
	"context"
	"errors"
	"net/http"
	"strconv"
	"time"

	"github.com/freshet-cache/freshet/cluster"
	"github.com/freshet-cache/freshet/node"
	"github.com/freshet-cache/freshet/node/nodehttp"
)

// renameGrace is for how long the list of all categories may show a category as it was: it is on every page of the
// shop, and a rename shall not make all its readers wait for one load.
const renameGrace = 5 * time.Second

// categoryStore writes name and description of categories that exist.
type categoryStore struct{}

// Put writes one category after the other: the cache is given one at a time. What the trigger of the table logs
// has a grace, the tag of the list among it; that the category itself changes Cache.Put says, and that has none.
func (categoryStore) Put(ctx context.Context, tx *node.Tx, values map[string]Category) error {
	if err := tx.Grace(renameGrace); err != nil {
		return err
	}
	for id, c := range values {
		result, err := tx.ExecContext(ctx, `update categories set name = $2, description = $3 where id = $1::bigint`, id, c.Name, c.Description)
		if err != nil {
			return err
		}
		if n, err := result.RowsAffected(); err != nil || n == 0 {
			return errors.Join(err, notFound("There is nothing with this id."))
		}
	}
	return tx.Grace(0)
}

// Delete is not for the API.
func (categoryStore) Delete(context.Context, *node.Tx, []string) error {
	return errors.New("shop: categories are removed in the database only")
}

func (a *API) listCategories(w http.ResponseWriter, r *http.Request, s session) error {
	if faults := noParameters(r.URL.RawQuery); faults != nil {
		return badRequest(faults)
	}
	entry, err := a.categoryPage.Lookup(r.Context(), cluster.Params{}, s.Options()...)
	return answer(a, w, r, entry, err, "category")
}

func (a *API) getCategory(w http.ResponseWriter, r *http.Request, s session) error {
	id, err := identify(r)
	if err != nil {
		return err
	}
	entry, err := a.categories.Lookup(r.Context(), id, s.Options()...)
	return answer(a, w, r, entry, err, "category:"+id)
}

// putCategory writes a category through: the answer is what Postgres has, and it is cached already.
func (a *API) putCategory(w http.ResponseWriter, r *http.Request, _ session) error {
	id, err := identify(r)
	if err != nil {
		return err
	}
	fields, err := readObject(w, r, a.timeout, "Accept", "application/json")
	if err != nil {
		return err
	}
	var category Category
	if err := readFields(fields,
		field{name: "name", required: true, read: textOf(&category.Name, 1, maxCategoryName, "")},
		field{name: "description", read: textOf(&category.Description, 0, maxCategoryDescription, "\r\n\t")},
	); err != nil {
		return err
	}
	entry, err := a.categories.Put(r.Context(), id, category)
	if err != nil {
		return err
	}
	nodehttp.NoteToken(r.Context(), entry.Token)
	w.Header().Set("Cache-Control", "no-store")
	if entry.Tier == 0 { // written, and not read back
		w.WriteHeader(http.StatusNoContent)
		return nil
	}
	w.Header().Set("ETag", nodehttp.ETag(entry.Version))
	return a.send(w, http.StatusOK, entry.Value)
}

// CategoryView is a category with the first page of its products, as of one snapshot.
type CategoryView struct {
	Category Category    `json:"category"`
	Products ProductPage `json:"products"`
}

func (a *API) viewCategory(w http.ResponseWriter, r *http.Request, s session) error {
	id, err := identify(r)
	if err != nil {
		return err
	}
	filter := cluster.Params{"category": id, "offset": "0", "limit": strconv.Itoa(DefaultLimit)}
	var view CategoryView
	moment, err := a.node.Snapshot(r.Context(), func(snapshot *node.Snapshot) (err error) {
		if view.Category, err = a.categories.In(snapshot, id); err != nil {
			return err
		}
		view.Products, err = a.productPages.In(snapshot, filter)
		return err
	}, s.Options()...)
	entry := node.Entry[CategoryView]{Value: view, Fresh: true, Age: moment.Age, Token: moment.Token, Version: versionOf(view)}
	return answer(a, w, r, entry, err, listTags(filter)...)
}
