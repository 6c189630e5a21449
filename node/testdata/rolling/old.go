//go:build !rolling_new

package main

import "github.com/freshet-cache/freshet/node"

// Changed is what the new build has changed.
type Changed struct {
	ID       string `json:"id"`
	Name     string `json:"name"`
	Revision int64  `json:"revision"`
	Double   int64  `json:"double"`
}

const (
	changedColumns = `name, 2 * revision as double`
	changedCodec   = node.JSON
)

func (v Changed) right() bool     { return v.Name == nameOf(v.Revision) && v.Double == 2*v.Revision }
func (v Changed) revision() int64 { return v.Revision }
