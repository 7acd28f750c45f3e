//go:build !linux

package shards

import "os"

// allocate makes a file take up space.
func allocate(f *os.File, size int64) error { return zeros(f, size) }
