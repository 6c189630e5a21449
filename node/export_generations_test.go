package node

import "context"

// CleanGenerations is one run of the duty that removes entries of old generations.
func (n *Node) CleanGenerations(ctx context.Context) error { return n.cleanGenerations(ctx) }
