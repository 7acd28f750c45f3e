package main

import (
	"fmt"
	"os"
	"strings"
)

// secretBytesMax bounds a secret's file: a key is a line, and a wrong path may name anything.
const secretBytesMax = 16 << 10

// readSecret gives the value of a secret setting: itself, or for @FILE the content of that file without
// the line end that editors add.
func readSecret(setting, value string) (string, error) {
	file, ok := strings.CutPrefix(value, "@")
	if !ok {
		return value, nil
	}
	if err := private(file); err != nil {
		return "", fmt.Errorf("%s: %w", setting, err)
	}
	content, err := os.ReadFile(file)
	if err != nil {
		return "", hint(fmt.Errorf("%s: %w", setting, err), "@FILE must name a readable file that holds the secret alone")
	}
	secret := strings.TrimSpace(string(content))
	if secret == "" || len(content) > secretBytesMax || strings.ContainsAny(secret, "\r\n\x00") {
		return "", hint(fmt.Errorf("%s: %s does not hold one secret", setting, file), "put the secret alone on its first line")
	}
	return secret, nil
}

// private refuses a file with a secret in it that every user of the machine can read.
func private(file string) error {
	info, err := os.Stat(file)
	if err != nil {
		return hint(err, "does it exist, and may this user read it?")
	}
	if !info.Mode().IsRegular() {
		return hint(fmt.Errorf("%s is not a file", file), "name the file that holds the secret")
	}
	if info.Mode().Perm()&0o007 != 0 {
		return hint(fmt.Errorf("%s holds a secret and is open to every user (%v)", file, info.Mode().Perm()), "chmod o= "+file)
	}
	return nil
}
