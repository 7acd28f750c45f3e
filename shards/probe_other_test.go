//go:build !linux

package shards_test

import "os"

func datasync(f *os.File) error { return f.Sync() }
