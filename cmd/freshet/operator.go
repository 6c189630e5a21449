package main

import (
	"context"
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
	url       string
	tokenFile string
	timeout   time.Duration
	json      bool
}

// operate gives the command the flags of an operator and has it do its work with a client.
func operate(cmd *cobra.Command, do func(ctx context.Context, c admin.Client, out *output) error) *cobra.Command {
	var o operator
	f := cmd.Flags()
	f.StringVar(&o.url, "admin-url", "http://127.0.0.1:9090", "admin port of any replica")
	f.StringVar(&o.tokenFile, "admin-token-file", "", "file with the admin token, for what changes something")
	f.DurationVar(&o.timeout, "timeout", 15*time.Second, "longest wait for the answer")
	f.BoolVar(&o.json, "json", false, "print the answer as JSON")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		client, err := o.client()
		if err != nil {
			return usage(err)
		}
		ctx, cancel := context.WithTimeoutCause(cmd.Context(), o.timeout, fmt.Errorf("no answer from %s within --timeout %v", o.url, o.timeout))
		defer cancel()
		err = do(ctx, client, &output{w: cmd.OutOrStdout(), json: o.json})
		if cause := context.Cause(ctx); err != nil && cause != nil {
			return cause
		}
		return err
	}
	if cmd.Args == nil {
		cmd.Args = noArguments
	}
	return cmd
}

func (o operator) client() (admin.Client, error) {
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
	return admin.Client{URL: o.url, Token: strings.TrimSpace(string(token)), HTTP: &http.Client{}}, errors.Join(problems...)
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
