package main

import (
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/freshet-cache/freshet/node/admin"
)

// operator is what every command has that sees or steers running replicas.
type operator struct {
	url           string
	tokenFile     string
	ca, cert, key string // files, for https
	timeout       time.Duration
	json          bool
}

// operate gives the command the flags of an operator and has it do its work with a client.
func operate(cmd *cobra.Command, do func(ctx context.Context, c admin.Client, out *output) error) *cobra.Command {
	o := operatorOf(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		client, err := o.client()
		if err != nil {
			return usage(err)
		}
		defer client.HTTP.CloseIdleConnections()
		return o.within(cmd.Context(), func(ctx context.Context) error {
			return do(ctx, client, &output{w: cmd.OutOrStdout(), json: o.json})
		})
	}
	return cmd
}

// operatorOf gives the command the flags of an operator.
func operatorOf(cmd *cobra.Command) *operator {
	o := &operator{}
	f := cmd.Flags()
	f.StringVar(&o.url, "admin-url", "http://127.0.0.1:9090", "admin port of any replica")
	f.StringVar(&o.tokenFile, "admin-token-file", "", "file with the admin token, for what changes something")
	f.StringVar(&o.ca, "admin-ca", "", "file with the certificates in PEM that https admin ports are trusted by (default: the system's)")
	f.StringVar(&o.cert, "admin-cert", "", "file with the client certificate in PEM for https admin ports; wants --admin-key")
	f.StringVar(&o.key, "admin-key", "", "file with its key")
	f.DurationVar(&o.timeout, "timeout", 15*time.Second, "longest wait for the answer")
	f.BoolVar(&o.json, "json", false, "print the answer as JSON")
	if cmd.Args == nil {
		cmd.Args = noArguments
	}
	return o
}

// within does something that must have an answer within --timeout.
func (o *operator) within(ctx context.Context, do func(ctx context.Context) error) error {
	ctx, cancel := context.WithTimeoutCause(ctx, o.timeout, fmt.Errorf("no answer from %s within --timeout %v", o.url, o.timeout))
	defer cancel()
	err := do(ctx)
	if cause := context.Cause(ctx); err != nil && cause != nil {
		return cause
	}
	return err
}

// client is that of the flags, or all that is wrong with them.
func (o *operator) client() (admin.Client, error) {
	var problems []error
	u, err := url.Parse(o.url)
	if err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https" {
		problems = append(problems, fmt.Errorf("--admin-url: %q; want http://host:port or https://host:port", o.url))
	}
	if o.timeout <= 0 {
		problems = append(problems, fmt.Errorf("--timeout: %v; want more than 0", o.timeout))
	}
	var token []byte
	if o.tokenFile != "" {
		if token, err = os.ReadFile(o.tokenFile); err != nil {
			problems = append(problems, fmt.Errorf("--admin-token-file: %w", err))
		}
	}
	secure, err := o.tls()
	problems = append(problems, err)
	client := &http.Client{Transport: &http.Transport{Proxy: http.ProxyFromEnvironment, TLSClientConfig: secure}}
	return admin.Client{URL: o.url, Token: strings.TrimSpace(string(token)), HTTP: client}, errors.Join(problems...)
}

// tls is what https wants to know; nil = nothing but what the system trusts.
func (o *operator) tls() (*tls.Config, error) {
	if o.ca == "" && o.cert == "" && o.key == "" {
		return nil, nil
	}
	if strings.HasPrefix(o.url, "http://") {
		return nil, errors.New("--admin-ca, --admin-cert and --admin-key are for https; --admin-url has http")
	}
	c := &tls.Config{MinVersion: tls.VersionTLS12}
	var problems []error
	if o.ca != "" {
		text, err := os.ReadFile(o.ca)
		c.RootCAs = x509.NewCertPool()
		if err != nil {
			problems = append(problems, fmt.Errorf("--admin-ca: %w", err))
		} else if !c.RootCAs.AppendCertsFromPEM(text) {
			problems = append(problems, fmt.Errorf("--admin-ca: %s has no certificate in PEM", o.ca))
		}
	}
	switch {
	case o.cert == "" && o.key == "":
	case o.cert == "" || o.key == "":
		problems = append(problems, errors.New("--admin-cert and --admin-key: want both or neither"))
	default:
		pair, err := tls.LoadX509KeyPair(o.cert, o.key)
		if err != nil {
			problems = append(problems, fmt.Errorf("--admin-cert, --admin-key: %w", err))
		}
		c.Certificates = []tls.Certificate{pair}
	}
	return c, errors.Join(problems...)
}

// output is where a command prints what it was answered: as a table, or as JSON if that is asked for.
type output struct {
	w    io.Writer
	json bool
}

// print shows v as JSON, or what table writes, whose cells end with tabs.
func (o *output) print(v any, table func(w io.Writer)) error {
	if o.json {
		encoder := json.NewEncoder(o.w)
		encoder.SetIndent("", "  ")
		encoder.SetEscapeHTML(false)
		return encoder.Encode(v)
	}
	w := tabwriter.NewWriter(o.w, 0, 0, 2, ' ', 0)
	table(w)
	return w.Flush()
}

// roundSeconds is a time for people, to the millisecond below a minute and to the second above.
func roundSeconds(s float64) time.Duration {
	d := time.Duration(s * float64(time.Second))
	if d < time.Minute {
		return d.Round(time.Millisecond)
	}
	return d.Round(time.Second)
}

// behind is the age of what is known of Postgres; the word for nothing is a day.
func behind(seconds float64) string {
	if seconds >= (24 * time.Hour).Seconds() {
		return "unknown"
	}
	return roundSeconds(seconds).String()
}

// size is a number of bytes for people.
func size(n int64) string {
	if n < 1<<10 {
		return fmt.Sprintf("%d B", n)
	}
	value, unit := float64(n)/(1<<10), 0
	for ; value >= 1000 && unit < 3; unit++ {
		value /= 1 << 10
	}
	return fmt.Sprintf("%.3g %ciB", value, "KMGT"[unit])
}

// orDash is the text, or a dash in place of nothing.
func orDash(s string) string { return cmp.Or(s, "-") }
