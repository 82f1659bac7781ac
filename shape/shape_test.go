package shape

import (
	"math/rand/v2"
	"testing"
	"testing/synctest"
	"time"
)

const mbit = 1_000_000 / 8

func TestOnLine(t *testing.T) {
	for _, c := range []struct {
		n    int64
		mss  int
		want int64
	}{{0, 1448, 0}, {1, 1448, 53}, {1448, 1448, 1500}, {1449, 1448, 1449 + 104}, {14480, 0, 15000}} {
		if got := OnLine(c.n, c.mss, Headers(false)); got != c.want {
			t.Errorf("OnLine(%d, %d) = %d, want %d", c.n, c.mss, got, c.want)
		}
	}
}

func TestTimetable(t *testing.T) {
	zone, err := time.LoadLocation("Asia/Shanghai")
	if err != nil {
		t.Fatal(err)
	}
	week := [7]bool{1: true, 2: true, 3: true, 4: true, 5: true}
	tt := Timetable{Zone: zone, Rate: 200, Spans: []Span{
		{Days: week, From: 8 * 60, To: 20 * 60, Rate: 50},
		{Days: [7]bool{5: true}, From: 22 * 60, To: 6 * 60, Rate: 300}, // into Saturday
	}}
	at := func(day, h, m int) time.Time { return time.Date(2026, 11, day, h, m, 0, 0, zone) } // the 23rd is a Monday
	for _, c := range []struct {
		at   time.Time
		want int64
		next time.Time
	}{
		{at(23, 7, 59), 200, at(23, 8, 0)},
		{at(23, 8, 0), 50, at(23, 20, 0)},
		{at(23, 19, 59), 50, at(23, 20, 0)},
		{at(23, 20, 0), 200, at(24, 8, 0)},
		{at(27, 23, 0), 300, at(28, 6, 0)},
		{at(28, 5, 59), 300, at(28, 6, 0)},
		{at(28, 6, 0), 200, at(30, 8, 0)},
		{at(22, 12, 0), 200, at(23, 8, 0)},
		{at(23, 8, 0).UTC(), 50, at(23, 20, 0)},
	} {
		if got := tt.At(c.at); got != c.want {
			t.Errorf("%v: rate %d, want %d", c.at, got, c.want)
		}
		if next, _ := tt.Next(c.at); !next.Equal(c.next) {
			t.Errorf("%v: next change %v, want %v", c.at, next, c.next)
		}
	}
}

func TestShare(t *testing.T) {
	for _, c := range []struct {
		name   string
		total  int64
		claims []Claim
		want   []int64
	}{
		{"nobody", 100, nil, nil},
		{"equal", 90, []Claim{{Bulk, Unlimited}, {Bulk, Unlimited}, {Bulk, Unlimited}}, []int64{30, 30, 30}},
		{"what one leaves", 90, []Claim{{Bulk, 10}, {Bulk, Unlimited}, {Bulk, Unlimited}}, []int64{10, 40, 40}},
		{"idle", 90, []Claim{{Bulk, 0}, {0, 50}, {Bulk, Unlimited}}, []int64{0, 0, 90}},
		{"a cutover first, nobody starves", 1000, []Claim{{Bulk, Unlimited}, {Cutover, Unlimited}, {Bulk, Unlimited}}, []int64{50, 900, 50}},
		{"a cutover that wants little", 1000, []Claim{{Bulk, Unlimited}, {Cutover, 100}}, []int64{900, 100}},
		{"three classes", 1000, []Claim{{Bulk, Unlimited}, {Delta, Unlimited}, {Cutover, Unlimited}}, []int64{10, 90, 900}},
		{"who stands still goes before who will", 1000, []Claim{{Cutover, Unlimited}, {Final, Unlimited}}, []int64{100, 900}},
		{"lower ones that want little", 1000, []Claim{{Bulk, 5}, {Delta, 10}, {Cutover, Unlimited}}, []int64{5, 10, 985}},
		{"more than there is", 100, []Claim{{Bulk, 80}, {Bulk, 80}}, []int64{50, 50}},
		{"nothing", 0, []Claim{{Cutover, Unlimited}}, []int64{0}},
	} {
		out := make([]int64, len(c.claims))
		Share(c.total, c.claims, out)
		for i := range out {
			if d := out[i] - c.want[i]; d < -1 || d > 1 {
				t.Errorf("%s: %v, want %v", c.name, out, c.want)
				break
			}
		}
	}
}

