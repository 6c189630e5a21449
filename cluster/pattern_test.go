package cluster_test

import (
	"strings"
	"testing"

	"github.com/freshet-cache/freshet/cluster"
)

func TestPattern(t *testing.T) {
	for pattern, ids := range map[string]struct{ in, out []string }{
		"draft-*":  {[]string{"draft-", "draft-1", "draft-\n{}"}, []string{"draft", "a draft-1", ""}},
		"*-draft":  {[]string{"-draft", "1-draft"}, []string{"1-drafts"}},
		"a?c":      {[]string{"abc", "a:c", "aéc", "a🙂c"}, []string{"ac", "abbc"}},
		`a\*\?\\c`: {[]string{`a*?\c`}, []string{`abbc`, `a*?c`}},
		"[ab]":     {[]string{"[ab]"}, []string{"a", "b"}},
		"100%*":    {[]string{"100%", "100% wool"}, []string{"100"}},
		"**":       {[]string{"a", ""}, nil},
	} {
		p, err := cluster.ParsePattern(pattern)
		if err != nil {
			t.Error(err)
			continue
		}
		for _, id := range ids.in {
			if !p.Match(id) {
				t.Errorf("%q does not match %q", pattern, id)
			}
		}
		for _, id := range ids.out {
			if p.Match(id) {
				t.Errorf("%q matches %q", pattern, id)
			}
		}
	}
	prefix, err := cluster.PrefixPattern("a*")
	if err != nil || !prefix.Match("a*b") || prefix.Match("ab") {
		t.Errorf("the prefix a* has a*b: %t, and ab: %t; %v", prefix.Match("a*b"), prefix.Match("ab"), err)
	}
	if !(cluster.Pattern{}).Match("x") {
		t.Error("the zero Pattern is not that of all")
	}
	for text, want := range map[string]string{
		"": "1 to 512 bytes", "\xff": "UTF-8", `a\`: `ends with \`, "*a*a*a*a*a*a*a*a*": "at most 8 asterisks", strings.Repeat("x", 513): "1 to 512 bytes",
	} {
		if _, err := cluster.ParsePattern(text); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%.20q: %v, want an error with %q", text, err, want)
		}
	}
	if _, err := cluster.PrefixPattern(""); err == nil {
		t.Error("an empty prefix is taken")
	}
}

func TestMatching(t *testing.T) {
	keys := shopKeys(t)
	odd, err := cluster.PrefixPattern("a*[b]é {")
	if err != nil {
		t.Fatal(err)
	}
	several, err := cluster.ParsePattern("x??*y")
	if err != nil {
		t.Fatal(err)
	}
	for want, got := range map[string]string{
		"shop:v*":                              keys.Matching("", cluster.Pattern{}),
		"shop:v*:{product[:?]*":                keys.Matching("product", cluster.Pattern{}),
		"shop:v*:{product:x*y}:*":              keys.Matching("product", several),
		`shop:v*:{product:a\*\[b\]é%20%7B*}:*`: keys.Matching("product", odd),
	} {
		if got != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
}
