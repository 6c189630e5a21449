package cluster_test

import (
	"fmt"
	"math"
	"strings"
	"testing"

	"github.com/freshet-cache/freshet/cluster"
)

func shopKeys(t testing.TB) cluster.Keys {
	t.Helper()
	keys, err := cluster.NewKeys("shop")
	if err != nil {
		t.Fatal(err)
	}
	return keys
}

func ExampleKeys() {
	third := cluster.Generation{Global: 1, Namespace: 3}
	keys, _ := cluster.NewKeys("shop")
	entity, _ := keys.Entity(third, "product", "42", "detail")
	odd, _ := keys.Entity(third, "product", "a{b}:50% größe", "detail")
	query, _ := keys.Query(third, "product", cluster.Params{"page": "2", "category": "7"}, "list")
	fmt.Println(entity)
	fmt.Println(odd)
	fmt.Println(query)
	fmt.Println(cluster.Lease(entity))
	fmt.Println(cluster.Slot(entity) == cluster.Slot(cluster.Lease(entity)))
	// Output:
	// shop:v1.3:{product:42}:detail
	// shop:v1.3:{product:a%7Bb%7D%3A50%25%20größe}:detail
	// shop:v1.3:{product?dda0010144ea911178001e2f4391ec51}:list
	// shop:v1.3:{product:42}:detail:lease
	// true
}

func TestEntityEscapesWhatWouldBeAmbiguous(t *testing.T) {
	keys := shopKeys(t)
	for id, want := range map[string]string{
		"42":                      "42",
		"a/b-c_d.e~f@g#h!$&'()*+": "a/b-c_d.e~f@g#h!$&'()*+",
		"%":                       "%25",
		"%25":                     "%2525",
		"{}":                      "%7B%7D",
		"a:b?c":                   "a%3Ab%3Fc",
		"a b\tc\x00\r\n":          "a%20b%09c%00%0D%0A",
		"\x7f\u0080\u009f\u00a0":  "%7F%C2%80%C2%9F\u00a0",
		"größe-数-🙂":               "größe-数-🙂",
		"\xff\xc3":                "%FF%C3",
		"\xed\xa0\x80":            "%ED%A0%80", // half a surrogate pair
		"\ufffd":                  "\ufffd",    // the replacement character itself is good UTF-8
	} {
		got, err := keys.Entity(cluster.Generation{Global: math.MaxUint32, Namespace: math.MaxUint32}, "product", id, "detail")
		if want = "shop:v4294967295.4294967295:{product:" + want + "}:detail"; err != nil || got != want {
			t.Errorf("Entity(%q) = %q, %v; want %q", id, got, err, want)
		}
	}
}

func TestKeysRefuseWithTheFieldAndWhatIsRight(t *testing.T) {
	keys := shopKeys(t)
	tooMany := cluster.Params{}
	for i := range cluster.MaxParams + 1 {
		tooMany[fmt.Sprint(i)] = ""
	}
	entity := func(namespace, id, view string) error {
		_, err := keys.Entity(cluster.FirstGeneration(), namespace, id, view)
		return err
	}
	query := func(p cluster.Params) error {
		_, err := keys.Query(cluster.FirstGeneration(), "product", p, "list")
		return err
	}
	app := func(name string) error {
		_, err := cluster.NewKeys(name)
		return err
	}
	_, zero := cluster.Keys{}.Entity(cluster.FirstGeneration(), "product", "42", "detail")
	for name, c := range map[string]struct {
		err  error
		want string
	}{
		"zero keys":       {zero, "NewKeys"},
		"app empty":       {app(""), `app ""`},
		"app upper":       {app("Shop"), `app "Shop" is not allowed: want a lower-case letter, then up to 31`},
		"app digit":       {app("1shop"), `app "1shop"`},
		"app dot":         {app("sh.op"), `app "sh.op"`},
		"app long":        {app(strings.Repeat("a", 33)), "app "},
		"namespace empty": {entity("", "42", "detail"), `namespace ""`},
		"namespace brace": {entity("a{", "42", "detail"), `namespace "a{" is not allowed: want a lower-case letter, then up to 63`},
		"namespace long":  {entity(strings.Repeat("a", 65), "42", "detail"), "namespace "},
		"view empty":      {entity("product", "42", ""), `view ""`},
		"view colon":      {entity("product", "42", "a:lease"), `view "a:lease"`},
		"id empty":        {entity("product", "", "detail"), "id is empty: want 1 to 512 bytes"},
		"id long":         {entity("product", strings.Repeat("x", 513), "detail"), "513 bytes: want at most 512"},
		"params many":     {query(tooMany), "65 parameters: want at most 64"},
		"params big":      {query(cluster.Params{"q": strings.Repeat("x", cluster.MaxParamsBytes)}), "16385 bytes of names and values: want at most 16384"},
	} {
		if c.err == nil || !strings.Contains(c.err.Error(), c.want) || len(c.err.Error()) > 300 {
			t.Errorf("%s: error %q, want one of at most 300 bytes with %q", name, c.err, c.want)
		}
	}
	for _, name := range []string{"a", "a0_.-", strings.Repeat("z", 64)} {
		if err := cluster.CheckNamespace(name); err != nil {
			t.Error(err)
		}
		if err := cluster.CheckView(name); err != nil {
			t.Error(err)
		}
	}
	if err := entity("product", strings.Repeat("\xff", cluster.MaxIDBytes), "detail"); err != nil {
		t.Error(err)
	}
}

