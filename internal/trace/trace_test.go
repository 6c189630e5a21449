package trace_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/ulikunitz/xz"

	"github.com/freshet-cache/freshet/internal/trace"
)

func write(t testing.TB, name string, b []byte) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func pack(t testing.TB, b []byte) []byte {
	t.Helper()
	var out bytes.Buffer
	w, err := xz.NewWriter(&out)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write(b); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

func int32s(keys ...uint32) []byte {
	var b []byte
	for _, k := range keys {
		b = binary.BigEndian.AppendUint32(b, k)
	}
	return b
}

type source interface{ Next() (uint64, error) }

// all reads at most n keys.
func all(s source, n int) ([]uint64, error) {
	var keys []uint64
	for range n {
		k, err := s.Next()
		if err != nil {
			return keys, err
		}
		keys = append(keys, k)
	}
	return keys, nil
}

func open(t testing.TB, path string, f trace.Format) *trace.Reader {
	t.Helper()
	r, err := trace.Open(path, f)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := r.Close(); err != nil {
			t.Error(err)
		}
	})
	return r
}

func TestCache2kPlainAndPackedAreTheSame(t *testing.T) {
	keys := make([]uint32, 50_000)
	want := make([]uint64, len(keys))
	for i := range keys {
		keys[i] = uint32(i*i) | 1<<31*uint32(i%2)
		want[i] = uint64(keys[i])
	}
	for name, b := range map[string][]byte{"a.trace": int32s(keys...), "a.trace.xz": pack(t, int32s(keys...)), "no-name": int32s(keys...), "odd.bin": pack(t, int32s(keys...))} {
		t.Run(name, func(t *testing.T) {
			r := open(t, write(t, name, b), trace.Detect)
			if r.Format() != trace.Cache2k {
				t.Fatalf("detected %q", r.Format())
			}
			got, err := all(r, len(keys)+1)
			if err != io.EOF {
				t.Fatalf("after the last key: %v, want io.EOF", err)
			}
			if !slices.Equal(got, want) {
				t.Fatal("keys differ from what was written")
			}
		})
	}
}

func TestLinesSkipsEmptyLinesAndLineEnds(t *testing.T) {
	for _, name := range []string{"keys.txt", "keys", "keys.log.xz"} {
		text := []byte("a\nb\r\n\n\r\na\nß-17 x\nlast")
		if strings.HasSuffix(name, ".xz") {
			text = pack(t, text)
		}
		got, err := all(open(t, write(t, name, text), trace.Detect), 10)
		if err != io.EOF || len(got) != 5 {
			t.Fatalf("%s: %d keys, %v; want 5, io.EOF", name, len(got), err)
		}
		if got[0] != got[2] || got[0] == got[1] || got[3] == got[4] {
			t.Fatalf("%s: equal lines must be equal keys, others not: %v", name, got)
		}
	}
}

func TestErrorsNameFileAndPlace(t *testing.T) {
	good := pack(t, int32s(1, 2, 3, 4, 5, 6, 7, 8))
	corrupt := slices.Clone(good)
	corrupt[40] ^= 0xFF
	hungry := slices.Clone(good)
	hungry[16] = 40 // the dictionary size byte: 4 GiB - 1
	tests := []struct {
		name   string
		format trace.Format
		bytes  []byte
		want   string
	}{
		{"cut.trace", trace.Detect, int32s(1, 2)[:7], "at byte 4: the last key has 3 of 4 bytes"},
		{"cut.trace.xz", trace.Detect, good[:len(good)-20], "cut.trace.xz"},
		{"corrupt.xz", trace.Cache2k, corrupt, "at decoded byte"},
		{"hungry.xz", trace.Cache2k, hungry, "dictionary"},
		{"long.txt", trace.Lines, []byte("ok\n" + strings.Repeat("x", trace.MaxLine+1)), "at byte 3: the line is longer"},
		{"huge.txt", trace.Lines, []byte(strings.Repeat("x", 1<<17)), "at byte 0: the line is longer"},
		{"empty", trace.Detect, nil, "holds no access"},
		{"odd.bin", trace.Detect, []byte{0xFF, 0xFE, 1, 2, 3, 4, 5, 6}, "tell the format"},
		{"format", "csv", []byte("a\n"), `"csv" is not known`},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			path := write(t, test.name, test.bytes)
			r, err := trace.Open(path, test.format)
			if err == nil {
				defer r.Close()
				_, err = all(r, 100)
			}
			if err == nil || err == io.EOF || !strings.Contains(err.Error(), test.want) {
				t.Fatalf("error %v; want one with %q", err, test.want)
			}
			if test.format != "csv" && !strings.Contains(err.Error(), path) {
				t.Fatalf("error %q does not name the file", err)
			}
		})
	}
	if _, err := trace.Open(filepath.Join(t.TempDir(), "none"), trace.Lines); !errors.Is(err, os.ErrNotExist) {
		t.Fatalf("a missing file: %v", err)
	}
}

