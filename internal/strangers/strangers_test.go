package strangers

import (
	"math/rand/v2"
	"net"
	"slices"
	"testing"
)

func addr(last byte) net.Addr { return &net.TCPAddr{IP: net.IPv4(192, 0, 2, last), Port: 1000} }

// TestNewcomersGetIn: whoever leaves within most newcomers is never cut off, from wherever the others come.
func TestNewcomersGetIn(t *testing.T) {
	g := New(16, 4)
	rng := rand.New(rand.NewPCG(1, 1))
	cut := 0
	for range 5000 {
		g.Enter(addr(byte(rng.IntN(200))), func() { cut++ })
		honest := false
		leave := g.Enter(addr(250), func() { honest = true })
		g.Enter(addr(byte(rng.IntN(200))), func() { cut++ })
		leave()
		leave()
		if honest {
			t.Fatal("a peer that was quick was cut off")
		}
		if n := g.Count(); n > 16 {
			t.Fatalf("%d strangers", n)
		}
	}
	if cut != 10000-g.Count() {
		t.Errorf("%d were cut off, %d are there", cut, g.Count())
	}
}

func TestOneAddress(t *testing.T) {
	g := New(16, 4)
	var order []int
	other := false
	g.Enter(addr(1), func() { other = true })
	for i := range 10 {
		g.Enter(addr(2), func() { order = append(order, i) })
	}
	if other || !slices.Equal(order, []int{0, 1, 2, 3, 4, 5}) || g.Count() != 5 {
		t.Errorf("cut off: %v, the other %v, %d are there", order, other, g.Count())
	}
}

func TestShare(t *testing.T) {
	for _, c := range []struct{ a, b string }{
		{"2001:db8::1", "2001:db8::ffff:1"}, {"192.0.2.1", "::ffff:192.0.2.1"}, {"fe80::1%eth0", "fe80::2%eth1"},
	} {
		x, _ := net.ResolveTCPAddr("tcp", net.JoinHostPort(c.a, "1"))
		y, _ := net.ResolveTCPAddr("tcp", net.JoinHostPort(c.b, "2"))
		if Share(x) != Share(y) {
			t.Errorf("%s and %s: %v, %v", c.a, c.b, Share(x), Share(y))
		}
	}
	if Share(addr(1)) == Share(addr(2)) || Share(&net.UnixAddr{}).IsValid() {
		t.Error("addresses are mixed up")
	}
}
