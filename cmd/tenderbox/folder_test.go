package main

import (
	"os"
	"path/filepath"
	"testing"
)

// A box begins in an empty folder, or goes on in its own; it sprinkles no files over somebody else's.
func TestWhereABoxBegins(t *testing.T) {
	for name, c := range map[string]struct {
		holds []string
		taken bool
	}{
		"empty":                                 {nil, true},
		"a disk's root":                         {[]string{"lost+found", ".Trash-0"}, true},
		"templates first":                       {[]string{templatesFolder}, true},
		"a box":                                 {[]string{"holiday.jpg", boxFile}, true},
		"settings":                              {[]string{"tenderbox.toml"}, true},
		"a first start that died at its key":    {[]string{boxKeyFile + ".new"}, true},
		"a first start that died at its box.db": {[]string{boxFile + ".new"}, true},
		"a home with somebody else's draft":     {[]string{"letter.new"}, false},
		"a home":                                {[]string{"holiday.jpg"}, false},
		"a web application":                     {[]string{templatesFolder, "app.py"}, false},
	} {
		dir := t.TempDir()
		for _, entry := range c.holds {
			if err := os.Mkdir(filepath.Join(dir, entry), 0o700); err != nil {
				t.Fatal(err)
			}
		}
		if err := prepareFolder(dir); (err == nil) != c.taken {
			t.Errorf("%s: %v", name, err)
		}
	}
	dir := filepath.Join(t.TempDir(), "new", "box")
	if err := prepareFolder(dir); err != nil {
		t.Fatal(err)
	}
	if info, err := os.Stat(dir); err != nil || info.Mode().Perm() != 0o700 {
		t.Errorf("%v %v", info, err)
	}
}