// TestShareAtRandom: never more than there is, never more than wanted, nothing left over while somebody wants more, nobody without anything.
func TestShareAtRandom(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	for range 20_000 {
		claims := make([]Claim, 1+rng.IntN(30))
		want := int64(0)
		for i := range claims {
			claims[i] = Claim{Class(rng.IntN(classes + 1)), rng.Int64N(1 << uint(1+rng.IntN(40)))}
			if rng.IntN(3) == 0 {
				claims[i].Want = Unlimited
			}
			if claims[i].Class > 0 && want >= 0 {
				want += claims[i].Want
			}
		}
		total := 1_000_000 + rng.Int64N(1<<34)
		out := make([]int64, len(claims))
		Share(total, claims, out)
		sum := int64(0)
		for i, n := range out {
			sum += n
			if n < 0 || n > claims[i].Want || claims[i].Class == 0 && n > 0 {
				t.Fatalf("%+v of %d: %d", claims[i], total, n)
			}
			if n == 0 && claims[i].Want > 0 && claims[i].Class > 0 {
				t.Fatalf("%+v of %d gets nothing: %v %v", claims[i], total, claims, out)
			}
		}
		if want < 0 {
			want = Unlimited
		}
		if most := min(total, want); sum > total || most-sum > int64(3*len(claims)) {
			t.Fatalf("%d of %d given, %d wanted", sum, total, want)
		}
	}
}

// TestLedger: while a line is taken from many for a cutover, leases that are in use never add up to more than the line has.
func TestLedger(t *testing.T) {
	g := NewLedger[int]()
	now := time.Unix(1000, 0)
	const total = 200 * mbit
	held := map[int]int64{} // what each holder really uses
	told := map[int]Lease{} // on its way to him
	asks := map[int]Ask{}   // what he says next
	var inUse, most int64
	step := func() {
		for k, a := range asks {
			g.Ask(now, k, a)
		}
		g.Share(now, Allowance{Rate: total, Frozen: total}, func(k int, l Lease) { told[k] = l })
		inUse = 0
		for _, r := range held {
			inUse += r
		}
		most = max(most, inUse)
	}
	take := func(k int) { // k takes over what he was told
		held[k] = told[k].Rate
		a := asks[k]
		a.Serial = told[k].Serial
		asks[k] = a
	}
	for k := range 20 {
		asks[k] = Ask{Class: Bulk, Want: Unlimited}
	}
	rng := rand.New(rand.NewPCG(7, 7))
	for range 50 {
		now = now.Add(100 * time.Millisecond)
		step()
		for k := range 20 {
			if rng.IntN(3) > 0 { // not everybody at once
				take(k)
			}
		}
	}
	if inUse < total*99/100 {
		t.Errorf("%d of %d are used", inUse, total)
	}
	asks[20] = Ask{Class: Cutover, Want: Unlimited}
	began := now
	for held[20] < total*85/100 {
		now = now.Add(100 * time.Millisecond)
		step()
		for k := range 21 {
			take(k)
		}
		if now.Sub(began) > 5*time.Second {
			t.Fatalf("the cutover has %d", held[20])
		}
	}
	if d := now.Sub(began); d > 500*time.Millisecond {
		t.Errorf("the cutover waited %v", d)
	}
	if most > total {
		t.Errorf("%d were in use of %d", most, total)
	}
	// One that is stuck says nothing: what he had is free after a while.
	delete(asks, 20)
	for k := range 20 {
		asks[k] = Ask{Class: Bulk, Want: Unlimited, Serial: asks[k].Serial}
	}
	for range 40 {
		now = now.Add(100 * time.Millisecond)
		step()
		for k := range 20 {
			take(k)
		}
	}
	delete(held, 20)
	step()
	if inUse < total*99/100 {
		t.Errorf("%d of %d are used after one is gone", inUse, total)
	}
}

// TestPacer: senders together keep to the rate, whatever their number, and use all of it.
func TestPacer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const rate = 10 * mbit
		p := NewPacer(mbit)
		p.Grant(rate, time.Now().Add(time.Hour), 1)
		done := make(chan struct{})
		var sent [4]int64
		for i := range sent {
			go func() {
				for first := true; ; first = !first {
					if first {
						p.Ready(done)
					}
					p.Wait(done, 64<<10)
					select {
					case <-done:
						return
					default:
						sent[i] += 64 << 10
					}
				}
			}()
		}
		time.Sleep(10*time.Second + time.Microsecond)
		n, limited, serial := p.Look()
		if !limited || serial != 1 || n < 10*rate*99/100 || n > 10*rate+2*64<<10 {
			t.Errorf("%d bytes in 10 s at %d, limited %v, serial %d", n, rate, limited, serial)
		}
		// None begins at 0, those that have begun end.
		p.Grant(0, time.Now().Add(20*time.Second), 2)
		time.Sleep(19 * time.Second)
		n, _, _ = p.Look()
		if n > 8*64<<10 {
			t.Errorf("%d bytes without a rate", n)
		}
		// A lease that ended leaves the safe rate.
		time.Sleep(time.Second)
		p.Look()
		time.Sleep(10 * time.Second)
		if n, _, _ = p.Look(); n < 10*mbit-128<<10 || n > 10*mbit+128<<10 {
			t.Errorf("%d bytes in 10 s at the safe rate %d", n, mbit)
		}
		if r, leased := p.Rate(); r != mbit || leased {
			t.Errorf("rate %d, leased %v", r, leased)
		}
		close(done)
		synctest.Wait()
	})
}