func TestLongestLineIsRead(t *testing.T) {
	r := open(t, write(t, "a.txt", []byte(strings.Repeat("x", trace.MaxLine)+"\r\nb")), trace.Lines)
	if got, err := all(r, 3); len(got) != 2 || err != io.EOF {
		t.Fatalf("%d keys, %v", len(got), err)
	}
}

func TestLoopBeginsAgain(t *testing.T) {
	for name, b := range map[string][]byte{"a.trace": int32s(7, 8, 9), "b.trace.xz": pack(t, int32s(7, 8, 9))} {
		l := trace.NewLoop(open(t, write(t, name, b), trace.Detect))
		got, err := all(l, 7)
		if err != nil || !slices.Equal(got, []uint64{7, 8, 9, 7, 8, 9, 7}) || l.Turns() != 2 {
			t.Fatalf("%s: %v, %v, %d turns", name, got, err, l.Turns())
		}
	}
	l := trace.NewLoop(open(t, write(t, "none.txt", []byte("\n\n")), trace.Lines))
	if _, err := l.Next(); err == nil || err == io.EOF {
		t.Fatalf("a trace without keys must not be repeated for ever: %v", err)
	}
}

func TestReaderAfterClose(t *testing.T) {
	r, err := trace.Open(write(t, "a.txt", []byte("a\n")), trace.Lines)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(r.Close(), r.Close()); err != nil {
		t.Fatal(err)
	}
	if _, err := r.Next(); !errors.Is(err, os.ErrClosed) {
		t.Fatal(err)
	}
	if err := r.Rewind(); !errors.Is(err, os.ErrClosed) {
		t.Fatal(err)
	}
}

// The shares of the most popular keys follow 1/i^theta, and the same seed gives the same keys.
func TestZipfShares(t *testing.T) {
	const n, draws = 1000, 400_000
	z, err := trace.NewZipf(n, trace.Theta, 42)
	if err != nil {
		t.Fatal(err)
	}
	keys, _ := all(z, draws)
	counts := make(map[uint64]int)
	for _, k := range keys {
		counts[k]++
	}
	top := slices.Sorted(func(yield func(int) bool) {
		for _, c := range counts {
			if !yield(-c) {
				return
			}
		}
	})
	zeta := 0.0
	for i := 1; i <= n; i++ {
		zeta += math.Pow(float64(i), -trace.Theta)
	}
	for i, tolerance := range map[int]float64{1: .03, 2: .03, 10: .25, 100: .25} {
		want := draws * math.Pow(float64(i), -trace.Theta) / zeta
		if got := float64(-top[i-1]); math.Abs(got-want) > tolerance*want {
			t.Errorf("rank %d was drawn %v times, want about %.0f", i, got, want)
		}
	}
	if len(counts) < n*9/10 || len(counts) > n {
		t.Errorf("%d distinct keys of %d", len(counts), n)
	}
	again, err := trace.NewZipf(n, trace.Theta, 42)
	if err != nil {
		t.Fatal(err)
	}
	if more, _ := all(again, 1000); !slices.Equal(more, keys[:1000]) {
		t.Error("the same seed gave other keys")
	}
}

func TestZipfBounds(t *testing.T) {
	for _, n := range []int{1, 2, 3} {
		z, err := trace.NewZipf(n, trace.Theta, 1)
		if err != nil {
			t.Fatal(err)
		}
		keys, _ := all(z, 1000)
		slices.Sort(keys)
		if got := len(slices.Compact(keys)); got != n {
			t.Errorf("n = %d gave %d distinct keys", n, got)
		}
	}
	for _, bad := range []struct {
		n     int
		theta float64
	}{{0, .99}, {-1, .99}, {trace.MaxZipf + 1, .99}, {10, 0}, {10, 1}, {10, math.NaN()}} {
		if _, err := trace.NewZipf(bad.n, bad.theta, 1); err == nil {
			t.Errorf("NewZipf(%d, %v) was accepted", bad.n, bad.theta)
		}
	}
}

