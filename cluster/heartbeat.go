package cluster

import (
	"encoding/binary"
	"errors"
	"math"
	"time"
)

// A heartbeat is one message on the subject freshet.<app>.member. Its bytes are, numbers big-endian:
//
//	2  magic "FM"
//	1  version, 1
//	1  flags: bit 0 = leaving; the others are 0
//	8  boot          8  sequence of this message within the boot, from 1
//	8  poll age, ns  8  load  8  sequence of the last hint
//	1  length of id, then id          1  length of address, then address
//
// and nothing after. Another version is not understood in part: during an upgrade that changes it,
// old and new replicas do not see each other, which membership may.
type heartbeat struct {
	member  Member
	seq     uint64
	hintSeq uint64
	leaving bool
}

const (
	heartbeatMagic   = "FM"
	heartbeatVersion = 1
	flagLeaving      = 1

	heartbeatFixed = len(heartbeatMagic) + 1 + 1 + 5*8
	heartbeatMax   = heartbeatFixed + 1 + maxMemberID + 1 + maxAddress

	maxMemberID = 128 // bytes
	maxAddress  = 255 // bytes
)

var (
	errMalformed    = errors.New("cluster: malformed heartbeat")
	errOtherVersion = errors.New("cluster: heartbeat of another version")
)

func (h heartbeat) append(b []byte) []byte {
	var flags byte
	if h.leaving {
		flags |= flagLeaving
	}
	b = append(b, heartbeatMagic...)
	b = append(b, heartbeatVersion, flags)
	b = binary.BigEndian.AppendUint64(b, h.member.Boot)
	b = binary.BigEndian.AppendUint64(b, h.seq)
	b = binary.BigEndian.AppendUint64(b, uint64(h.member.PollAge))
	b = binary.BigEndian.AppendUint64(b, h.member.Load)
	b = binary.BigEndian.AppendUint64(b, h.hintSeq)
	b = append(b, byte(len(h.member.ID)))
	b = append(b, h.member.ID...)
	b = append(b, byte(len(h.member.Address)))
	return append(b, h.member.Address...)
}

// decodeHeartbeat accepts exactly what append writes for a member that NewMembership would accept.
func decodeHeartbeat(b []byte) (heartbeat, error) {
	if len(b) < len(heartbeatMagic)+1 || string(b[:len(heartbeatMagic)]) != heartbeatMagic {
		return heartbeat{}, errMalformed
	}
	if b[len(heartbeatMagic)] != heartbeatVersion {
		return heartbeat{}, errOtherVersion
	}
	if len(b) < heartbeatFixed || len(b) > heartbeatMax {
		return heartbeat{}, errMalformed
	}
	flags := b[3]
	number := func(i int) uint64 { return binary.BigEndian.Uint64(b[4+8*i:]) }
	id, rest, ok1 := cutShort(b[heartbeatFixed:])
	address, rest, ok2 := cutShort(rest)
	h := heartbeat{
		member: Member{
			ID:      string(id),
			Boot:    number(0),
			Address: string(address),
			PollAge: time.Duration(number(2)),
			Load:    number(3),
		},
		seq:     number(1),
		hintSeq: number(4),
		leaving: flags&flagLeaving != 0,
	}
	if !ok1 || !ok2 || len(rest) > 0 || flags&^flagLeaving != 0 || h.seq == 0 || number(2) > math.MaxInt64 ||
		h.member.check() != nil {
		return heartbeat{}, errMalformed
	}
	return h, nil
}

// cutShort takes a length byte and that many bytes off the front of b.
func cutShort(b []byte) (short, rest []byte, ok bool) {
	if len(b) == 0 || len(b)-1 < int(b[0]) {
		return nil, nil, false
	}
	return b[1 : 1+int(b[0])], b[1+int(b[0]):], true
}
