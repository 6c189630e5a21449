package verify

import (
	"time"
)

// What the parent and a replica's process say to each other: JSON values, one a line. The parent
// begins with a setup, the replica answers when it serves; from then on each request has one reply, in
// any order.

// setup opens the replica.
type setup struct {
	At     Endpoints `json:"at"`
	Keys   uint64    `json:"keys"`
	Groups uint64    `json:"groups"`
}

// request is what the replica shall do.
type request struct {
	ID   uint64 `json:"id"`
	Verb verb   `json:"verb"`

	Key    uint64        `json:"key,omitempty"`    // of get; the category of list
	Budget time.Duration `json:"budget,omitempty"` // of get, list and sweep
	Token  string        `json:"token,omitempty"`  // of get and list
	Change Change        `json:"change,omitzero"`  // of write
	Load   loadConfig    `json:"load,omitzero"`    // of load
}

type verb string

const (
	verbGet   verb = "get"
	verbList  verb = "list"
	verbWrite verb = "write"
	verbLoad  verb = "load"  // begin the load; there is none under way
	verbStop  verb = "stop"  // end it; the reply comes when all earlier requests are done and its file is whole
	verbSweep verb = "sweep" // read every row and every list
	verbStats verb = "stats"
)

// reply answers a request. Error says why there is no answer.
type reply struct {
	ID       uint64        `json:"id"`
	Error    string        `json:"error,omitempty"`
	Invoked  time.Duration `json:"invoked,omitempty"` // of get, list and write
	Returned time.Duration `json:"returned,omitempty"`

	Answer Answer     `json:"answer,omitzero"`
	List   ListAnswer `json:"list,omitzero"`
	Sweep  sweep      `json:"sweep,omitzero"`
	Stats  SourceLoad `json:"stats,omitzero"`
	Load   loadCounts `json:"load,omitzero"` // of stop
}

// sweep is every answer of a replica.
type sweep struct {
	Rows   []swept     `json:"rows"`  // of the keys 1, 2, ...
	Lists  []sweptList `json:"lists"` // of the categories 1, 2, ...
	Lacked int         `json:"lacked"`
	First  string      `json:"first,omitempty"` // error of an answer that could not be given
}

// swept is an answer, when it was asked for and when it came.
type swept struct {
	Answer
	Invoked, Returned time.Duration
	Error             bool
}

type sweptList struct {
	ListAnswer
	Invoked, Returned time.Duration
	Error             bool
}

// loadConfig says what load a replica puts on itself.
type loadConfig struct {
	File   string  `json:"file"`   // for the history
	Seed   uint64  `json:"seed"`   // of its choices
	Rate   float64 `json:"rate"`   // reads per second at most
	Writes float64 `json:"writes"` // writes per second at most
	// Base is added to the numbers of its writes, which are 1, 2, ...
	Base uint64 `json:"base"`
}

// loadCounts is what a load did.
type loadCounts struct {
	Reads, Errors, Writes, WriteErrors uint64
	Slowest                            time.Duration // read
	First                              string        // error of a read
}