// The first n keys get the ids 1..n, each once; later keys share them, stably.
func TestMappingIsDenseStableAndBounded(t *testing.T) {
	for _, n := range []int64{1, 2, 3, 10, 97, 1000, 100_000} {
		m, err := trace.NewMapping(n, 7)
		if err != nil {
			t.Fatal(err)
		}
		ids := make(map[int64]bool)
		neighbours := 0
		last := int64(0)
		for k := range uint64(n) {
			id := m.ID(k * 3)
			if id < 1 || id > n || ids[id] {
				t.Fatalf("n = %d: key %d got id %d, outside or given before", n, k, id)
			}
			if id == last+1 {
				neighbours++
			}
			ids[id], last = true, id
		}
		if n >= 1000 && neighbours > int(n)/100 {
			t.Errorf("n = %d: %d ids follow their neighbour", n, neighbours)
		}
		if m.Used() != int(n) || m.Shared() != 0 {
			t.Fatalf("used %d, shared %d", m.Used(), m.Shared())
		}
		for k := range uint64(n) + 100 {
			id := m.ID(k * 3)
			if id < 1 || id > n || id != m.ID(k*3) {
				t.Fatalf("n = %d: key %d got id %d, then %d", n, k, id, m.ID(k*3))
			}
		}
		if m.Used() != int(n) || m.Shared() == 0 {
			t.Fatalf("used %d, shared %d after more keys than ids", m.Used(), m.Shared())
		}
	}
	for _, n := range []int64{0, -1, trace.MaxIDs + 1} {
		if _, err := trace.NewMapping(n, 1); err == nil {
			t.Errorf("NewMapping(%d) was accepted", n)
		}
	}
}

// tracesVariable names the folder of the traces published by the cache2k benchmarks.
const tracesVariable = "FRESHET_TRACES"

func TestPublishedTraces(t *testing.T) {
	folder := os.Getenv(tracesVariable)
	if folder == "" {
		t.Skipf("%s is not set: name a folder with cache2k-web07.trace.xz and cache2k-orm-night.trace.xz to read them", tracesVariable)
	}
	for _, test := range []struct {
		file               string
		accesses, distinct int
	}{
		{"cache2k-web07.trace.xz", 76_118, 20_484},
		{"cache2k-orm-night.trace.xz", 5_000_000, 86_466},
	} {
		t.Run(test.file, func(t *testing.T) {
			r := open(t, filepath.Join(folder, test.file), trace.Detect)
			m, err := trace.NewMapping(100_000, 1)
			if err != nil {
				t.Fatal(err)
			}
			n := 0
			for ; ; n++ {
				key, err := r.Next()
				if err == io.EOF {
					break
				}
				if err != nil {
					t.Fatal(err)
				}
				m.ID(key)
			}
			if n != test.accesses || m.Used() != test.distinct {
				t.Fatalf("%d accesses of %d keys; its publisher says %d of %d", n, m.Used(), test.accesses, test.distinct)
			}
		})
	}
}

// Whatever the bytes, reading ends with io.EOF or an error that names the file.
func FuzzReader(f *testing.F) {
	f.Add(int32s(1, 2, 3), "")
	f.Add(int32s(1, 2, 3)[:9], "cache2k")
	f.Add([]byte("a\nb\n"), "lines")
	f.Add(pack(f, int32s(1, 2, 3)), "")
	f.Add(pack(f, int32s(1, 2, 3))[:24], "cache2k")
	f.Add([]byte{0xFD, '7', 'z', 'X', 'Z', 0, 0, 4, 0xE6, 0xD6, 0xB4, 0x46, 1, 0xC0}, "lines")
	path := filepath.Join(f.TempDir(), "a")
	f.Fuzz(func(t *testing.T, b []byte, format string) {
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
		r, err := trace.Open(path, trace.Format(format))
		if err != nil {
			return
		}
		defer r.Close()
		if _, err = all(r, 1<<16); err != nil && err != io.EOF && !strings.Contains(err.Error(), path) {
			t.Fatalf("error %q does not name the file", err)
		}
	})
}
