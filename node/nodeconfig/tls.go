package nodeconfig

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
)

// ClientTLS declares the keys of a section by which a client of the server speaks TLS; without them *p stays nil, which is plain TCP.
// Authorities are read once, the client's certificate for each connection, so that it can be changed.
func (s *Settings) ClientTLS(section, server string, p **tls.Config) {
	var enabled bool
	var authority, certificate, key, name string
	k := func(name string) string { return section + "." + name }
	s.Add(k("enabled"), "Whether connections to "+server+" are by TLS.", Bool(&enabled).Without("true if a key beside it is given"))
	s.Add(k("ca_file"), "Path of the certificates, in PEM, of the authorities that are trusted.", Text(&authority).Without("those of the system"))
	s.Add(k("cert_file"), "Path of the client's certificate, in PEM, with those between it and an authority. Read for each connection.", Text(&certificate))
	s.Add(k("key_file"), "Path of the key of that certificate, in PEM.", Text(&key))
	s.Add(k("server_name"), "Name that the server's certificate must have.", Text(&name).Without("the host of the address"))
	s.Check(func() error {
		if said := s.byName[k("enabled")].said; said != nil && !enabled {
			return nil
		}
		if !enabled && authority == "" && certificate == "" && key == "" && name == "" {
			return nil
		}
		c := &tls.Config{ServerName: name, MinVersion: tls.VersionTLS12}
		wrong := checkPair(k, certificate, key)
		if authority != "" {
			c.RootCAs = x509.NewCertPool()
			if text, err := readBounded(authority, maxFile); err != nil {
				wrong = errors.Join(wrong, &KeyError{k("ca_file"), err.Error()})
			} else if !c.RootCAs.AppendCertsFromPEM([]byte(text)) {
				wrong = errors.Join(wrong, &KeyError{k("ca_file"), authority + " holds no certificate in PEM"})
			}
		}
		if wrong != nil {
			return wrong
		}
		if certificate != "" {
			c.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
				pair, err := tls.LoadX509KeyPair(certificate, key)
				return &pair, err
			}
		}
		*p = c
		return nil
	})
}

// KeyPair declares the keys cert_file and key_file of a section, of a server's own certificate.
func (s *Settings) KeyPair(section, server string, certificate, key *string) {
	k := func(name string) string { return section + "." + name }
	s.Add(k("cert_file"), "Path of the certificate, in PEM, of "+server+"; with it, it speaks TLS.", Text(certificate))
	s.Add(k("key_file"), "Path of the key of that certificate, in PEM.", Text(key))
	s.Check(func() error { return checkPair(k, *certificate, *key) })
}

// checkPair reports what is wrong with a certificate and its key, if they are given.
func checkPair(k func(string) string, certificate, key string) error {
	switch {
	case certificate == "" && key == "":
		return nil
	case certificate == "":
		return &KeyError{k("key_file"), "given without " + k("cert_file")}
	case key == "":
		return &KeyError{k("cert_file"), "given without " + k("key_file")}
	}
	if _, err := tls.LoadX509KeyPair(certificate, key); err != nil {
		return &KeyError{k("cert_file"), err.Error()}
	}
	return nil
}
