package ledger

import (
	"fmt"
	"strings"
	"sync"

	"tenderbox/shards"
)

// insert stores many rows of one table with few statements: a statement for
// many rows costs a fraction of one for each.
type insert struct {
	columns int
	args    sync.Pool                 // *[]any, for a chunk
	texts   [len(insertChunks)]string // by chunk
}

// insertChunks are the row counts of the statements in use, largest first: few
// distinct texts, so that all stay prepared.
var insertChunks = [...]int{64, 32, 16, 8, 4, 2, 1}

// newInsert takes the text up to VALUES, and one row of values with its placeholders.
func newInsert(head, row string) *insert {
	in := &insert{columns: strings.Count(row, "?")}
	in.args.New = func() any { args := make([]any, 0, in.columns*insertChunks[0]); return &args }
	for i, n := range insertChunks {
		in.texts[i] = head + " VALUES " + strings.TrimSuffix(strings.Repeat(row+",", n), ",")
	}
	return in
}

// exec stores n rows; bind appends the values of the ith.
func (in *insert) exec(tx *shards.Tx, n int, bind func(args []any, i int) []any) error {
	pooled := in.args.Get().(*[]any)
	defer in.args.Put(pooled)
	args, done := *pooled, 0
	for chunk, size := range insertChunks {
		for n-done >= size {
			args = args[:0]
			for i := range size {
				args = bind(args, done+i)
			}
			if len(args) != in.columns*size {
				return fmt.Errorf("ledger: %d values for %d columns of %d rows", len(args), in.columns, size)
			}
			_, err := tx.Exec(in.texts[chunk], args...)
			clear(args) // what is kept for the next group keeps nothing of this one
			if err != nil {
				return err
			}
			done += size
		}
	}
	return nil
}
