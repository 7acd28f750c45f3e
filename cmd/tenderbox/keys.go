package main

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"

	"tenderbox/tenants"
)

const (
	// boxKeyFile is the key file in a data folder.
	boxKeyFile = "box.key"
	// keyCredential is the key file's name among the service manager's credentials (systemd's LoadCredential=).
	keyCredential = "tenderbox.key"
	// credentialsVariable is where systemd says which folder holds them.
	credentialsVariable = "CREDENTIALS_DIRECTORY"
)

// keyFile is where the box's keys are: what --key-file names, else the service manager's credential if it provides one, else the
// data folder's.
func (c *Config) keyFile() (file string, credential bool, err error) {
	if c.KeyFile != "" {
		return c.KeyFile, false, nil
	}
	if dir := os.Getenv(credentialsVariable); dir != "" {
		file := filepath.Join(dir, keyCredential)
		if found, err := exists(file); found || err != nil {
			return file, true, err
		}
	}
	return c.path(boxKeyFile), false, nil
}

// loadKeyring reads the box's keys.
func loadKeyring(c *Config) (*tenants.Keyring, error) {
	file, credential, err := c.keyFile()
	if err != nil {
		return nil, err
	}
	if !credential {
		return tenants.LoadKeyring(file)
	}
	// A second file with other keys is a rekey, or a move, that was left half-way: one of the two would be lost some day.
	own, err := os.ReadFile(c.path(boxKeyFile))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	if err == nil {
		provided, err := os.ReadFile(file)
		if err != nil {
			return nil, err
		}
		if !bytes.Equal(bytes.TrimSpace(own), bytes.TrimSpace(provided)) {
			return nil, hint(fmt.Errorf("%s and the service manager's %s hold different keys", c.path(boxKeyFile), file),
				"keep the one that belongs to this box and move the other away, or name it with --key-file")
		}
	}
	return tenants.LoadCredential(file)
}

// openKeyring loads the box's keys, or makes the first at the very first start. A box whose key is gone is not
// given a new one: nothing in it could be read with that.
func openKeyring(c *Config, log *slog.Logger) (*tenants.Keyring, error) {
	keyring, err := loadKeyring(c)
	if err == nil {
		warnOfKeys(c, keyring, log)
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return keyring, err
	}
	file, _, err := c.keyFile()
	if err != nil {
		return nil, err
	}
	for _, name := range []string{shardsFolder, boxFile} {
		old, err := exists(c.path(name))
		if err != nil {
			return nil, err
		}
		if old {
			return nil, hint(fmt.Errorf("%s is not there, but %s holds a box that was sealed with it", file, c.Data),
				"put the key file back, or name it with --key-file")
		}
	}
	return tenants.CreateKeyring(file)
}

// warnOfKeys tells what is not wrong and yet not as somebody will have meant it.
func warnOfKeys(c *Config, keyring *tenants.Keyring, log *slog.Logger) {
	if _, credential, err := c.keyFile(); credential && err == nil {
		if spare, err := exists(c.path(boxKeyFile)); spare && err == nil {
			log.Warn("the key is a credential of the service manager's and stands in the data folder as well", "file", c.path(boxKeyFile), "next", "move it away: backups of the folder take it along")
		}
	}
	if keyring.Resealing() {
		log.Warn("a rekey was not finished: values under older keys are left", "next", "stop the box and run `tenderbox rekey` again")
	}
}
