package main

import (
	"errors"
	"io/fs"

	"tenderbox/shards"
	"tenderbox/store"
	"tenderbox/tenants"
)

// explain adds to an error of opening a box what the operator can do about it.
func explain(err error) error {
	var (
		mismatch *shards.MismatchError
		corrupt  *store.CorruptError
	)
	switch {
	case errors.Is(err, store.ErrLocked), errors.Is(err, shards.ErrLocked):
		return hint(err, "a box is running on this folder; stop it, or name another folder with --data")
	case errors.As(err, &mismatch):
		return hint(err, "nothing was changed")
	case errors.As(err, &corrupt):
		return hint(err, "nothing was deleted; `tenderbox check` says more")
	case errors.Is(err, store.ErrFull), errors.Is(err, shards.ErrFull):
		return hint(err, "make room on the disk and start again")
	case errors.Is(err, tenants.ErrKeyFile), errors.Is(err, tenants.ErrSealed):
		return hint(err, "nothing was changed; put the box's own key file there, or name it with --key-file")
	case errors.Is(err, fs.ErrPermission):
		return hint(err, "run the box as the user who owns the data folder")
	}
	return err
}
