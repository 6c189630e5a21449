package cluster

import (
	"errors"
	"fmt"
	"time"
)

// Member is one replica as its last heartbeat described it.
type Member struct {
	// ID names the replica: 1 to 128 letters, digits, underscores, dots and dashes, the first a
	// letter or digit. A replica that restarts may keep it.
	ID string
	// Boot tells the runs of one replica apart: not 0, and larger for a later run of the same ID.
	// The wall clock's nanoseconds at start will do; should the clock have gone back between two
	// runs, the others see the later one only after the earlier has expired.
	Boot uint64
	// Address is where the replica's HTTP API is reached, for people to read: up to 255 printable
	// ASCII characters. Empty = not told.
	Address string
	// PollAge is how old the replica's last successful poll of the log was when it said so.
	PollAge time.Duration
	// Load is what the replica reported as its load, in a unit of the application's choice.
	Load uint64
}

// View is who is alive as one replica sees it at one moment. A View is never changed once it is
// handed out; treat Members as read-only.
type View struct {
	// Number rises whenever a member appears, disappears, or comes back with another boot or
	// address. It counts on one replica only: two replicas' numbers say nothing about each other.
	// Members of two Views with the same Number differ at most in PollAge and Load.
	Number uint64
	// Members are sorted by ID, no ID twice, the replica itself always among them.
	Members []Member
}

// check returns all that is wrong with the parts of m that its replica chose.
func (m Member) check() error {
	var problems []error
	if !isMemberID(m.ID) {
		problems = append(problems, fmt.Errorf("cluster: member ID %.80q is not allowed: want 1 to %d of a-z A-Z 0-9 _ . - beginning with a letter or digit", m.ID, maxMemberID))
	}
	if m.Boot == 0 {
		problems = append(problems, errors.New("cluster: member Boot is 0: want a number that is larger for each later run"))
	}
	if !isAddress(m.Address) {
		problems = append(problems, fmt.Errorf("cluster: member Address %.80q is not allowed: want at most %d printable ASCII characters without spaces", m.Address, maxAddress))
	}
	return errors.Join(problems...)
}

func isMemberID(s string) bool {
	if s == "" || len(s) > maxMemberID {
		return false
	}
	for i := range len(s) {
		c := s[i]
		letterOrDigit := c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9'
		if !letterOrDigit && (i == 0 || c != '_' && c != '.' && c != '-') {
			return false
		}
	}
	return true
}

func isAddress(s string) bool {
	for i := range len(s) {
		if s[i] <= ' ' || s[i] >= 0x7f {
			return false
		}
	}
	return len(s) <= maxAddress
}
