package devstack

import (
	"errors"
	"fmt"
	"os"
	"os/user"
	"strconv"
	"syscall"
)

// account is the user the servers run as.
type account struct {
	name       string
	credential *syscall.Credential // nil: the user of this process
}

// serverAccount returns the user of this process, or an unprivileged one when
// that is root: Postgres refuses to run as root, and a server that other users
// of the machine can reach had better not.
func serverAccount() (account, error) {
	if os.Geteuid() != 0 {
		return account{}, nil
	}
	var errs []error
	for _, name := range []string{"postgres", "nobody"} {
		u, err := user.Lookup(name)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		uid, err := strconv.ParseUint(u.Uid, 10, 32)
		if err != nil {
			return account{}, fmt.Errorf("devstack: user id of %q: %w", name, err)
		}
		gid, err := strconv.ParseUint(u.Gid, 10, 32)
		if err != nil {
			return account{}, fmt.Errorf("devstack: group id of %q: %w", name, err)
		}
		return account{name: name, credential: &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}}, nil
	}
	return account{}, fmt.Errorf("devstack: Postgres does not run as root, and there is no unprivileged user to run it as: %w", errors.Join(errs...))
}
