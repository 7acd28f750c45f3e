package powercut

import (
	"cmp"
	"maps"
	"math/rand/v2"
	"slices"
	"time"
)

// node is a file or a folder. Which names lead to it stands in the folders.
type node struct {
	number uint64
	name   string // one that it had, for the rules that go by name
	folder bool
	mode   uint32 // with its type; kept without a sync
	time   time.Time
	links  uint32 // names that programs see

	content                  // of a file
	names   map[string]*node // of a folder, as programs see it
	stable  map[string]*node // of a folder, as the disk holds it
}

// place is a name in a folder.
type place struct {
	folder *node
	name   string
}

// step is a change of names that happens as a whole or not at all.
type step map[place]*node // nil: the name is gone

// Discipline is when a file system makes names durable.
type Discipline int

const (
	// Strict is the letter of POSIX: a name is durable when its folder was synced, and until then each may be lost on its own.
	Strict Discipline = iota
	// Journal is what ext4, XFS and Btrfs do: changes of names stand in one journal, in order. To sync a file that is new or has
	// another size, or any folder, writes all of the journal.
	Journal
	disciplines
)

// tree is a folder with all that is below it.
type tree struct {
	discipline Discipline
	root       *node
	nodes      map[uint64]*node
	last       uint64 // number given
	steps      []step // changes of names that are not durable, in order
}

func newTree() *tree {
	t := &tree{nodes: map[uint64]*node{}}
	t.root = t.make("", true, 0o700)
	t.root.links = 1
	return t
}

func (t *tree) make(name string, folder bool, mode uint32) *node {
	t.last++
	n := &node{number: t.last, name: name, folder: folder, mode: mode, time: time.Now()}
	if folder {
		n.names, n.stable = map[string]*node{}, map[string]*node{}
	}
	t.nodes[n.number] = n
	return n
}

// change does a step, for programs to see.
func (t *tree) change(s step) {
	for at, n := range s {
		if was := at.folder.names[at.name]; was != nil {
			was.links--
		}
		if n == nil {
			delete(at.folder.names, at.name)
			continue
		}
		n.links++
		n.name = at.name
		at.folder.names[at.name] = n
	}
	t.steps = append(t.steps, s)
}

// syncNames makes names durable: all of them, or the folder's and what those rest on (what happened to the same names before, and to the
// other names of the same steps).
func (t *tree) syncNames(folder *node) {
	needed, chosen := map[place]bool{}, map[int]bool{}
	for i := len(t.steps) - 1; i >= 0; i-- {
		for at := range t.steps[i] {
			if t.discipline == Journal || at.folder == folder || needed[at] {
				chosen[i] = true
			}
		}
		if chosen[i] {
			for at := range t.steps[i] {
				needed[at] = true
			}
		}
	}
	var rest []step
	for i, s := range t.steps {
		if chosen[i] {
			s.settle()
		} else {
			rest = append(rest, s)
		}
	}
	t.steps = rest
}

// settle puts a step on the disk.
func (s step) settle() {
	for at, n := range s {
		if n == nil {
			delete(at.folder.stable, at.name)
		} else {
			at.folder.stable[at.name] = n
		}
	}
}

// renamed tells whether what happened to the node's names is not durable.
func (t *tree) renamed(n *node) bool {
	for _, s := range t.steps {
		for _, to := range s {
			if to == n {
				return true
			}
		}
	}
	return false
}

// keeps are the chances that a step of names is on the disk although nobody synced it.
var keeps = []float64{0, 0.5, 0.9, 1}

// strikeNames takes the power away: a part of the changes is left, at its discipline's choice. A step is lost if one that it rests on is.
func (t *tree) strikeNames(random *rand.Rand) (lost, kept int64) {
	gone := map[place]bool{}
	keep, first := keeps[random.IntN(len(keeps))], random.IntN(len(t.steps)+1)
	for i, s := range t.steps {
		survives := random.Float64() < keep
		if t.discipline == Journal {
			survives = i < first
		}
		for at := range s {
			survives = survives && !gone[at]
		}
		if survives {
			s.settle()
			kept++
			continue
		}
		for at := range s {
			gone[at] = true
		}
		lost++
	}
	t.steps = nil
	return lost, kept
}

// rise makes what the disk holds what programs see, and forgets what no name leads to. It returns all that is left, oldest first.
func (t *tree) rise() []*node {
	t.nodes = map[uint64]*node{t.root.number: t.root}
	all := []*node{t.root}
	for i := 0; i < len(all); i++ {
		all[i].links = 0
		for _, below := range all[i].stable {
			if t.nodes[below.number] == nil {
				t.nodes[below.number] = below
				all = append(all, below)
			}
		}
	}
	t.root.links = 1
	for _, n := range all {
		n.names = maps.Clone(n.stable)
		for _, below := range n.names {
			below.links++
		}
	}
	slices.SortFunc(all, func(a, b *node) int { return cmp.Compare(a.number, b.number) })
	return all
}
