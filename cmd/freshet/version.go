package main

import (
	"encoding/json"
	"fmt"
	"io"
	"runtime"
	"runtime/debug"

	"github.com/spf13/cobra"
)

func newVersion() *cobra.Command {
	var output string
	cmd := &cobra.Command{
		Use:   "version",
		Short: "Print what this binary was built from",
		Args:  noArguments,
		RunE: func(cmd *cobra.Command, _ []string) error {
			switch output {
			case "text":
				return built().print(cmd.OutOrStdout())
			case "json":
				return json.NewEncoder(cmd.OutOrStdout()).Encode(built())
			default:
				return usage(fmt.Errorf("--output: %.20q; want text or json", output))
			}
		},
	}
	cmd.Flags().StringVarP(&output, "output", "o", "text", "text or json")
	return cmd
}

// build says what a binary was built from, as the Go toolchain recorded it.
type build struct {
	Version  string `json:"version"`            // of the module; "(devel)" from a working copy
	Revision string `json:"revision,omitempty"` // of the version control system
	Time     string `json:"time,omitempty"`     // of the revision, RFC 3339
	Modified bool   `json:"modified,omitempty"` // the working copy differed from the revision
	Go       string `json:"go"`
	Platform string `json:"platform"`
}

func built() build {
	b := build{Version: "(devel)", Go: runtime.Version(), Platform: runtime.GOOS + "/" + runtime.GOARCH}
	recorded, ok := debug.ReadBuildInfo()
	if !ok {
		return b
	}
	if recorded.Main.Version != "" {
		b.Version = recorded.Main.Version
	}
	for _, s := range recorded.Settings {
		switch s.Key {
		case "vcs.revision":
			b.Revision = s.Value
		case "vcs.time":
			b.Time = s.Value
		case "vcs.modified":
			b.Modified = s.Value == "true"
		}
	}
	return b
}

func (b build) print(w io.Writer) error {
	revision := b.Revision
	if revision == "" {
		revision = "unknown revision"
	}
	if b.Modified {
		revision += ", modified"
	}
	_, err := fmt.Fprintf(w, "freshet %s (%s) %s %s\n", b.Version, revision, b.Go, b.Platform)
	return err
}
