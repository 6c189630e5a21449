package admin_test

import (
	"bytes"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/getkin/kin-openapi/openapi3"
	"github.com/lib/pq"

	"github.com/freshet-cache/freshet/node/admin"
)

func TestDescriptionHasEveryRouteAndNoOther(t *testing.T) {
	doc, err := openapi3.NewLoader().LoadFromFile("openapi.yaml")
	if err != nil {
		t.Fatal(err)
	}
	if err := doc.Validate(t.Context()); err != nil {
		t.Error(err)
	}
	var described, served []string
	for path, entry := range doc.Paths.Map() {
		for method, operation := range entry.Operations() {
			described = append(described, fmt.Sprint(method, " ", path, " guarded: ", operation.Security != nil))
		}
	}
	for _, r := range admin.Routes() {
		served = append(served, fmt.Sprint(r.Method, " ", r.Path, " guarded: ", r.Guarded))
	}
	slices.Sort(described)
	if slices.Sort(served); !slices.Equal(described, served) {
		t.Errorf("described: %q\nserved:    %q", described, served)
	}
}

func TestDescriptionIsServed(t *testing.T) {
	a, err := admin.New(admin.Config{})
	if err != nil {
		t.Fatal(err)
	}
	w := httptest.NewRecorder()
	a.ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/admin/v1/openapi.yaml", nil))
	want, err := os.ReadFile("openapi.yaml")
	if err != nil {
		t.Fatal(err)
	}
	if w.Code != http.StatusOK || w.Body.String() != string(want) {
		t.Errorf("got %d, %d bytes, want the file of %d bytes", w.Code, w.Body.Len(), len(want))
	}
}

// Every route that changes something is closed without a credential, by a wrong one, and where none is configured.
func TestCredentials(t *testing.T) {
	file := filepath.Join(t.TempDir(), "token")
	if err := os.WriteFile(file, []byte(" "+token+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	closed, err1 := admin.New(admin.Config{})
	byToken, err2 := admin.New(admin.Config{Token: token})
	byFile, err3 := admin.New(admin.Config{TokenFile: file})
	for _, err := range []error{err1, err2, err3} {
		if err != nil {
			t.Fatal(err)
		}
	}
	try := func(a *admin.API, r admin.Route, credential string) int {
		request := httptest.NewRequest(r.Method, strings.NewReplacer("{", "", "}", "").Replace(r.Path), nil)
		if credential != "" {
			request.Header.Set("Authorization", credential)
		}
		w := httptest.NewRecorder()
		a.ServeHTTP(w, request)
		return w.Code
	}
	guarded := 0
	for _, r := range admin.Routes() {
		if !r.Guarded {
			continue
		}
		guarded++
		for _, a := range []*admin.API{byToken, byFile} {
			for _, wrong := range []string{"", "Bearer", "Bearer ", "Bearer " + token[1:], "Bearer " + token + "x", "Basic " + token, "bearer" + token} {
				if code := try(a, r, wrong); code != http.StatusUnauthorized {
					t.Errorf("%s %s with %q: %d, want 401", r.Method, r.Path, wrong, code)
				}
			}
			if code := try(a, r, "Bearer "+token); code == http.StatusUnauthorized || code == http.StatusForbidden {
				t.Errorf("%s %s with the token: %d", r.Method, r.Path, code)
			}
		}
		if code := try(closed, r, "Bearer "+token); code != http.StatusForbidden {
			t.Errorf("%s %s without a token configured: %d, want 403", r.Method, r.Path, code)
		}
	}
	if guarded == 0 {
		t.Fatal("no route asks for a credential")
	}
	other := strings.Repeat("another ", 8)
	if err := os.WriteFile(file, []byte(strings.ReplaceAll(other, " ", "-")), 0o600); err != nil {
		t.Fatal(err)
	}
	reset := admin.Route{Method: http.MethodPost, Path: "/admin/v1/summary/reset"}
	if code := try(byFile, reset, "Bearer "+token); code != http.StatusUnauthorized {
		t.Errorf("the old token after the file changed: %d, want 401", code)
	}
	if code := try(byFile, reset, "Bearer "+strings.ReplaceAll(other, " ", "-")); code == http.StatusUnauthorized {
		t.Error("the new token after the file changed: 401")
	}
	if err := os.Remove(file); err != nil {
		t.Fatal(err)
	}
	if code := try(byFile, reset, "Bearer "); code != http.StatusForbidden {
		t.Errorf("without the file: %d, want 403", code)
	}
}

func TestConfig(t *testing.T) {
	short := filepath.Join(t.TempDir(), "short")
	if err := os.WriteFile(short, []byte("short"), 0o600); err != nil {
		t.Fatal(err)
	}
	for want, c := range map[string]admin.Config{
		"Config.Token: a token of 5 bytes; want at least 32": {Token: "short"},
		"Config.Token and Config.TokenFile are both set":     {Token: token, TokenFile: short},
		"short: a token of 5 bytes; want at least 32":        {TokenFile: short},
		"no such file": {TokenFile: short + "er"},
		"a token with spaces, control or non-ASCII characters": {Token: strings.Repeat("a\n", 32)},
	} {
		if _, err := admin.New(c); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%+v: %v, want %q", c, err, want)
		}
	}
}

// What fails is logged by its class: texts of errors, and what code panics with, may hold ids and values.
func TestLogTellsNoText(t *testing.T) {
	var log bytes.Buffer
	a, err := admin.New(admin.Config{Logger: slog.New(slog.NewTextHandler(&log, nil))})
	if err != nil {
		t.Fatal(err)
	}
	request := httptest.NewRequest(http.MethodPost, "/admin/v1/invalidations", nil)
	failed, panicked := httptest.NewRecorder(), httptest.NewRecorder()
	a.Fail(failed, request, fmt.Errorf("write: %w", &pq.Error{Code: "23514", Message: "thing marked fails"}))
	a.Panic(panicked, request, "what is marked")
	if failed.Code != http.StatusBadGateway || panicked.Code != http.StatusBadGateway {
		t.Errorf("answered with %d and %d, want 502", failed.Code, panicked.Code)
	}
	text := log.String()
	for _, want := range []string{"request failed", "SQLSTATE 23514", "a request panicked", "panic=string", "admin_test"} {
		if !strings.Contains(text, want) {
			t.Errorf("%q is not in the log:\n%s", want, text)
		}
	}
	if all := text + failed.Body.String() + panicked.Body.String(); strings.Contains(all, "marked") {
		t.Errorf("the text of a failure is told:\n%s", all)
	}
}
