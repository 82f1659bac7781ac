package shape

// Claim is what one flow wants of a line.
type Claim struct {
	Class Class
	Want  int64 // bytes/s; Unlimited: all that it can get; 0: nothing
}

// lower is the part of the rest that goes to lower classes, as long as they want it: a higher class goes first, but nobody starves.
const lower = 0.1

// Share divides total among claims and writes it to out, which has the length of claims. Higher classes go first, but leave a tenth of what they
// find to those below; within a class everybody gets the same, or less if he wants less. What one leaves goes to the others. The sum of
// out is at most total.
func Share(total int64, claims []Claim, out []int64) {
	clear(out)
	rest := total
	for c := Class(classes); c >= Bulk; c-- {
		below := wanted(claims, func(o Class) bool { return o >= Bulk && o < c })
		keep := min(below, int64(float64(rest)*lower))
		rest -= fill(rest-keep, claims, c, out)
	}
}

// wanted sums up, without overflow.
func wanted(claims []Claim, of func(Class) bool) (sum int64) {
	for _, c := range claims {
		if of(c.Class) {
			if sum += c.Want; sum < 0 || c.Want == Unlimited {
				return Unlimited
			}
		}
	}
	return sum
}

// fill gives the flows of class c the same level of water, at most what each wants, and returns what that takes.
func fill(total int64, claims []Claim, c Class, out []int64) (used int64) {
	open := 0
	for i := range claims {
		if claims[i].Class == c && claims[i].Want > 0 {
			open++
		}
	}
	for open > 0 && total-used >= int64(open) {
		level := (total - used) / int64(open)
		open = 0
		for i := range claims {
			if claims[i].Class != c || out[i] >= claims[i].Want {
				continue
			}
			give := min(level, claims[i].Want-out[i])
			out[i] += give
			used += give
			if out[i] < claims[i].Want {
				open++
			}
		}
	}
	return used
}
