package replica_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"io"
	"log/slog"
	"math/big"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/freshet-cache/freshet/internal/replica"
	"github.com/freshet-cache/freshet/node"
)

// authority issues certificates.
type authority struct {
	t      *testing.T
	own    *x509.Certificate
	key    *ecdsa.PrivateKey
	serial int64
}

func newAuthority(t *testing.T, name string) *authority {
	t.Helper()
	a := &authority{t: t}
	template := x509.Certificate{
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
		Subject: pkix.Name{CommonName: name}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), SerialNumber: big.NewInt(1),
	}
	a.own, a.key = a.sign(template, nil)
	return a
}

func (a *authority) sign(template x509.Certificate, by *authority) (*x509.Certificate, *ecdsa.PrivateKey) {
	a.t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		a.t.Fatal(err)
	}
	parent, signer := &template, key
	if by != nil {
		parent, signer = by.own, by.key
	}
	der, err := x509.CreateCertificate(rand.Reader, &template, parent, key.Public(), signer)
	if err != nil {
		a.t.Fatal(err)
	}
	c, err := x509.ParseCertificate(der)
	if err != nil {
		a.t.Fatal(err)
	}
	return c, key
}

// issue is a certificate for 127.0.0.1 and for clients, until then.
func (a *authority) issue(name string, until time.Time) tls.Certificate {
	a.t.Helper()
	a.serial++
	c, key := a.sign(x509.Certificate{
		Subject: pkix.Name{CommonName: name}, SerialNumber: big.NewInt(1 + a.serial), IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: until,
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}, a)
	return tls.Certificate{Certificate: [][]byte{c.Raw}, PrivateKey: key, Leaf: c}
}

// write writes a file whole, as a rotation by renaming does.
func (a *authority) write(path, kind string, der []byte) {
	a.t.Helper()
	if err := os.WriteFile(path+".new", pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600); err != nil {
		a.t.Fatal(err)
	}
	if err := os.Rename(path+".new", path); err != nil {
		a.t.Fatal(err)
	}
}

// install writes the certificate and its key.
func (a *authority) install(files replica.AdminTLS, c tls.Certificate) {
	a.t.Helper()
	key, err := x509.MarshalPKCS8PrivateKey(c.PrivateKey)
	if err != nil {
		a.t.Fatal(err)
	}
	a.write(files.CertFile, "CERTIFICATE", c.Certificate[0])
	a.write(files.KeyFile, "PRIVATE KEY", key)
}

// lockedText is what was logged.
type lockedText struct {
	mu   sync.Mutex
	text strings.Builder
}

func (l *lockedText) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(p)
}

func (l *lockedText) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
}

