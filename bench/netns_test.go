package bench

import "testing"

func TestRootTraffic(t *testing.T) {
	got, err := rootTraffic([]byte(`[{"kind":"tbf","handle":"8001:","root":true,"refcnt":3,"options":{"rate":125000000,"burst":512000,"lat":50000},
		"bytes":1514000,"packets":1000,"drops":2,"overlimits":7,"requeues":0,"backlog":0,"qlen":0},{"kind":"pfifo","parent":"8001:1","bytes":9}]`))
	if want := (Traffic{1514000, 1000, 2}); err != nil || got != want {
		t.Errorf("%+v, %v, want %+v", got, err, want)
	}
	for _, bad := range []string{"", "[]", `[{"kind":"pfifo","parent":"8001:1","bytes":9}]`} {
		if _, err := rootTraffic([]byte(bad)); err == nil {
			t.Errorf("%q: no error", bad)
		}
	}
}

func TestListens(t *testing.T) {
	table := "  sl  local_address rem_address   st tx_queue rx_queue\n" +
		"   0: 010012C6:24F9 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 1 1 0 100 0 0 10 0\n" +
		"   1: 010012C6:1161 020012C6:9C40 01 00000000:00000000 00:00000000 00000000     0        0 2 1 0 100 0 0 10 0\n"
	for port, want := range map[int]bool{0x24F9: true, 0x1161: false, 0x9C40: false, 80: false} {
		if listens(table, port) != want {
			t.Errorf("port %d: want %v", port, want)
		}
	}
}

func TestSentOf(t *testing.T) {
	table := "Inter-|   Receive                                                |  Transmit\n" +
		" face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs drop fifo colls carrier compressed\n" +
		"    lo:  100  1 0 0 0 0 0 0  100  1 0 0 0 0 0 0\n  line: 7000 10 0 0 0 0 0 0 987654321 20 0 0 0 0 0 0\n"
	if n, ok := sentOf(table, "line"); n != 987654321 || !ok {
		t.Errorf("%d, %v", n, ok)
	}
	if _, ok := sentOf(table, "eth0"); ok {
		t.Error("a device that is not there has sent something")
	}
}
