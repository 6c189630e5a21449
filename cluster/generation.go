package cluster

import (
	"fmt"
	"strconv"
	"strings"
)

// Generation is the pair of numbers that an entry was made under: that of the whole application and that
// of its namespace. Entries of different generations never share a key. Both count from 1; the zero
// Generation is nobody's.
type Generation struct {
	Global, Namespace uint32
}

// FirstGeneration is that of every namespace until somebody changes one.
func FirstGeneration() Generation { return Generation{Global: 1, Namespace: 1} }

// String is "global.namespace", as it stands in a key.
func (g Generation) String() string { return string(g.appendText(nil)) }

func (g Generation) appendText(b []byte) []byte {
	b = strconv.AppendUint(b, uint64(g.Global), 10)
	b = append(b, '.')
	return strconv.AppendUint(b, uint64(g.Namespace), 10)
}

// Packed is the pair as one number, for what has room for one only.
func (g Generation) Packed() uint64 { return uint64(g.Global)<<32 | uint64(g.Namespace) }

// ParseGeneration reads what [Generation.String] writes, and nothing else.
func ParseGeneration(text string) (Generation, error) {
	global, namespace, _ := strings.Cut(text, ".")
	a, err1 := strconv.ParseUint(global, 10, 32)
	b, err2 := strconv.ParseUint(namespace, 10, 32)
	g := Generation{uint32(a), uint32(b)}
	if err1 != nil || err2 != nil || g.String() != text {
		return Generation{}, fmt.Errorf("cluster: %.40q is not a generation: want two numbers with a dot between", text)
	}
	return g, nil
}
