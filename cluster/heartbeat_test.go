package cluster

import (
	"bytes"
	"errors"
	"math"
	"strings"
	"testing"
	"time"
)

func TestHeartbeatSurvivesTheWire(t *testing.T) {
	for _, want := range []heartbeat{
		{member: Member{ID: "a", Boot: 1}, seq: 1},
		{
			member: Member{
				ID:      strings.Repeat("z", maxMemberID),
				Boot:    math.MaxUint64,
				Address: strings.Repeat("~", maxAddress),
				PollAge: math.MaxInt64,
				Load:    math.MaxUint64,
			},
			seq: math.MaxUint64, hintSeq: math.MaxUint64, leaving: true,
		},
	} {
		b := want.append(nil)
		if got, err := decodeHeartbeat(b); err != nil || got != want {
			t.Errorf("decoded %+v, %v; want %+v", got, err, want)
		}
		if len(b) > heartbeatMax {
			t.Errorf("%d bytes, more than the bound %d", len(b), heartbeatMax)
		}
	}
}

func TestHeartbeatRefusesWhatItDoesNotKnow(t *testing.T) {
	good := heartbeat{member: Member{ID: "shop-1", Boot: 7, Address: "10.0.0.1:80", PollAge: time.Second}, seq: 3}.append(nil)
	change := func(i int, c byte) []byte {
		b := bytes.Clone(good)
		b[i] = c
		return b
	}
	for name, c := range map[string]struct {
		message []byte
		want    error
	}{
		"empty":            {nil, errMalformed},
		"magic alone":      {good[:2], errMalformed},
		"other magic":      {change(1, 'X'), errMalformed},
		"version 0":        {change(2, 0), errOtherVersion},
		"version 2, short": {[]byte("FM\x02"), errOtherVersion},
		"unknown flag":     {change(3, 2), errMalformed},
		"boot 0":           {change(11, 0), errMalformed},
		"sequence 0":       {change(19, 0), errMalformed},
		"poll age below 0": {change(20, 0x80), errMalformed},
		"no id":            {change(heartbeatFixed, 0), errMalformed},
		"id too long":      {change(heartbeatFixed, 200), errMalformed},
		"space in id":      {change(heartbeatFixed+2, ' '), errMalformed},
		"bad address":      {change(len(good)-1, 0xff), errMalformed},
		"byte too many":    {append(bytes.Clone(good), 0), errMalformed},
		"oversized":        {append(bytes.Clone(good), make([]byte, 1<<20)...), errMalformed},
	} {
		if h, err := decodeHeartbeat(c.message); !errors.Is(err, c.want) {
			t.Errorf("%s: %+v, %v; want %v", name, h, err, c.want)
		}
	}
	for n := range good {
		if _, err := decodeHeartbeat(good[:n]); err == nil {
			t.Errorf("the first %d bytes of %d were accepted", n, len(good))
		}
	}
}

// What is accepted is exactly what would be sent for it.
func FuzzDecodeHeartbeat(f *testing.F) {
	f.Add(heartbeat{member: Member{ID: "a", Boot: 1}, seq: 1}.append(nil))
	f.Add(heartbeat{member: Member{ID: "shop-1", Boot: 7, Address: "10.0.0.1:80", PollAge: 1, Load: 2}, seq: 3, hintSeq: 4, leaving: true}.append(nil))
	f.Add([]byte("FM\x02"))
	f.Fuzz(func(t *testing.T, b []byte) {
		h, err := decodeHeartbeat(b)
		if err != nil {
			return
		}
		if again := h.append(nil); !bytes.Equal(again, b) {
			t.Fatalf("%x decodes to %+v, which is sent as %x", b, h, again)
		}
	})
}
