package main

import (
	"errors"
	"fmt"
	"io/fs"

	"tenderbox/shards"
)

// newEpochCommand tells a stopped box that its folder is a copy, or was restored.
type newEpochCommand struct {
	Data string `type:"path" default:"./tenderbox-data" help:"The box's data folder."`
}

func (newEpochCommand) Help() string {
	return `For a folder that was put back from a backup, a snapshot or a disk image. The box sees by itself that its folder
was copied, but not that the disk below it was. It then looks up at the processor what is not settled before it sends it.
Stop the box first. Saying it once too often does no harm.

Example:

    tenderbox new-epoch --data /var/lib/tenderbox
`
}

func (c *newEpochCommand) Run(t *terminal) error {
	config := Config{Data: c.Data}
	epoch, err := shards.NewEpoch(config.path(shardsFolder))
	if errors.Is(err, fs.ErrNotExist) {
		return hint(fmt.Errorf("%s holds no box", c.Data), "name the box's folder with --data")
	}
	if err != nil {
		return explain(err)
	}
	fmt.Fprintf(t.stdout, "epoch %d: what is not settled is looked up before it is sent\n", epoch)
	return nil
}
