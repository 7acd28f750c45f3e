package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/user"
	"syscall"

	"github.com/alecthomas/kong"

	"tenderbox/ledger"
	"tenderbox/tenants"
)

// rekeyCommand seals a stopped box anew under a new key.
type rekeyCommand struct {
	Data       string `type:"path" default:"./tenderbox-data" help:"The box's data folder."`
	ConfigFile string `name:"config" type:"path" placeholder:"FILE" help:"Settings file (default DATA/tenderbox.toml, if it exists)."`
	KeyFile    string `type:"path" placeholder:"FILE" help:"Keys of the box (default DATA/box.key). It is replaced: name the file that a credential is loaded from."`
	New        bool   `help:"Adds a key even if the last rekey was not finished, or --forget-old alone would add none."`
	ForgetOld  bool   `help:"Drops older keys once nothing in the folder is under them. Copies of the folder from before cannot be opened any more. Without --new no key is added."`
}

func (rekeyCommand) Help() string {
	return `Stop the box first. Adds a key to the key file and seals card tokens, upstream keys and webhook secrets anew under it.
Interrupted, run it again: it goes on with the same key. Older keys stay in the file, for copies of the folder from before,
until --forget-old; the first stays for ever, because the journals are chained by it. Back the key file up afterwards.

Example:

    tenderbox rekey --data /var/lib/tenderbox
`
}

// BeforeResolve lets the box's settings file say where its key is.
func (c *rekeyCommand) BeforeResolve(ctx *kong.Context) error {
	return loadSettings(ctx, serveFlags(ctx))
}

func (c *rekeyCommand) Run(t *terminal) error {
	r := &rekey{config: &Config{Data: c.Data, KeyFile: c.KeyFile}, add: c.New, forgetOld: c.ForgetOld, out: t.stdout}
	findings, err := r.run(t.ctx)
	for _, finding := range findings {
		fmt.Fprintln(t.stdout, oneLine(finding))
	}
	switch {
	case errors.Is(err, context.Canceled):
		return hint(errors.New("interrupted; what was sealed anew stays so"), "run `tenderbox rekey` again to go on")
	case err != nil:
		return explain(err)
	case len(findings) > 0:
		return hint(errors.New("not everything could be sealed anew; older keys are kept"), "`tenderbox check` says more; then run `tenderbox rekey` again")
	}
	return nil
}

// rekey is one run of the command.
type rekey struct {
	config         *Config
	add, forgetOld bool
	out            io.Writer
	batch          int              // of ledger.Reseal; 0: its own
	progress       func(sealed int) // told after each transaction; nil: nobody
}

// run does it. The order makes each step safe to be the last one: a key is in its file before it seals, box.db asks for a key only
// while the file has it, and a key is dropped only after everything was opened without it.
func (r *rekey) run(ctx context.Context) (findings []string, err error) {
	if found, err := exists(r.config.path(boxFile)); err != nil {
		return nil, err
	} else if !found {
		return nil, hint(fmt.Errorf("%s holds no box", r.config.Data), "name the box's folder with --data")
	}
	if err := ownFolder(r.config.Data, os.Geteuid()); err != nil {
		return nil, err
	}
	file, credential, err := r.config.keyFile()
	if err != nil {
		return nil, err
	}
	if credential {
		return nil, hint(fmt.Errorf("%s is a credential of the service manager's, which cannot be replaced here", file), "name the file that it is loaded from with --key-file")
	}
	keyring, err := tenants.LoadKeyring(file)
	if err != nil {
		return nil, hint(err, "name the box's key with --key-file")
	}
	// Its lock keeps a box from running here until the end, when all that is said below is true.
	boxStore, alarm, err := tenants.OpenFile(r.config.path(boxFile))
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, boxStore.Close()) }()
	if alarm != "" {
		fmt.Fprintln(r.out, oneLine(alarm))
	}
	// With the keys as they are: a wrong file is refused before anything is added to it.
	registry, err := tenants.Open(boxStore, keyring, tenants.Options{})
	if err != nil {
		return nil, err
	}
	if !registry.KeysKept() {
		return nil, hint(fmt.Errorf("nothing in %s shows yet that %s is its key", r.config.Data, file), "start the box once with this version, stop it, and run `tenderbox rekey` again")
	}
	if r.add || !r.forgetOld && !keyring.Resealing() {
		if keyring, err = keyring.AddKey(); err != nil {
			return nil, err
		}
		fmt.Fprintf(r.out, "added key %s to %s\n", keyring.Newest(), file)
		if registry, err = tenants.Open(boxStore, keyring, tenants.Options{}); err != nil {
			return nil, err
		}
	}
	sealed, findings, err := r.reseal(ctx, registry, keyring)
	if err != nil || len(findings) > 0 {
		return findings, err
	}
	fmt.Fprintf(r.out, "sealed %d values anew with key %s\n", sealed, keyring.Newest())
	return nil, r.finish(ctx, registry, keyring)
}

