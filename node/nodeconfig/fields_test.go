package nodeconfig

import (
	"errors"
	"go/ast"
	"go/parser"
	"go/token"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/freshet-cache/freshet/node"
)

// code are the fields of a configuration that no file can say.
var code = []string{
	"Logger", "Registry", "Redis.Dial", "Redis.TLS", "NATS.TLS", "Caches",
	"CacheSettings.Refresh", "CacheSettings.Compress", "CacheSettings.WarmUp.Peers", // pointers, of which the keys are below
}

// Every field of a node's configuration, and of the settings of a cache, has its key.
func TestEveryFieldHasAKey(t *testing.T) {
	var c node.Config
	s := New("X_")
	s.Node(&c)
	bound := map[any]string{}
	for _, k := range s.keys {
		bound[k.value.variable] = k.name
	}
	var cache cacheKeys
	cache.declare(func(suffix, _ string, v Value) { bound[v.variable] = suffix })
	var visit func(path string, v reflect.Value)
	visit = func(path string, v reflect.Value) {
		for i := range v.NumField() {
			name := strings.TrimPrefix(path+"."+v.Type().Field(i).Name, ".")
			field := v.Field(i)
			switch {
			case slices.Contains(code, name):
			case field.Kind() == reflect.Struct:
				visit(name, field)
			case bound[field.Addr().Interface()] == "":
				t.Errorf("%s has no key: declare one, or say in this test that it is code", name)
			default:
				key := bound[field.Addr().Interface()]
				if want := snake(strings.TrimPrefix(name, "CacheSettings.")); key != want && key != want+"_file" {
					t.Errorf("%s has the key %s, want %s", name, key, want)
				}
			}
		}
	}
	visit("", reflect.ValueOf(&c).Elem())
	visit("CacheSettings", reflect.ValueOf(&cache.CacheSettings).Elem())
	visit("Refresh", reflect.ValueOf(&cache.refresh).Elem())
	visit("Compress", reflect.ValueOf(&cache.compress).Elem())
}

// A key's default is the one that the comment of its field names.
func TestDefaultsAreThoseOfTheFields(t *testing.T) {
	comments := map[string]string{} // Postgres.MaxConns -> its comment
	for file, structs := range map[string]map[string]string{
		"../config.go":      {"Config": "", "PostgresConfig": "Postgres.", "RedisConfig": "Redis."},
		"../writebehind.go": {"WriteBehind": "WriteBehind."},
		"../verify.go":      {"VerifyConfig": "Verify."},
	} {
		parsed, err := parser.ParseFile(token.NewFileSet(), file, nil, parser.ParseComments)
		if err != nil {
			t.Fatal(err)
		}
		ast.Inspect(parsed, func(n ast.Node) bool {
			spec, ok := n.(*ast.TypeSpec)
			if !ok {
				return true
			}
			prefix, wanted := structs[spec.Name.Name]
			fields, ok := spec.Type.(*ast.StructType)
			if !ok || !wanted {
				return true
			}
			text := ""
			for _, f := range fields.Fields.List {
				if f.Doc != nil {
					text = f.Doc.Text()
				}
				for _, name := range f.Names {
					comments[snake(prefix+name.Name)] = strings.Join(strings.Fields(text), " ")
				}
			}
			return false
		})
	}
	s := New("X_")
	s.Node(&node.Config{})
	preset := regexp.MustCompile(`0 = ([0-9,]+(?: (?:ms|s|min|h|MiB))?)(?: messages)?(?: and ([0-9,]+ (?:ms|s|MiB)))?`)
	checked := 0
	for _, k := range s.keys {
		if k.value.preset == "" || strings.HasPrefix(k.name, "max_stale") {
			continue
		}
		said := preset.FindStringSubmatch(comments[k.name])
		if said == nil {
			t.Errorf("the comment of %s names no default: %q", k.name, comments[k.name])
			continue
		}
		text := said[1]
		if strings.HasSuffix(k.name, ".max_bytes") || strings.HasSuffix(k.name, ".max_retry") { // the second of two
			text = said[2]
		}
		text = strings.NewReplacer(" min", "m", " ", "", ",", "").Replace(text)
		if text != k.value.preset {
			t.Errorf("the default of %s is %s here, and %s in the comment %q", k.name, k.value.preset, text, comments[k.name])
		}
		checked++
	}
	if checked < 25 {
		t.Errorf("%d defaults were compared", checked)
	}
}

