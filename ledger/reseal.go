package ledger

import (
	"cmp"
	"context"
	"fmt"

	"tenderbox/shards"
	"tenderbox/tenants"
)

// resealDefault values are looked at in one transaction. Bodies take some hundred bytes to a few KiB: it bounds the WAL and the memory.
const resealDefault = 256

// ResealOptions name the shards of a stopped box, and the keyring whose newest key is to seal them.
type ResealOptions struct {
	Dir      string
	Keyring  *tenants.Keyring
	BatchMax int              // values that are looked at in one transaction; 0: 256
	Progress func(sealed int) // told after each transaction that sealed values anew; nil: nobody
}

// sealedColumn is where sealed values stand. read goes through them in the order of the key, from behind one, and answers three
// texts and the value; write takes the value and the key.
type sealedColumn struct {
	read, write string
	keys        int // columns of the key
	record      func(key [3]string) string
}

var sealedColumns = []sealedColumn{
	{`SELECT /* box */ tenant, id, '', source FROM payments WHERE (tenant, id) > (?, ?) AND source IS NOT NULL ORDER BY tenant, id LIMIT ?`,
		`UPDATE payments SET source = ? WHERE tenant = ? AND id = ?`, 2,
		func(k [3]string) string { return sourceRecord(tenants.ID(k[0]), PaymentID(k[1])) }},
	{`SELECT /* box */ tenant, record, upstream_key, body FROM sends WHERE (tenant, record, upstream_key) > (?, ?, ?) AND body IS NOT NULL
		ORDER BY tenant, record, upstream_key LIMIT ?`,
		`UPDATE sends SET body = ? WHERE tenant = ? AND record = ? AND upstream_key = ?`, 3,
		func(k [3]string) string { return sendRecord(tenants.ID(k[0]), k[1], k[2]) }},
}

// Reseal seals with the newest key what stands in the shards under older ones: sources, and the bytes that are sent upstream. It opens
// every sealed value; what does not open, or cannot be read, is a finding, and the rest is done. What was done until an interruption stays
// done, and running it again does the rest: once that returns 0 and no findings, older keys are not needed here any more.
func Reseal(ctx context.Context, o ResealOptions) (sealed int, findings []Finding, err error) {
	// Erase: what the older keys sealed shall not stay behind in the unused parts of pages.
	set, err := shards.Open(ctx, o.Dir, shards.Options{Migrations: migrations, Erase: true})
	if err != nil {
		return 0, nil, err
	}
	defer func() {
		if cerr := set.Close(); err == nil {
			err = cerr
		}
	}()
	for _, sh := range set.All() {
		for _, column := range sealedColumns {
			n, bad, err := column.reseal(ctx, sh, &o)
			sealed += n
			findings = append(findings, bad...)
			if err != nil && sh.Err() == nil {
				return sealed, findings, err
			}
		}
		if err := sh.Err(); err != nil {
			findings = append(findings, Finding{sh.Path(), fmt.Sprintf("is out of service: %v", err)})
		}
	}
	return sealed, findings, nil
}

func (c *sealedColumn) reseal(ctx context.Context, sh *shards.Shard, o *ResealOptions) (total int, findings []Finding, err error) {
	var from [3]string
	batch := cmp.Or(o.BatchMax, resealDefault)
	for rows := batch; rows == batch; {
		var sealed int
		var bad []Finding
		var last [3]string
		err := sh.Update(ctx, func(tx *shards.Tx) error {
			sealed, bad, rows, last = 0, nil, 0, from // a closure may run twice
			type change struct {
				key   [3]string
				value []byte
			}
			var changes []change
			found, err := tx.Query(c.read, append(c.args(from), batch)...)
			if err != nil {
				return err
			}
			defer found.Close()
			for found.Next() {
				var value []byte
				if err := found.Scan(&last[0], &last[1], &last[2], &value); err != nil {
					return err
				}
				rows++
				fresh, changed, err := o.Keyring.Reseal(c.record(last), value)
				if err != nil {
					bad = append(bad, Finding{sh.Path(), fmt.Sprintf("%s: %v", c.record(last), err)})
				} else if changed {
					changes = append(changes, change{last, fresh})
				}
			}
			if err := found.Err(); err != nil {
				return err
			}
			for _, change := range changes {
				if _, err := tx.Exec(c.write, append([]any{change.value}, c.args(change.key)...)...); err != nil {
					return err
				}
				sealed++
			}
			return nil
		})
		if err != nil {
			return total, findings, err
		}
		from = last
		total += sealed
		findings = append(findings, bad...)
		if sealed > 0 && o.Progress != nil {
			o.Progress(sealed)
		}
		if err := ctx.Err(); err != nil {
			return total, findings, err
		}
	}
	return total, findings, nil
}

func (c *sealedColumn) args(key [3]string) []any {
	args := make([]any, 0, c.keys+1)
	for _, k := range key[:c.keys] {
		args = append(args, k)
	}
	return args
}
