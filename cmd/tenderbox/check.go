package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/alecthomas/kong"

	"tenderbox/jobs"
	"tenderbox/ledger"
	"tenderbox/store"
	"tenderbox/tenants"
)

// checkCommand audits a stopped box.
type checkCommand struct {
	Data       string `type:"path" default:"./tenderbox-data" help:"The box's data folder."`
	ConfigFile string `name:"config" type:"path" placeholder:"FILE" help:"Settings file (default DATA/tenderbox.toml, if it exists)."`
	KeyFile    string `type:"path" placeholder:"FILE" help:"Keys of the box (default: as for serve)."`
}

func (checkCommand) Help() string {
	return `Stop the box first. Nothing is changed. Findings are printed one a line, and the exit status is then 1.

Example:

    tenderbox check --data /var/lib/tenderbox
`
}

// BeforeResolve lets the box's settings file say where its key is.
func (c *checkCommand) BeforeResolve(ctx *kong.Context) error {
	return loadSettings(ctx, serveFlags(ctx))
}

func (c *checkCommand) Run(t *terminal) error {
	config := Config{Data: c.Data, KeyFile: c.KeyFile}
	findings, err := audit(t.ctx, &config)
	if err != nil {
		return explain(err)
	}
	for _, finding := range findings {
		fmt.Fprintln(t.stdout, oneLine(finding.String()))
	}
	if len(findings) > 0 {
		return &exitError{exitFailed}
	}
	fmt.Fprintf(t.stdout, "%s is sound\n", c.Data)
	return nil
}

// audit looks at every file of a stopped box. box.db and jobs.db are read in copies, for their engines
// know no way to read without writing; the originals are only checked.
func audit(ctx context.Context, c *Config) (_ []ledger.Finding, err error) {
	found, err := exists(c.path(boxFile))
	if err != nil {
		return nil, err
	}
	if !found {
		return nil, hint(fmt.Errorf("%s holds no box", c.Data), "name the box's folder with --data")
	}
	keyring, err := loadKeyring(c)
	if err != nil {
		return nil, hint(err, "name the box's key with --key-file")
	}
	scratch, err := os.MkdirTemp("", "tenderbox-check-")
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(scratch)) }()

	var findings []ledger.Finding
	// boxFile first: its lock tells that a box is running.
	copies := map[string]*store.Store{}
	for _, name := range []string{boxFile, jobsFile} {
		damage, err := checkFile(c.path(name))
		if err != nil {
			return nil, err
		}
		if damage != nil {
			findings = append(findings, ledger.Finding{Where: c.path(name), What: damage.Error()})
		} else if name == jobsFile {
			// What stands in whole pages may still be wrong: neither store nor engine would see it before its turn comes.
			records, err := jobs.Audit(c.path(name))
			if err != nil {
				return nil, err
			}
			for _, r := range records {
				findings = append(findings, ledger.Finding{Where: c.path(name), What: r})
			}
		}
		st, err := openCopy(c.path(name), filepath.Join(scratch, name), damage != nil)
		if err != nil {
			return nil, err
		}
		defer func() { err = errors.Join(err, st.Close()) }()
		copies[name] = st
	}
	registry, err := tenants.Open(copies[boxFile], keyring, tenants.Options{})
	if err != nil {
		return nil, err
	}
	engine, err := jobs.Open(copies[jobsFile], jobs.Options{Queues: queues})
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, engine.Close()) }()
	more, err := ledger.Check(ctx, ledger.CheckOptions{
		Dir: c.path(shardsFolder), Keyring: keyring, Tenants: registry.List(), Jobs: engine,
	})
	return append(findings, more...), err
}

// checkFile checks a bbolt file where it stands. damage is what is wrong with it; err says that it could
// not be looked at.
func checkFile(file string) (damage, err error) {
	err = store.CheckFile(file)
	var corrupt *store.CorruptError
	switch {
	case errors.As(err, &corrupt):
		return corrupt, nil
	case errors.Is(err, fs.ErrNotExist):
		return errors.New("is missing"), nil
	}
	return nil, err
}

// openCopy opens a copy of file, or an empty store in the place of one that cannot be read.
func openCopy(file, to string, damaged bool) (*store.Store, error) {
	if !damaged {
		if err := copyFile(file, to); err != nil {
			return nil, err
		}
	}
	return store.Open(to, store.Options{})
}

func copyFile(from, to string) (err error) {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.OpenFile(to, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, out.Close()) }()
	_, err = io.Copy(out, in)
	return err
}