// ownFolder refuses to write into another user's folder, as root could: what it leaves there the box could not read.
func ownFolder(dir string, uid int) error {
	info, err := os.Stat(dir)
	if err != nil {
		return err
	}
	stat, ok := info.Sys().(*syscall.Stat_t)
	if !ok || int(stat.Uid) == uid {
		return nil
	}
	name := fmt.Sprintf("'#%d'", stat.Uid)
	if owner, err := user.LookupId(fmt.Sprint(stat.Uid)); err == nil {
		name = owner.Username
	}
	return hint(fmt.Errorf("%s belongs to another user", dir), "run this as the box's user: sudo -u "+name+" tenderbox rekey …")
}

// reseal goes through everything twice: the second time shows that nothing is left.
func (r *rekey) reseal(ctx context.Context, registry *tenants.Registry, keyring *tenants.Keyring) (sealed int, findings []string, err error) {
	for _, last := range []bool{false, true} {
		n, err := registry.Reseal(ctx, r.progress)
		if errors.Is(err, tenants.ErrSealed) {
			findings = append(findings, r.config.path(boxFile)+": "+err.Error())
		} else if err != nil {
			return sealed, findings, err
		}
		m, err := r.resealShards(ctx, keyring, &findings)
		if err != nil || len(findings) > 0 {
			return sealed, findings, err
		}
		if last && n+m > 0 {
			return sealed, findings, fmt.Errorf("%d values were sealed with another key meanwhile", n+m)
		}
		sealed += n + m
		keyring = keyring.WithoutOld() // what does not open with the newest alone is found by that
	}
	return sealed, findings, nil
}

func (r *rekey) resealShards(ctx context.Context, keyring *tenants.Keyring, findings *[]string) (int, error) {
	// A box whose first start was refused half-way has none, and is not given any here.
	if found, err := exists(r.config.path(shardsFolder)); err != nil || !found {
		return 0, err
	}
	n, found, err := ledger.Reseal(ctx, ledger.ResealOptions{Dir: r.config.path(shardsFolder), Keyring: keyring, BatchMax: r.batch, Progress: r.progress})
	for _, f := range found {
		*findings = append(*findings, f.String())
	}
	return n, err
}

// finish notes that the newest key has sealed everything, and drops the older ones if that is wanted.
func (r *rekey) finish(ctx context.Context, registry *tenants.Registry, keyring *tenants.Keyring) error {
	old, file := keyring.OldKeys(), keyring.Path()
	switch {
	case old == 0:
		fmt.Fprintln(r.out, "there is no older key")
	case r.forgetOld:
		if err := registry.Forget(ctx); err != nil {
			return err
		}
		if _, err := keyring.ForgetOld(); err != nil {
			return err
		}
		fmt.Fprintf(r.out, "forgot older keys (%d); copies of the folder from before cannot be opened any more\n", old)
	default:
		if _, err := keyring.Resealed(); err != nil {
			return err
		}
		fmt.Fprintf(r.out, "kept older keys (%d) for copies of the folder from before; --forget-old drops them\n", old)
	}
	// Last: the lock is the old file's, and a box may start on the new one.
	if err := registry.Compact(); err != nil {
		return err
	}
	fmt.Fprintf(r.out, "back up %s, apart from the folder\n", file)
	return nil
}
