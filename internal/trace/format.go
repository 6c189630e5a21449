package trace

import (
	"bytes"
	"fmt"
	"path/filepath"
	"strings"
	"unicode/utf8"
)

// Format is how a trace file spells its keys. The zero value is Detect.
type Format string

const (
	// Detect chooses a format by the file's name, then by its first bytes; see [Open].
	Detect Format = ""
	// Cache2k is the format of the traces published with the cache2k benchmarks: each access is one
	// int32, big-endian, nothing else.
	Cache2k Format = "cache2k"
	// Lines has one key per line, at most [MaxLine] bytes without the line end ("\n" or "\r\n").
	// Empty lines are skipped; everything else on a line is part of the key.
	Lines Format = "lines"
)

// ParseFormat is for flags and configuration files: "", "cache2k" or "lines".
func ParseFormat(s string) (Format, error) {
	switch f := Format(s); f {
	case Detect, Cache2k, Lines:
		return f, nil
	default:
		return Detect, fmt.Errorf("trace format %q is not known: want %q, %q, or nothing to detect it", s, Cache2k, Lines)
	}
}

// sniffed is how many decoded bytes detection looks at.
const sniffed = 4096

// detect decides by name first: the published traces end in .trace, lists of keys in .txt and the
// like. Otherwise printable text is Lines, and bytes with a zero among the first (no int32 trace of
// any real system lacks one, no text has one) are Cache2k.
func detect(path string, start []byte) (Format, error) {
	name := strings.TrimSuffix(strings.ToLower(filepath.Base(path)), ".xz")
	switch filepath.Ext(name) {
	case ".trace", ".cache2k":
		if !printable(start) {
			return Cache2k, nil
		}
	case ".txt", ".lines", ".keys", ".log":
		return Lines, nil
	}
	switch {
	case len(start) == 0:
		return Detect, fmt.Errorf("trace %s: the file holds no access: name one that has at least one key", path)
	case printable(start):
		return Lines, nil
	case bytes.IndexByte(start, 0) >= 0:
		return Cache2k, nil
	default:
		return Detect, fmt.Errorf("trace %s: neither its name nor its first %d bytes tell the format: say %q or %q",
			path, len(start), Cache2k, Lines)
	}
}

// printable reports whether b is UTF-8 text. The last rune may be cut.
func printable(b []byte) bool {
	for len(b) > 0 {
		r, n := utf8.DecodeRune(b)
		if r == utf8.RuneError && n == 1 {
			return len(b) < utf8.UTFMax && !utf8.FullRune(b)
		}
		if r < ' ' && r != '\n' && r != '\r' && r != '\t' {
			return false
		}
		b = b[n:]
	}
	return true
}
