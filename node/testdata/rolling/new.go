//go:build rolling_new

package main

import "github.com/freshet-cache/freshet/node"

// Changed has a field renamed, one retyped and one added. Its JSON could be read from the old build's, and would then
// lack what was added.
type Changed struct {
	ID       string  `json:"id"`
	Title    string  `json:"name"`
	Revision int64   `json:"revision"`
	Double   float64 `json:"double"`
	Kind     string  `json:"kind"`
}

const (
	changedColumns = `name as title, 2 * revision as double, 'a kind' as kind`
	changedCodec   = node.CBOR
)

func (v Changed) right() bool {
	return v.Title == nameOf(v.Revision) && v.Double == float64(2*v.Revision) && v.Kind == "a kind"
}
func (v Changed) revision() int64 { return v.Revision }
