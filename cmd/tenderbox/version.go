package main

import (
	"fmt"
	"runtime"
	"runtime/debug"
)

type versionCommand struct{}

func (versionCommand) Help() string {
	return "Example:\n\n    tenderbox version\n"
}

// Run prints what a report of a fault should begin with.
func (versionCommand) Run(t *terminal) error {
	fmt.Fprintf(t.stdout, "tenderbox %s (commit %s)\n%s %s/%s\n", version, commit, runtime.Version(), runtime.GOOS, runtime.GOARCH)
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return nil
	}
	for _, m := range info.Deps {
		fmt.Fprintf(t.stdout, "%s %s\n", m.Path, m.Version)
	}
	return nil
}
