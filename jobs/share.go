package jobs

import "sync"

// shares count a runner's leased jobs by what they share.
type shares struct {
	mu     sync.Mutex  // guards what follows; a leaf
	leased map[any]int // those with none are not in it
	wanted map[any]int // more would have been leased: look again when no more than this many are
}

// shareBatch: when a part of a share in so many has become free, who was kept out is looked at again. Each look costs a
// transaction, and is to find more than one job.
const shareBatch = 4

// room is what may still be taken of a share in one call of take. nil: as much as there is.
type room struct {
	of    any
	left  int
	short bool // more was asked for than there is

	pass, lines, each int // the lines that have their turn in a pass, and the part of each
}

// noRoom is the room of a tenant that is not ready.
var noRoom = &room{}

func (r *room) full() bool {
	if r == nil || r.left > 0 {
		return false
	}
	if r != noRoom {
		r.short = true
	}
	return true
}

// enter notes a line that has its turn in a pass.
func (r *room) enter(pass int) {
	if r == nil {
		return
	}
	if r.pass != pass {
		r.pass, r.lines = pass, 0
	}
	r.lines++
	r.each = max(r.left/r.lines, 1)
}

// part is what a line may take of share jobs, so that others with the same room have their turn too.
func (r *room) part(share int) int {
	if r == nil {
		return share
	}
	return min(share, r.each)
}

func (r *room) take(le *lease) {
	if r != nil {
		r.left--
		le.share = r.of
	}
}

// asking is one call of take: tenants that share have one room.
type asking struct {
	shares *shares
	rooms  map[any]*room
	most   map[any]int
}

func (s *shares) ask() *asking { return &asking{s, map[any]*room{}, map[any]int{}} }

// room is what is left of a share of which most jobs may be leased.
func (a *asking) room(of any, most int) *room {
	if r := a.rooms[of]; r != nil {
		return r
	}
	a.shares.mu.Lock()
	defer a.shares.mu.Unlock()
	r := &room{of: of, left: max(most-a.shares.leased[of], 0)}
	a.rooms[of], a.most[of] = r, most
	return r
}

// took counts what was leased, and notes of what more is wanted. again: there is room for more already.
func (a *asking) took(les []*lease) (again bool) {
	s := a.shares
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.leased == nil {
		s.leased, s.wanted = map[any]int{}, map[any]int{}
	}
	for _, le := range les {
		if le.share != nil {
			s.leased[le.share]++
		}
	}
	for of, r := range a.rooms {
		delete(s.wanted, of)
		if !r.short {
			continue
		}
		enough := max(a.most[of]-max(a.most[of]/shareBatch, 1), 0)
		s.wanted[of] = enough
		again = again || a.most[of] > 0 && s.leased[of] <= enough
	}
	return again
}

// give counts a job that is over. again: those that were kept out are worth another look.
func (s *shares) give(of any) (again bool) {
	if of == nil {
		return false
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.leased[of]--; s.leased[of] == 0 {
		delete(s.leased, of)
	}
	enough, wanted := s.wanted[of]
	if !wanted || s.leased[of] > enough {
		return false
	}
	delete(s.wanted, of)
	return true
}
