package ledger

import (
	"context"
	"encoding/base64"
	"fmt"
	"slices"
	"strings"
	"sync"

	"tenderbox/shards"
)

const (
	pageDefault = 20
	pageMax     = 100
)

// pageLimit is how many records a page holds that was asked for with n; 0: the default.
func pageLimit(n int) (int, error) {
	if n == 0 {
		return pageDefault, nil
	}
	if n < 1 || n > pageMax {
		return 0, invalid("limit_invalid", "limit", fmt.Sprintf("must be from 1 to %d", pageMax))
	}
	return n, nil
}

// pageCursor is the id behind which a list goes on. It selects within the asking
// tenant's own range, whatever is written in it; valid knows an id's form.
func pageCursor(cursor string, valid func(id string) bool) (before string, err error) {
	if cursor == "" {
		return "", nil
	}
	b, err := base64.RawURLEncoding.Strict().DecodeString(cursor)
	if err != nil || !valid(string(b)) {
		return "", invalid("cursor_invalid", "cursor", "use next_cursor of the page before")
	}
	return string(b), nil
}

// cutPage cuts records, one more than limit if there are more, to a page, and tells the cursor of the next; "": there is none.
func cutPage[T any](all []T, limit int, id func(T) string) (page []T, next string) {
	if len(all) <= limit {
		return all, ""
	}
	return all[:limit], base64.RawURLEncoding.EncodeToString([]byte(id(all[limit-1])))
}

// gather asks every file the same and merges the answers, newest first, which is
// the order of ids from the highest. Any failure fails all.
func gather[T any](ctx context.Context, files []*shards.Shard, scan func(scanner) (T, error), id func(T) string, query string, args ...any) ([]T, error) {
	var mu sync.Mutex // guards all
	var all []T
	err := each(ctx, files, func(_ context.Context, tx *shards.Tx) error {
		rows, err := tx.Query(query, args...)
		if err != nil {
			return err
		}
		defer rows.Close()
		for rows.Next() {
			record, err := scan(rows)
			if err != nil {
				return err
			}
			mu.Lock()
			all = append(all, record)
			mu.Unlock()
		}
		return rows.Err()
	})
	if err != nil {
		return nil, unavailable(err)
	}
	slices.SortFunc(all, func(a, b T) int { return strings.Compare(id(b), id(a)) })
	return all, nil
}
