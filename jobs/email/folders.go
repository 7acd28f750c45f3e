package email

import (
	"fmt"
	"os"
	"path/filepath"
	"sync"
)

// boxFolder stands for mail of no tenant. No tenant can be called so.
const boxFolder = "_box"

// folders are the tenants' folders below DATA/mail/KIND.
type folders struct {
	folder string                 // DATA/mail/KIND
	sync   func(dir string) error // makes the names in a folder durable; tests replace it

	mu      sync.Mutex      // guards durable
	durable map[string]bool // folders whose names, and those above, this process has synced
}

func newFolders(mail, kind string) *folders {
	return &folders{folder: filepath.Join(mail, kind), sync: syncFolder, durable: map[string]bool{}}
}

// of makes sure that there is a tenant's folder, and that a power cut leaves it there: what is kept in it is no better kept than its name. The process
// before may have been killed before it had synced the names, so each process does, once.
func (f *folders) of(tenant string) (string, error) {
	if tenant == "" {
		tenant = boxFolder
	} else if !isTenant(tenant) {
		return "", fmt.Errorf("tenant %q is no DNS label", clip(tenant))
	}
	dir := filepath.Join(f.folder, tenant)
	f.mu.Lock()
	defer f.mu.Unlock()
	if err := os.MkdirAll(dir, 0o700); err != nil || f.durable[dir] {
		return dir, err
	}
	mail := filepath.Dir(f.folder)
	for _, above := range []string{f.folder, mail, filepath.Dir(mail)} {
		if err := f.sync(above); err != nil {
			return "", err
		}
	}
	f.durable[dir] = true
	return dir, nil
}

// syncFolder makes names in a folder durable.
func syncFolder(dir string) error {
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer f.Close()
	return f.Sync()
}
