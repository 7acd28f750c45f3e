package model

import (
	"bytes"
	"io/fs"
	"os"
	"path/filepath"
	"testing"

	"tenderbox/store"
	"tenderbox/tenants"
	"tenderbox/upstream/upstreamtest"
)

// A template is the folder of a box that was opened once and has its tenants. Each seed begins with a copy: making tables takes longer
// than what follows.
type template struct {
	dir   string            // holds the reserve, and the seeds' folders below
	files map[string][]byte // by name within the folder
}

// makeTemplate makes it by opening a box. dir is the caller's to remove.
func makeTemplate(t testing.TB, dir string) (*template, error) {
	first := filepath.Join(dir, "template")
	if err := os.MkdirAll(filepath.Join(first, shardsDir), 0o700); err != nil {
		return nil, err
	}
	if _, err := tenants.CreateKeyring(filepath.Join(first, keyFile)); err != nil {
		return nil, err
	}
	b, err := open(t, first, 0, newClocks(), upstreamtest.NewLine(t, nil), 0)
	if err != nil {
		return nil, err
	}
	for _, id := range shops {
		if _, _, err := b.registry.Add(t.Context(), tenants.New{ID: id}); err != nil {
			return nil, err
		}
	}
	m := &template{dir, map[string][]byte{}}
	for name, s := range map[string]*store.Store{boxFile: b.settings, jobsFile: b.queue} {
		var w bytes.Buffer // without the room that the file has for more
		if _, err := s.Backup(&w); err != nil {
			return nil, err
		}
		m.files[name] = w.Bytes()
	}
	if err := b.close(); err != nil {
		return nil, err
	}
	if err := os.Rename(filepath.Join(first, shardsDir, reserveFile), filepath.Join(dir, reserveFile)); err != nil {
		return nil, err
	}
	return m, filepath.WalkDir(first, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		name, err := filepath.Rel(first, path)
		if err == nil && m.files[name] == nil && name != boxFile+".copy" && d.Name() != seatFile {
			m.files[name], err = os.ReadFile(path)
		}
		return err
	})
}

// copyTo makes a folder like the template's.
func (m *template) copyTo(dir string) error {
	if err := os.MkdirAll(filepath.Join(dir, shardsDir), 0o700); err != nil {
		return err
	}
	for name, content := range m.files {
		if err := os.WriteFile(filepath.Join(dir, name), content, 0o600); err != nil {
			return err
		}
	}
	return os.Link(filepath.Join(m.dir, reserveFile), filepath.Join(dir, reserveFile))
}

// Scratch makes a folder where fsync costs nothing, if the machine has such a place. What would be lost without an fsync,
// shardstest.Disk knows.
func Scratch() (string, error) {
	const memory = "/dev/shm"
	if fi, err := os.Stat(memory); err == nil && fi.IsDir() {
		if dir, err := os.MkdirTemp(memory, "tenderbox-model-"); err == nil {
			return dir, nil
		}
	}
	return os.MkdirTemp("", "tenderbox-model-")
}
