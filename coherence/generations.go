package coherence

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"

	"github.com/freshet-cache/freshet/cluster"
)

// Generations are the current ones of all namespaces, as one snapshot of Postgres sees them. They are
// immutable. nil stands for those of a server that nobody has asked yet: every namespace has
// [cluster.FirstGeneration].
type Generations struct {
	version string
	text    string
	numbers map[string]uint32 // namespace, "" for that of all -> generation
}

// Bounds of what a log may say of generations.
const (
	maxGenerations        = 1024 + 1
	maxGenerationsText    = 128 << 10
	maxGenerationsVersion = 64
)

// NewGenerations are those of the given numbers: namespace, "" for that of all, -> generation; one that is
// missing is 1. The version, up to 64 bytes, names this state among all that the log has ever been in.
func NewGenerations(version string, numbers map[string]uint32) *Generations {
	text, _ := json.Marshal(numbers) // does not fail
	return &Generations{version: version, text: string(text), numbers: maps.Clone(numbers)}
}

// parseGenerations reads the JSON text of a version.
func parseGenerations(version, text string) (*Generations, error) {
	if version == "" || len(version) > maxGenerationsVersion || len(text) > maxGenerationsText {
		return nil, errors.New("coherence: generations: without a version, or too large")
	}
	g := &Generations{version: version, text: text}
	if err := json.Unmarshal([]byte(text), &g.numbers); err != nil {
		return nil, fmt.Errorf("coherence: generations: %w", err)
	}
	if len(g.numbers) > maxGenerations {
		return nil, fmt.Errorf("coherence: generations of %d namespaces: want at most %d", len(g.numbers), maxGenerations)
	}
	return g, nil
}

// Of is the namespace's. For "", only that of all namespaces is told.
func (g *Generations) Of(namespace string) cluster.Generation {
	if namespace == "" {
		return cluster.Generation{Global: g.number("")}
	}
	return cluster.Generation{Global: g.number(""), Namespace: g.number(namespace)}
}

func (g *Generations) number(namespace string) uint32 {
	if g == nil {
		return 1
	}
	if n, ok := g.numbers[namespace]; ok {
		return n
	}
	return 1
}

// Version names the state; "" for nil.
func (g *Generations) Version() string {
	if g == nil {
		return ""
	}
	return g.version
}
