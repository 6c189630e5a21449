package tiers

import (
	"bytes"
	"encoding/hex"
	"errors"
	"flag"
	"io/fs"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/cespare/xxhash/v2"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/structpb"
)

var update = flag.Bool("update", false, "write the golden files that are missing; those that are there stay as they are")

// lamp is a value of the golden entries.
type lamp struct {
	Name    string    `json:"name"`
	Price   float64   `json:"price"`
	Text    string    `json:"text"`
	Sold    int64     `cbor:"n" json:"sold"`
	Since   time.Time `json:"since"`
	Colours []string  `json:"colours,omitempty"`
	Stock   map[string]int
}

// golden is one file: what an entry says, and how it was written.
type golden struct {
	header  Header
	payload []byte
	how     Compression
	packed  byte
	// decodes reports whether the payload is read as the value that was written; nil = the payload is none.
	decodes func(codec Codec, payload []byte) bool
}

// goldens are all entries that any version has written; none may ever be taken away or changed.
func goldens(t *testing.T) map[string]golden {
	t.Helper()
	absent := fullHeader()
	absent.Absent = true
	all := map[string]golden{
		"v1-plain":      {fullHeader(), []byte(`{"name":"lamp","price":12.5}`), Compression{}, 0, nil},
		"v1-absent":     {absent, nil, Compression{}, 0, nil},
		"v1-compressed": {fullHeader(), bytes.Repeat([]byte(`{"name":"lamp"},`), 100), Compression{}, flagS2, nil},
	}
	v := lamp{
		Name: "lamp", Price: 12.5, Text: strings.Repeat("bright ", 30), Sold: 1 << 40, Since: time.Date(2026, 1, 2, 3, 4, 5, 6000, time.FixedZone("", 3600)),
		Colours: []string{"white", "black"}, Stock: map[string]int{"Oslo": 3, "Rome": -1, "": 0},
	}
	sameLamp := func(a, b lamp) bool {
		same := a.Since.Equal(b.Since) && a.Since.String() == b.Since.String()
		a.Since = b.Since
		return same && reflect.DeepEqual(a, b)
	}
	m, err := structpb.NewStruct(map[string]any{"name": "lamp", "price": 12.5, "text": strings.Repeat("bright ", 30), "colours": []any{"white", true, nil}})
	if err != nil {
		t.Fatal(err)
	}
	addGoldens(t, all, "v1-json", JSON, v, sameLamp)
	addGoldens(t, all, "v1-cbor", CBOR, v, sameLamp)
	addGoldens(t, all, "v1-protobuf", Protobuf, m, func(a, b *structpb.Struct) bool { return proto.Equal(a, b) })
	addGoldens(t, all, "v1-bytes", Bytes, strings.Repeat("bright \xff\x00", 30), func(a, b string) bool { return a == b })
	return all
}

// addGoldens adds entries of the value: as it is, without tags, compressed in each way, and one that says that there is none.
func addGoldens[V any](t *testing.T, all map[string]golden, name string, codec Codec, v V, same func(a, b V) bool) {
	t.Helper()
	c := newCoder[V](t, codec)
	payload, err := c.Encode(v)
	if err != nil {
		t.Fatal(err)
	}
	h := fullHeader()
	h.Codec, h.Fingerprint = codec, c.fingerprint
	bare, absent := h, h
	bare.Tags, absent.Absent = nil, true
	decodes := func(codec Codec, payload []byte) bool {
		got, err := c.Decode(codec, payload)
		return err == nil && same(got, v)
	}
	all[name+"-plain"] = golden{h, payload, Compression{Algorithm: NoCompression}, 0, decodes}
	all[name+"-untagged"] = golden{bare, payload, Compression{Algorithm: NoCompression}, 0, decodes}
	all[name+"-s2"] = golden{h, payload, Compression{Algorithm: S2, Above: 1}, flagS2, decodes}
	all[name+"-zstd"] = golden{h, payload, Compression{Algorithm: Zstd, Above: 1}, flagZstd, decodes}
	all[name+"-absent"] = golden{absent, nil, Compression{}, 0, nil}
}

// What any version wrote, this one reads; and what it writes without compression is what it wrote before, so that the
// version before reads it, too. How an algorithm packs may change with its package; what it unpacks may not.
func TestEntryGolden(t *testing.T) {
	all := goldens(t)
	for name, c := range all {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join("testdata", "entry", name+".hex")
			written, err := newPacking(t, c.how).EncodeEntry(nil, c.header, c.payload)
			if err != nil {
				t.Fatal(err)
			}
			if written[5]&flagPacked != c.packed {
				t.Errorf("compressed by %d, want %d", written[5]&flagPacked, c.packed)
			}
			text, err := os.ReadFile(path)
			if errors.Is(err, fs.ErrNotExist) && *update {
				text = []byte(hex.Dump(written))
				err = os.WriteFile(path, text, 0o644)
			}
			if err != nil {
				t.Fatal(err)
			}
			stored := undump(t, string(text))
			if c.packed == 0 && !bytes.Equal(written, stored) {
				t.Errorf("it is written as\n%s\nwant\n%s", hex.Dump(written), text)
			}
			h, payload, err := newPacking(t, Compression{}).DecodeEntry(stored)
			c.header.Sum = xxhash.Sum64(c.payload)
			if err != nil || !reflect.DeepEqual(h, c.header) || !bytes.Equal(payload, c.payload) {
				t.Errorf("it is read as %+v, %q, %v;\nwant %+v, %q", h, payload, err, c.header, c.payload)
			}
			if c.decodes != nil && !c.decodes(h.Codec, payload) {
				t.Errorf("%q is not read as the value that was written", payload)
			}
		})
	}
	files, err := filepath.Glob(filepath.Join("testdata", "entry", "*"))
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range files {
		if _, known := all[strings.TrimSuffix(filepath.Base(path), ".hex")]; !known {
			t.Errorf("%s is read by no test", path)
		}
	}
}

// undump is the bytes that hex.Dump showed.
func undump(t *testing.T, text string) []byte {
	t.Helper()
	var b []byte
	for line := range strings.Lines(text) {
		_, row, _ := strings.Cut(line, " ")
		row, _, _ = strings.Cut(row, "|")
		part, err := hex.DecodeString(strings.Join(strings.Fields(row), ""))
		if err != nil {
			t.Fatal(err)
		}
		b = append(b, part...)
	}
	return b
}
