package main

import (
	"context"
	"crypto/rand"
	"encoding/base64"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"tenderbox/tenants"
)

// defaultTenant is who owns a box that nobody has divided.
const defaultTenant tenants.ID = "default"

// firstRun makes what a new box needs to be used at once: the operator's token and the tenant `default`,
// each with its secret in a file. It returns the tenant's key if it was made now, else "".
//
// Killed between any two steps, the next start finishes it. A file must not be written after the registry
// alone has its secret, for the registry keeps only hashes: the token's file comes first, and the key,
// which the registry makes, has an empty file waiting for it. Found empty at a later start, it says that
// the key never arrived, and a new one is made.
func firstRun(ctx context.Context, r *tenants.Registry, dir string) (key string, err error) {
	keyFile := filepath.Join(dir, defaultKeyFile)
	if !r.HasOperatorToken() && len(r.List()) == 0 {
		if err := writePrivate(keyFile, ""); err != nil {
			return "", err
		}
	}
	if err := operatorToken(ctx, r, filepath.Join(dir, operatorTokenFile)); err != nil {
		return "", err
	}
	content, err := os.ReadFile(keyFile)
	if errors.Is(err, fs.ErrNotExist) || len(content) > 0 {
		return "", nil
	}
	if err != nil {
		return "", err
	}
	_, key, err = r.Add(ctx, tenants.New{ID: defaultTenant})
	if errors.Is(err, tenants.ErrExists) {
		key, err = r.RotateKey(ctx, defaultTenant)
	}
	if err != nil {
		return "", fmt.Errorf("tenant %s: %w", defaultTenant, err)
	}
	return key, writePrivate(keyFile, key+"\n")
}

// operatorToken makes the registry know the token in the file, and makes both when neither has one. Thus
// writing a token of one's own into the file and restarting replaces a lost one. A box whose operator
// took the file away keeps the token that it knows.
func operatorToken(ctx context.Context, r *tenants.Registry, file string) error {
	content, err := os.ReadFile(file)
	switch {
	case errors.Is(err, fs.ErrNotExist) && r.HasOperatorToken():
		return nil
	case errors.Is(err, fs.ErrNotExist), err == nil && strings.TrimSpace(string(content)) == "":
		content = []byte(newOperatorToken())
		if err := writePrivate(file, string(content)+"\n"); err != nil {
			return err
		}
	case err != nil:
		return err
	}
	token := strings.TrimSpace(string(content))
	caller, err := r.Resolve(tenants.Credentials{Authorization: []string{"Bearer " + token}})
	if err == nil && caller.Operator {
		return nil
	}
	if err := r.SetOperatorToken(ctx, token); err != nil {
		return hint(fmt.Errorf("%s: %w", file, err), "delete the file and the next start keeps the old token, or put a long random one there")
	}
	return nil
}

// newOperatorToken is 256 random bits; the prefix lets people and scanners recognise one that leaked.
func newOperatorToken() string {
	secret := make([]byte, 32)
	_, _ = rand.Read(secret) // never fails: crypto/rand ends the program instead
	return "tbo_" + base64.RawURLEncoding.EncodeToString(secret)
}
