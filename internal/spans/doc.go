// Package spans makes the OpenTelemetry spans of a node: their names and attributes stand here and nowhere else, and
// in docs/traces.md.
//
// A nil [Tracer] makes none: each of its methods is a comparison, allocates nothing, and returns the context that it
// was given. A plain hit in L1 asks for no span at all, traced or not.
//
// Spans follow the semantic conventions for databases where they are calls to one. What they say is of bounded
// variety, and never an id, a key, a value, or the text of an error, which may hold one.
package spans
