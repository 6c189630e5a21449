package node

import "github.com/freshet-cache/freshet/tiers"

// Codec says how a cache encodes its values for Redis and for peers, and by that their version, [Entry.Version]. An entry
// that was written by another codec, or of another form of the Go type, is a miss: builds that differ in that can
// run side by side, each with entries of its own.
type Codec = tiers.Codec

// The codecs; the default is JSON.
const (
	JSON     = tiers.JSON     // any type, by encoding/json
	CBOR     = tiers.CBOR     // any type, by its cbor or json tags: read three times as fast as JSON, and somewhat smaller
	Protobuf = tiers.Protobuf // a pointer to a message of generated code
	Bytes    = tiers.Bytes    // []byte, string, or a type made of one, as it is
)

// Compression says how a cache compresses what it stores in Redis. The zero value is S2 above 1 KiB.
type Compression = tiers.Compression

// Algorithm is a way to compress.
type Algorithm = tiers.Algorithm

// The algorithms of a [Compression]. Entries say how they were compressed: replicas need not agree.
const (
	S2            = tiers.S2 // the default: little work
	Zstd          = tiers.Zstd
	NoCompression = tiers.NoCompression
)
