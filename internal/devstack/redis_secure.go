package devstack

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"path/filepath"
	"time"
)

// secureSettings are those of a node that takes nothing but TLS, from clients that show a certificate of the
// stack's authority, and knows two users: the stack's own, as whom replicas follow their primaries, too, and
// the one of [Redis.Access], who may do what a cache needs and no more.
const secureSettings = `tls-port %%d
tls-cluster yes
tls-replication yes
tls-auth-clients yes
tls-cert-file "%[1]s/node.crt"
tls-key-file "%[1]s/node.key"
tls-ca-cert-file "%[1]s/authority.crt"
user default off
user stack on >%[2]s ~* &* +@all
user cache on >%[3]s ~t* -@all +@connection +get +set +del +unlink +eval +scan +info +cluster|info +cluster|slots +cluster|nodes
masteruser stack
masterauth %[2]s
`

// Access is what a client needs to be let in.
type Access struct {
	Username, Password string
	TLS                *tls.Config // nil = plain TCP
	// The paths of what is in TLS, in PEM: the authority's certificate, the client's and its key.
	AuthorityFile, CertFile, KeyFile string
}

// Access is that of applications. It is empty unless [Options.RedisSecure] was asked for.
func (r *Redis) Access() Access { return r.cache }

// secure makes an authority, certificates for nodes and clients, and passwords, and returns the nodes' settings.
func (r *Redis) secure() (settings string, err error) {
	dir, err := r.site.mkdir("redis-tls")
	if err != nil {
		return "", err
	}
	authority, err := issue("authority", nil)
	if err != nil {
		return "", err
	}
	node, err := issue("node", authority)
	if err != nil {
		return "", err
	}
	client, err := issue("client", authority)
	if err != nil {
		return "", err
	}
	for name, text := range map[string]string{"authority.crt": authority.text, "node.crt": node.text, "node.key": node.keyText, "client.crt": client.text, "client.key": client.keyText} {
		if err := r.site.write(filepath.Join(dir, name), text); err != nil {
			return "", err
		}
	}
	pair, err := tls.X509KeyPair([]byte(client.text), []byte(client.keyText))
	if err != nil {
		return "", fmt.Errorf("devstack: redis: %w", err)
	}
	roots := x509.NewCertPool()
	roots.AddCert(authority.certificate)
	config := &tls.Config{RootCAs: roots, Certificates: []tls.Certificate{pair}, MinVersion: tls.VersionTLS12}
	files := [3]string{filepath.Join(dir, "authority.crt"), filepath.Join(dir, "client.crt"), filepath.Join(dir, "client.key")}
	r.own = Access{"stack", rand.Text(), config, files[0], files[1], files[2]}
	r.cache = Access{"cache", rand.Text(), config, files[0], files[1], files[2]}
	return fmt.Sprintf(secureSettings, redisEscape.Replace(dir), r.own.Password, r.cache.Password), nil
}

// issued is a certificate with its key.
type issued struct {
	certificate   *x509.Certificate
	key           *ecdsa.PrivateKey
	text, keyText string // in PEM
}

// issue makes a certificate for the loopback address that lasts for a day; by nil, an authority's own.
func issue(name string, by *issued) (*issued, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("devstack: redis: %w", err)
	}
	c := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()),
		Subject:      pkix.Name{CommonName: name},
		NotBefore:    time.Now().Add(-time.Hour),
		NotAfter:     time.Now().Add(24 * time.Hour),
		IPAddresses:  []net.IP{net.ParseIP(loopback)},
		KeyUsage:     x509.KeyUsageDigitalSignature,
		ExtKeyUsage:  []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}, // nodes are clients of each other
	}
	if by == nil {
		c.IsCA, c.BasicConstraintsValid, c.KeyUsage = true, true, x509.KeyUsageCertSign
		by = &issued{certificate: c, key: key}
	}
	der, err := x509.CreateCertificate(rand.Reader, c, by.certificate, key.Public(), by.key)
	if err != nil {
		return nil, fmt.Errorf("devstack: redis: %w", err)
	}
	if c, err = x509.ParseCertificate(der); err != nil {
		return nil, fmt.Errorf("devstack: redis: %w", err)
	}
	secret, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, fmt.Errorf("devstack: redis: %w", err)
	}
	return &issued{
		certificate: c, key: key,
		text:    string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})),
		keyText: string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: secret})),
	}, nil
}