func TestParseKeyRefusesWhatKeysNeverWrites(t *testing.T) {
	for _, key := range []string{
		"",
		"shop",
		"shop:v1.1:{product:42}",
		"shop:v1.1:{product:42}:",
		"shop:v1.1:{product:42}:lease:lease:lease",
		"shop:v1.1:{product:42}:detail:",
		"shop:v1.1:{product:42}:detail:other",
		"shop:v1.01:{product:42}:detail",
		"shop:v+1.1:{product:42}:detail",
		"shop:v1.4294967296:{product:42}:detail",
		"shop:v1:{product:42}:detail", // as builds wrote it that had no generations
		"shop:v1.1.1:{product:42}:detail",
		"shop:v:{product:42}:detail",
		"Shop:v1.1:{product:42}:detail",
		"shop:v1.1:{product:}:detail",
		"shop:v1.1:{product}:detail",
		"shop:v1.1:{Product:42}:detail",
		"shop:v1.1:{product:%}:detail",
		"shop:v1.1:{product:%7}:detail",
		"shop:v1.1:{product:%7b}:detail", // lower-case hex
		"shop:v1.1:{product:%41}:detail", // an A needs no escape
		"shop:v1.1:{product:%zz}:detail",
		"shop:v1.1:{product:a b}:detail",
		"shop:v1.1:{product:a{b}:detail",
		"shop:v1.1:{product:a:b}:detail",
		"shop:v1.1:{product?}:detail",
		"shop:v1.1:{product?52B9F9C05DA47EA0A73D7C23EC47AE7A}:list",
		"shop:v1.1:{product?52b9f9c05da47ea0a73d7c23ec47ae7}:list",
		" shop:v1.1:{product:42}:detail",
	} {
		if p, err := cluster.ParseKey(key); err == nil {
			t.Errorf("ParseKey(%q) = %+v, want an error", key, p)
		}
	}
}

// Every key can be taken apart into exactly what it was made of, so no two things share a key; and its
// slot is the slot of its entity alone.
func FuzzKeysAreInjective(f *testing.F) {
	f.Add("shop", uint64(3), "product", "42", "detail")
	f.Add("s-1", uint64(0), "a.b_c-d", "}:x{%:?\x00\xff \u0080é", "lease")
	f.Fuzz(func(t *testing.T, app string, number uint64, namespace, id, view string) {
		generation := cluster.Generation{Global: uint32(number >> 32), Namespace: uint32(number)}
		if generation.Packed() != number {
			t.Fatalf("%v packed is %d, want %d", generation, generation.Packed(), number)
		}
		keys, err := cluster.NewKeys(app)
		if err != nil {
			t.Skip()
		}
		key, err := keys.Entity(generation, namespace, id, view)
		if err != nil {
			bad := cluster.CheckNamespace(namespace) != nil || cluster.CheckView(view) != nil || id == "" || len(id) > cluster.MaxIDBytes
			if !bad {
				t.Fatalf("refused good parts: %v", err)
			}
			return
		}
		want := cluster.KeyParts{App: app, Generation: generation, Namespace: namespace, ID: id, View: view}
		mustParse(t, key, want)
		mustParse(t, cluster.Lease(key), leaseOf(want))
		p := cluster.Params{namespace: id}
		query, err := keys.Query(generation, namespace, p, view)
		if err != nil {
			t.Fatal(err)
		}
		mustParse(t, query, cluster.KeyParts{App: app, Generation: generation, Namespace: namespace, Query: p.Hash(), View: view})

		for _, key := range []string{key, query} {
			open, end := strings.IndexByte(key, '{'), strings.IndexByte(key, '}')
			if strings.Count(key, "{") != 1 || strings.Count(key, "}") != 1 || open > end {
				t.Fatalf("%q has not exactly one hash tag", key)
			}
			tag := key[open+1 : end]
			if cluster.Slot(key) != cluster.Slot(tag) || cluster.Slot(cluster.Lease(key)) != cluster.Slot(tag) {
				t.Fatalf("%q or its lease is not on the slot of %q", key, tag)
			}
			for i := range len(key) {
				if key[i] <= ' ' || key[i] == 0x7f {
					t.Fatalf("%q has a space or control byte", key)
				}
			}
		}
	})
}