func TestAdminTLS(t *testing.T) {
	folder := t.TempDir()
	files := replica.AdminTLS{
		CertFile: filepath.Join(folder, "tls.crt"), KeyFile: filepath.Join(folder, "tls.key"), ClientCAFile: filepath.Join(folder, "ca.crt"),
	}
	soon := time.Now().Add(time.Hour)
	ours, others := newAuthority(t, "ours"), newAuthority(t, "others")
	ours.install(files, ours.issue("first", soon))
	ours.write(files.ClientCAFile, "CERTIFICATE", ours.own.Raw)
	said := &lockedText{}
	u := run(t, replica.Config{
		Node: node.Config{App: "admintls", Postgres: node.PostgresConfig{DSN: "postgres://x@127.0.0.1:1/x?sslmode=disable"}}, StartTimeout: time.Millisecond, AdminTLS: files,
		Logger: slog.New(slog.NewTextHandler(said, nil)),
	})

	// ask does one request on a connection of its own, and returns the status and the server's name.
	ask := func(method, path string, trusted *authority, own *tls.Certificate) (int, string, error) {
		config := &tls.Config{RootCAs: x509.NewCertPool()}
		config.RootCAs.AddCert(trusted.own)
		if own != nil {
			// Sent whatever the server asks for: a client that has it asks for nothing else.
			config.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return own, nil }
		}
		client := http.Client{Transport: &http.Transport{TLSClientConfig: config, DisableKeepAlives: true}, Timeout: 20 * time.Second}
		req, err := http.NewRequestWithContext(t.Context(), method, "https://"+u.Admin()+path, nil)
		if err != nil {
			return 0, "", err
		}
		resp, err := client.Do(req)
		if err != nil {
			return 0, "", err
		}
		defer resp.Body.Close()
		_, err = io.Copy(io.Discard, resp.Body)
		return resp.StatusCode, resp.TLS.PeerCertificates[0].Subject.CommonName, err
	}
	const reset = "/admin/v1/summary/reset"
	eventually(t, "started", func() bool {
		code, _, err := ask(http.MethodGet, "/startupz", ours, nil)
		return err == nil && code == 200
	})

	// Without a certificate: what only reads is open, the rest is not.
	for path, want := range map[string]int{"/readyz": 200, "/livez": 200, "/metrics": 200, "/admin/v1/stats": 200} {
		if code, name, err := ask(http.MethodGet, path, ours, nil); code != want || name != "first" || err != nil {
			t.Errorf("GET %s without a certificate: %d from %q, %v, want %d", path, code, name, err, want)
		}
	}
	if code, _, err := ask(http.MethodPost, reset, ours, nil); code != http.StatusUnauthorized || err != nil {
		t.Errorf("a reset without a certificate: %d, %v, want 401", code, err)
	}
	if resp, err := http.Get("http://" + u.Admin() + "/readyz"); err == nil { // answered in plain text that it wants TLS, or cut off
		resp.Body.Close()
		if resp.StatusCode == http.StatusOK {
			t.Error("it speaks plain HTTP")
		}
	}
	if c, err := tls.Dial("tcp", u.Admin(), &tls.Config{InsecureSkipVerify: true, MaxVersion: tls.VersionTLS12}); err == nil { // nothing but the version is of interest
		c.Close()
		t.Error("it speaks TLS 1.2")
	}

	// With one.
	good, foreign, expired := ours.issue("operator", soon), others.issue("operator", soon), ours.issue("operator", time.Now().Add(-time.Minute))
	if code, _, err := ask(http.MethodPost, reset, ours, &good); code != 200 || err != nil {
		t.Errorf("a reset with a certificate: %d, %v", code, err)
	}
	for name, c := range map[string]tls.Certificate{"of another authority": foreign, "that has expired": expired} {
		for method, path := range map[string]string{http.MethodPost: reset, http.MethodGet: "/readyz"} {
			if code, _, err := ask(method, path, ours, &c); err == nil {
				t.Errorf("%s %s with a certificate %s: %d, want a refused connection", method, path, name, code)
			}
		}
	}

	// The certificates change hands: the port's, and whose clients count. Half of a change changes nothing.
	renewed := others.issue("second", soon)
	others.write(files.CertFile, "CERTIFICATE", renewed.Certificate[0])
	eventually(t, "half a change is noticed", func() bool {
		if code, name, err := ask(http.MethodPost, reset, ours, &good); code != 200 || name != "first" || err != nil {
			t.Errorf("with a certificate that does not fit its key: %d from %q, %v, want what was before", code, name, err)
		}
		return strings.Contains(said.String(), "cannot be used")
	})
	others.install(files, renewed)
	others.write(files.ClientCAFile, "CERTIFICATE", others.own.Raw)
	eventually(t, "the new certificate is used", func() bool {
		code, name, err := ask(http.MethodPost, reset, others, &foreign)
		return code == 200 && name == "second" && err == nil
	})
	if code, _, err := ask(http.MethodPost, reset, others, &good); err == nil {
		t.Errorf("a certificate of the authority before: %d, want a refused connection", code)
	}
}

func TestAdminTLSFiles(t *testing.T) {
	folder := t.TempDir()
	files := replica.AdminTLS{CertFile: filepath.Join(folder, "tls.crt"), KeyFile: filepath.Join(folder, "tls.key"), ClientCAFile: filepath.Join(folder, "ca.crt")}
	c := replica.Config{Node: node.Config{App: "files", Postgres: node.PostgresConfig{DSN: "postgres://x"}}, Listen: "127.0.0.1:0", Admin: "127.0.0.1:0", AdminTLS: files}
	fails := func(want string) {
		t.Helper()
		if r, err := replica.Listen(t.Context(), c); err == nil {
			r.Close()
			t.Errorf("it listens, want %q", want)
		} else if !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want %q", err, want)
		}
	}
	fails("AdminTLS.CertFile: open ")
	a := newAuthority(t, "a")
	a.install(files, a.issue("x", time.Now().Add(time.Hour)))
	fails("AdminTLS.ClientCAFile: open ")
	if err := os.WriteFile(files.ClientCAFile, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	fails("AdminTLS.ClientCAFile: no certificate in it")
	a.write(files.ClientCAFile, "CERTIFICATE", a.own.Raw)
	a.write(files.CertFile, "CERTIFICATE", a.own.Raw)
	fails("AdminTLS.CertFile and KeyFile: ")
	c.AdminTLS = replica.AdminTLS{ClientCAFile: "x"}
	fails("given without admin.tls.cert_file")
}