// The bounds of a key are those of the node: what is within is accepted there, and what is without is not.
func TestBoundsAreThoseOfTheNode(t *testing.T) {
	boundary := regexp.MustCompile(`^(\S+) to (\S+?)(,|$)`)
	checked := 0
	check := func(k string, v Value, refused func() bool) {
		t.Helper()
		bounds := boundary.FindStringSubmatch(v.bounds)
		if bounds == nil || k == "postgres.relay_from" || strings.HasSuffix(k, "max_entries") || strings.HasSuffix(k, "max_bytes") && !strings.HasPrefix(k, "write") {
			return
		}
		for i, text := range bounds[1:3] {
			if err := v.set(text); err != nil {
				t.Fatalf("%s = %s: %v", k, text, err)
			}
			if refused() {
				t.Errorf("the node refuses %s = %s", k, text)
			}
			step := int64(2*i - 1)
			switch p := v.variable.(type) {
			case *time.Duration:
				*p += time.Duration(step)
				if *p <= 0 {
					*p = -2 // 0 is the default
				}
			case *int:
				if *p += int(step); *p == 0 {
					*p = -2
				}
			case *int64:
				if *p += step; *p == 0 {
					*p = -2
				}
			case *float64:
				if *p += float64(step); k == "refresh.ahead" && i == 1 {
					*p = 1
				}
			default:
				t.Fatalf("%s is a %T", k, p)
			}
			lower := i == 0 && (k == "write_behind.flushers" || k == "max_stale" || strings.HasSuffix(v.bounds, "none")) // below is a word's
			if !lower && !refused() {
				t.Errorf("the node accepts more than %s = %s", k, text)
			}
		}
		checked++
	}
	of := func(name string, err error) bool {
		return slices.ContainsFunc(flatten(err), func(one error) bool {
			e, ok := errors.AsType[*node.ConfigError](one)
			return ok && snake(e.Field) == name && !strings.Contains(e.Want, "above")
		})
	}
	for i := range New("X_").withNode(&node.Config{}).keys {
		var c node.Config
		k := New("X_").withNode(&c).keys[i]
		check(k.name, k.value, func() bool { return of(k.name, c.Validate()) })
	}
	suffixes := New("X_").withNode(&node.Config{}).families[0].suffixes
	for _, suffix := range suffixes {
		c := node.Config{Postgres: node.PostgresConfig{LoadTimeout: 10 * time.Minute}}
		var keys cacheKeys
		keys.declare(func(name, _ string, v Value) {
			if name != suffix {
				return
			}
			check(name, v, func() bool {
				c.Caches = map[string]node.CacheSettings{"x": keys.settings(func(one string) bool { return one == suffix })}
				return slices.ContainsFunc(flatten(c.Validate()), func(one error) bool {
					e, ok := errors.AsType[*node.ConfigError](one)
					return ok && e.Field == "Caches.x" && !strings.Contains(e.Want, "above Config")
				})
			})
		})
	}
	if checked < 40 {
		t.Errorf("the bounds of %d keys were checked", checked)
	}
}

func (s *Settings) withNode(c *node.Config) *Settings {
	s.Node(c)
	return s
}

// No two keys have one variable.
func TestVariablesAreUnique(t *testing.T) {
	s := New("X_").withNode(&node.Config{})
	if err := s.member(s.families[0], "product/page"); err != nil {
		t.Fatal(err)
	}
	of := map[string]string{}
	for _, k := range s.keys {
		v := s.variable(k.name)
		if of[v] != "" {
			t.Errorf("%s is the variable of %s and of %s", v, of[v], k.name)
		}
		of[v] = k.name
	}
	if of["X_CACHES__PRODUCT__PAGE__WARM_UP_LIMIT"] != "caches.product/page.warm_up.limit" || of["X_REDIS_TLS_CA_FILE"] != "redis.tls.ca_file" {
		t.Errorf("the variables are %v", of)
	}
}
