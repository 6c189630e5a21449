package tiers

import (
	"slices"
	"testing"
)

func TestParseClusterNodes(t *testing.T) {
	const text = `a 10.0.0.1:7000@17000,one.redis,shard-id=x myself,master - 0 0 1 connected 0-99 101 [7->-b]
b :7001@17001 slave,fail? a 0 0 1 connected
c ::1:7002@17002 master,fail - 0 0 1 disconnected 200
d :0@0 master,noaddr - 0 0 1 disconnected
short line
`
	got := parseClusterNodes(text, "10.0.0.9:7000")
	want := []clusterNode{
		{id: "a", addresses: [2]string{"10.0.0.1:7000", "one.redis:7000"}, role: "primary", myself: true, primary: "-", slots: "0-99 101"},
		{id: "b", addresses: [2]string{"10.0.0.9:7001", ""}, role: "replica", flags: "fail?", primary: "a"},
		{id: "c", addresses: [2]string{"[::1]:7002", ""}, role: "primary", flags: "fail", primary: "-", slots: "200"},
		{id: "d", role: "primary", flags: "noaddr", primary: "-"},
	}
	if !slices.Equal(got, want) {
		t.Errorf("got  %+v\nwant %+v", got, want)
	}
}

func TestSurveyIsInTheOrderOfSlots(t *testing.T) {
	servers := []ServerState{
		{Address: "r2", Role: "replica", Primary: "p2", offset: 70},
		{Address: "lost", Role: "primary", Flags: "fail"},
		{Address: "p2", Role: "primary", Slots: "100-200", offset: 100},
		{Address: "r1", Role: "replica", Primary: "p1", Error: "no answer"},
		{Address: "p1", Role: "primary", Slots: "7", offset: 5},
	}
	arrange(servers)
	var order []string
	for _, s := range servers {
		order = append(order, s.Address)
	}
	if want := []string{"p1", "r1", "p2", "r2", "lost"}; !slices.Equal(order, want) {
		t.Errorf("order %v, want %v", order, want)
	}
	if servers[3].Behind != 30 || servers[1].Behind != 0 {
		t.Errorf("behind: %d and %d, want 30 and 0", servers[3].Behind, servers[1].Behind)
	}
}
