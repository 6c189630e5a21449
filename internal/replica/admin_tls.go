package replica

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"time"
)

// enabled reports whether the port speaks TLS.
func (t AdminTLS) enabled() bool { return t != AdminTLS{} }

// certificatesEvery bounds how often files are read for new connections.
const certificatesEvery = time.Second

// certificates are what the files held when they could last be used.
type certificates struct {
	files AdminTLS
	log   *slog.Logger

	mu     sync.Mutex
	looked time.Time
	held   [3][]byte   // what the files held then, whether or not it could be used
	config *tls.Config // of new connections
}

// newCertificates reads the files, which must be usable.
func newCertificates(files AdminTLS, log *slog.Logger) (*certificates, error) {
	held, err := files.read()
	if err != nil {
		return nil, err
	}
	config, err := serverConfig(held)
	if err != nil {
		return nil, err
	}
	return &certificates{files: files, log: log, looked: time.Now(), held: held, config: config}, nil
}

// server is the configuration of the port: each connection gets the one that is current then.
func (c *certificates) server() *tls.Config {
	return &tls.Config{
		MinVersion:         tls.VersionTLS13,
		GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config, error) { return c.current(), nil },
	}
}

func (c *certificates) current() *tls.Config {
	c.mu.Lock()
	defer c.mu.Unlock()
	if time.Since(c.looked) < certificatesEvery {
		return c.config
	}
	c.looked = time.Now()
	held, err := c.files.read()
	if err == nil && sameFiles(held, c.held) {
		return c.config
	}
	var config *tls.Config
	if err == nil {
		c.held = held
		config, err = serverConfig(held)
	}
	if err != nil {
		c.log.Error("the admin port's certificates have changed and cannot be used; those before stay", "error", err)
		return c.config
	}
	c.log.Info("the admin port has new certificates")
	c.config = config
	return config
}

func sameFiles(a, b [3][]byte) bool {
	for i := range a {
		if !bytes.Equal(a[i], b[i]) {
			return false
		}
	}
	return true
}

// read reads the files in the order of their fields.
func (t AdminTLS) read() (held [3][]byte, err error) {
	for i, f := range []struct{ field, path string }{{"CertFile", t.CertFile}, {"KeyFile", t.KeyFile}, {"ClientCAFile", t.ClientCAFile}} {
		if f.path == "" {
			continue
		}
		if held[i], err = os.ReadFile(f.path); err != nil {
			return held, fmt.Errorf("AdminTLS.%s: %w", f.field, err)
		}
	}
	return held, nil
}

// serverConfig is made of what the files hold.
func serverConfig(held [3][]byte) (*tls.Config, error) {
	certificate, err := tls.X509KeyPair(held[0], held[1])
	if err != nil {
		return nil, fmt.Errorf("AdminTLS.CertFile and KeyFile: %w", err) // without what they hold
	}
	config := &tls.Config{
		MinVersion:   tls.VersionTLS13,
		Certificates: []tls.Certificate{certificate},
		// A resumed session would stand for a certificate that was checked against authorities of before.
		SessionTicketsDisabled: true,
	}
	if held[2] != nil {
		config.ClientCAs = x509.NewCertPool()
		if !config.ClientCAs.AppendCertsFromPEM(held[2]) {
			return nil, errors.New("AdminTLS.ClientCAFile: no certificate in it; want PEM")
		}
		config.ClientAuth = tls.VerifyClientCertIfGiven
	}
	return config, nil
}
