package shop

import (
	"database/sql/driver"
	"encoding/json"
	"fmt"
	"time"
)

// Status is where a product is in its life.
type Status string

// The states of a product. Any may follow any other.
const (
	Draft    Status = "draft"    // not yet on sale
	Active   Status = "active"   // on sale
	Archived Status = "archived" // no longer on sale
)

func (s Status) valid() bool { return s == Draft || s == Active || s == Archived }

// Product is one thing in the catalogue.
type Product struct {
	ID          int64  `json:"id" db:"id"`
	Name        string `json:"name" db:"name"`
	Description string `json:"description" db:"description"`
	CategoryID  int64  `json:"category_id" db:"category_id"`
	PriceCents  int64  `json:"price_cents" db:"price_cents"` // hundredths of the currency
	// SalePriceCents is what it costs while a sale of it is on; nil = none is.
	SalePriceCents *int64     `json:"sale_price_cents" db:"sale_price_cents"`
	Status         Status     `json:"status" db:"status"`
	Stock          int64      `json:"stock" db:"stock"` // pieces
	Attributes     Attributes `json:"attributes" db:"attributes"`
	Revision       int64      `json:"revision" db:"revision"` // 1 at first; every update by whomever adds 1
	CreatedAt      time.Time  `json:"created_at" db:"created_at"`
	UpdatedAt      time.Time  `json:"updated_at" db:"updated_at"`
}

// Category is a shelf of the catalogue. Categories come and go in the database only.
type Category struct {
	ID          int64     `json:"id" db:"id"`
	Slug        string    `json:"slug" db:"slug"` // the name in lower case with hyphens, unique
	Name        string    `json:"name" db:"name"`
	Description string    `json:"description" db:"description"`
	Revision    int64     `json:"revision" db:"revision"`
	CreatedAt   time.Time `json:"created_at" db:"created_at"`
	UpdatedAt   time.Time `json:"updated_at" db:"updated_at"`
}

// ProductPage is a part of a list of products, in the order of their ids.
type ProductPage struct {
	Items  []Product `json:"items"`  // never nil
	Total  int64     `json:"total"`  // how many products match, on all pages; from the same snapshot as Items
	Offset int64     `json:"offset"` // how many matches lie before Items
	Limit  int64     `json:"limit"`  // the most that Items holds
}

// CategoryPage is the list of categories, in the order of their names.
type CategoryPage struct {
	Items []Category `json:"items"` // never nil; at most the first 1,000
	Total int64      `json:"total"`
}

// Attributes are free properties of a product, such as its colour. It is a jsonb column.
type Attributes map[string]string

// Scan reads the jsonb column. Values that another writer stored as something else than a string are
// given as their JSON text.
func (a *Attributes) Scan(column any) error {
	text, ok := column.([]byte)
	if !ok {
		return fmt.Errorf("shop: attributes: got %T; want the bytes of a jsonb column", column)
	}
	return a.UnmarshalJSON(text)
}

// Value is the text of the jsonb column.
func (a Attributes) Value() (driver.Value, error) {
	if a == nil {
		return "{}", nil
	}
	text, err := json.Marshal(map[string]string(a))
	return string(text), err
}

// UnmarshalJSON reads a JSON object; see Scan for values that are not strings.
func (a *Attributes) UnmarshalJSON(text []byte) error {
	var texts map[string]string
	if err := json.Unmarshal(text, &texts); err == nil && texts != nil {
		*a = texts
		return nil
	}
	var raw map[string]json.RawMessage
	if err := json.Unmarshal(text, &raw); err != nil {
		return fmt.Errorf("shop: attributes: %w", err)
	}
	*a = make(Attributes, len(raw))
	for name, value := range raw {
		var s string
		if json.Unmarshal(value, &s) != nil {
			s = string(value)
		}
		(*a)[name] = s
	}
	return nil
}