func leaseOf(p cluster.KeyParts) cluster.KeyParts {
	p.Lease = true
	return p
}

func mustParse(t *testing.T, key string, want cluster.KeyParts) {
	t.Helper()
	got, err := cluster.ParseKey(key)
	if err != nil || got != want {
		t.Fatalf("ParseKey(%q) = %+v, %v; want %+v", key, got, err, want)
	}
}

// Whatever ParseKey accepts is exactly what the parts make again.
func FuzzParseKey(f *testing.F) {
	f.Add("shop:v1.3:{product:42}:detail")
	f.Add("shop:v1.3:{product:a%7Bb%7D%3A50%25%20größe}:detail:lease")
	f.Add("shop:v1.3:{product?dda0010144ea911178001e2f4391ec51}:lease:lease")
	f.Fuzz(func(t *testing.T, key string) {
		p, err := cluster.ParseKey(key)
		if err != nil {
			return
		}
		keys, err := cluster.NewKeys(p.App)
		if err != nil {
			t.Fatal(err)
		}
		again := key // of a query, whose parameters are not in the key
		if p.Query == "" {
			if again, err = keys.Entity(p.Generation, p.Namespace, p.ID, p.View); err != nil {
				t.Fatal(err)
			}
			if p.Lease {
				again = cluster.Lease(again)
			}
		}
		if again != key {
			t.Fatalf("%q has the parts %+v, which make %q", key, p, again)
		}
	})
}

func TestKeysAllocateOnlyTheirResult(t *testing.T) {
	keys := shopKeys(t)
	nasty := strings.Repeat("{\xff}", cluster.MaxIDBytes/3)
	p := cluster.Params{"page": "2", "category": "7", "sort": "price", "q": "größe"}
	third := cluster.Generation{Global: 1, Namespace: 3}
	entity, err := keys.Entity(third, "product", "42", "detail")
	if err != nil {
		t.Fatal(err)
	}
	var written string // kept, so that the compiler cannot leave the writing out
	for name, write := range map[string]func(){
		"plain":    func() { written, _ = keys.Entity(third, "product", "42", "detail") },
		"escaped":  func() { written, _ = keys.Entity(third, "product", nasty, "detail") },
		"query":    func() { written, _ = keys.Query(third, "product", p, "list") },
		"no query": func() { written, _ = keys.Query(third, "product", nil, "list") },
		"hash":     func() { written = p.Hash() },
		"lease":    func() { written = cluster.Lease(entity) },
	} {
		if n := testing.AllocsPerRun(100, write); n != 1 || written == "" {
			t.Errorf("%s: %v allocations, want 1", name, n)
		}
	}
	if n := testing.AllocsPerRun(100, func() { cluster.Slot(entity) }); n != 0 {
		t.Errorf("Slot: %v allocations, want 0", n)
	}
}

func BenchmarkEntity(b *testing.B) {
	keys := shopKeys(b)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := keys.Entity(cluster.FirstGeneration(), "product", "0f8fad5b-d9cb-469f-a165-70867728950e", "detail"); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkQuery(b *testing.B) {
	keys := shopKeys(b)
	p := cluster.Params{"page": "2", "category": "7", "sort": "price"}
	b.ReportAllocs()
	for b.Loop() {
		if _, err := keys.Query(cluster.FirstGeneration(), "product", p, "list"); err != nil {
			b.Fatal(err)
		}
	}
}
