package coherence

import (
	"fmt"

	"github.com/cespare/xxhash/v2"
)

// Kind says what sort of thing a change is about. Its values are the letters in freshet.log.
type Kind byte

// The kinds of scope, from the narrowest to the widest.
const (
	KindView       Kind = 'v' // one representation of one entity
	KindEntity     Kind = 'e' // one entity, in every view
	KindTag        Kind = 't' // every entry that carries the tag, in any namespace
	KindNamespace  Kind = 'n' // every entry of a namespace
	KindEverything Kind = 'a' // every entry of the application
	// KindGenerations: the generations of namespaces. No entry is of this scope: which generation one may
	// have, a poll says ([PollResult]); such a change says that there is something new to poll.
	KindGenerations Kind = 'g'
)

// Scope is what a change is about. Fields that its kind does not use are empty.
type Scope struct {
	Kind      Kind
	Namespace string
	ID        string
	View      string
}

// Entity is the scope of one entity in all its views.
func Entity(namespace, id string) Scope { return Scope{Kind: KindEntity, Namespace: namespace, ID: id} }

// View is the scope of one view of one entity.
func View(namespace, id, view string) Scope {
	return Scope{Kind: KindView, Namespace: namespace, ID: id, View: view}
}

// Tag is the scope of all entries with the tag.
func Tag(tag string) Scope { return Scope{Kind: KindTag, ID: tag} }

// AnyTag is the scope of all entries with a tag, whichever it is.
func AnyTag() Scope { return Scope{Kind: KindTag} }

// Namespace is the scope of all entries of a namespace.
func Namespace(namespace string) Scope { return Scope{Kind: KindNamespace, Namespace: namespace} }

// Everything is the scope of all entries.
func Everything() Scope { return Scope{Kind: KindEverything} }

// AllGenerations is the scope of the generations of all namespaces.
func AllGenerations() Scope { return Scope{Kind: KindGenerations} }

// String is how logs and tools show the scope.
func (s Scope) String() string {
	switch s.Kind {
	case KindEverything:
		return "everything"
	case KindGenerations:
		return "generations"
	case KindNamespace:
		return "namespace " + s.Namespace
	case KindTag:
		if s.ID == "" {
			return "any tag"
		}
		return "tag " + s.ID
	case KindEntity:
		return s.Namespace + ":" + s.ID
	case KindView:
		return s.Namespace + ":" + s.ID + ":" + s.View
	}
	return fmt.Sprintf("unknown scope kind %q", byte(s.Kind))
}

// ScopeHash is the 64-bit name of a scope in memory and on the wire. Two scopes with one hash share
// their changes: a collision can cause a needless load, never a wrong answer.
type ScopeHash uint64

// Hash is the xxHash64 of the kind and the fields, with a zero byte between them; its upper bits say
// where the scope's stamp is (see [Stamps]): a view has its entity's; namespaces, any tag and everything
// have none. It is the same on every replica of every build: hints and entries in L2 carry it.
func (s Scope) Hash() ScopeHash {
	return scopeHash([]byte{byte(s.Kind)}, s.Namespace, s.ID, s.View)
}

// scopeHash is [Scope.Hash] of the fields as text or bytes.
func scopeHash[T ~string | ~[]byte](kind []byte, namespace, id, view T) ScopeHash {
	const lower = 1<<(64-stampBits) - 1
	sum := scopeSum(kind, namespace, id, view)
	switch {
	case len(kind) != 1:
		return sum
	case Kind(kind[0]) == KindView:
		var none T
		return scopeSum([]byte{byte(KindEntity)}, namespace, id, none)&^lower | sum&lower
	case Kind(kind[0]) == KindNamespace, Kind(kind[0]) == KindEverything, Kind(kind[0]) == KindTag && len(id) == 0:
		return sum & lower
	}
	return sum
}

func scopeSum[T ~string | ~[]byte](kind []byte, namespace, id, view T) ScopeHash {
	var space [256]byte
	b := append(space[:0], kind...)
	b = append(b, 0)
	b = append(b, namespace...)
	b = append(b, 0)
	b = append(b, id...)
	b = append(b, 0)
	b = append(b, view...)
	return ScopeHash(xxhash.Sum64(b))
}
