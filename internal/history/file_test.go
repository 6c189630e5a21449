package history

import (
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"sync"
	"testing"
	"time"
)

var (
	someRead  = Read{Key: 1 << 60, Op: 7, Fresh: true, Tier: 3, Replica: 9, Session: 1 << 40, Budget: time.Second, Invoked: 5, Returned: 6}
	someList  = List{Group: 3, Entries: []Entry{{1, 2}, {3, 4}}, Tier: 1, Replica: 9, Invoked: 7, Returned: 9}
	someJoint = Joint{
		Entries: []Entry{{1, 2}, {3, 0}}, Sum: -7, Total: 9, Fresh: true, Replica: 9, Budget: time.Second, Invoked: 7, Returned: 9,
	}
	someWrite = Write{Op: 7, Keys: []uint64{1, 2}, Sent: 3, Acked: Never, Session: 4, Idle: true}
)

// What was noted is read again, and the last note of a write counts.
func TestFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "history")
	r, err := Create(path)
	if err != nil {
		t.Fatal(err)
	}
	r.Write(someWrite)
	r.Read(someRead)
	r.List(someList)
	r.Joint(someJoint)
	r.Failure(Failure{At: 5, Replica: 2})
	acked := someWrite
	acked.Acked = 9
	r.Write(acked)
	var work sync.WaitGroup
	for range 4 {
		work.Go(func() {
			for range 1000 {
				r.Read(someRead)
			}
		})
	}
	work.Wait()
	if err := r.Close(); err != nil {
		t.Fatal(err)
	}
	f, err := ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	want := &File{
		Reads: slices.Repeat([]Read{someRead}, 4001), Lists: []List{someList}, Writes: []Write{acked},
		Joints: []Joint{someJoint}, Failures: []Failure{{At: 5, Replica: 2}},
	}
	if !reflect.DeepEqual(f, want) {
		t.Errorf("read %d reads, %+v, %+v", len(f.Reads), f.Lists, f.Writes)
	}
}

// A process that was killed leaves what it had noted up to its last write, at least.
func TestFileOfTheKilled(t *testing.T) {
	path := filepath.Join(t.TempDir(), "history")
	r, err := Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	r.Read(someRead)
	r.Write(someWrite)
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for size := range len(b) + 1 {
		f, err := parse(b[:size])
		if err != nil {
			t.Fatalf("%d bytes: %v", size, err)
		}
		whole := size == len(b)
		if whole != (len(f.Writes) == 1) || (whole && f.Torn) {
			t.Errorf("%d of %d bytes: %+v", size, len(b), f)
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte(magic))
	f.Add([]byte(magic + "\x03\x03\x05\x02"))
	f.Add([]byte(magic + "\x0a\x02\x01\x02\x03\x04\x05\x06\x07\xff\x01"))
	f.Fuzz(func(t *testing.T, b []byte) {
		if file, err := parse(b); err == nil && len(file.Reads)+len(file.Lists)+len(file.Writes) > len(b) {
			t.Errorf("%d bytes hold %d events", len(b), len(file.Reads)+len(file.Lists)+len(file.Writes))
		}
	})
}

// The order is the audit's, the times the writers'; what nobody can have seen is left out, what is gone is lost.
func TestJoin(t *testing.T) {
	h := Join(
		[]*File{{Reads: []Read{someRead}, Writes: []Write{{Op: 1, Keys: []uint64{1}, Sent: 1, Acked: 2, Session: 5}, {Op: 3, Keys: []uint64{1}, Sent: 5, Acked: 6}}}},
		[]Write{{Op: 2, Sent: 3, Acked: Never}, {Op: 4, Keys: []uint64{2}, Sent: 7, Acked: Never}},
		[]Audited{{Key: 1, Op: 1, Group: 1}, {Key: 1, Op: 2, Absent: true}, {Key: 1, Op: 2, Group: 2}, {Key: 1, Op: 9, Group: 2}},
	)
	want := []Commit{
		{Key: 1, Op: 1, Group: 1, Sent: 1, Acked: 2, Session: 5},
		{Key: 1, Op: 2, Group: 2, Sent: 3, Acked: Never},
		{Key: 1, Op: 9, Group: 2, Sent: Always, Acked: Never},
	}
	if !slices.Equal(h.Commits, want) || !slices.Equal(h.Lost, []Commit{{Key: 1, Op: 3, Sent: 5, Acked: 6}}) || len(h.Reads) != 1 {
		t.Errorf("%+v\n%+v", h.Commits, h.Lost)
	}
}
