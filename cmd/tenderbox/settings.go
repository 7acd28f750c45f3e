package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"syscall"

	"github.com/BurntSushi/toml"
	"github.com/alecthomas/kong"
)

// settingsBytesMax bounds tenderbox.toml: a wrong --config may name anything.
const settingsBytesMax = 1 << 20

// settings is a tenderbox.toml that was read: values by flag name. As a kong resolver it fills the flags
// that neither the command line nor the environment set, which is the precedence that INTERFACE.md asks for.
type settings struct {
	file   string
	values map[string]any
}

// loadSettings reads the settings file of a command whose flags are parsed but not resolved yet: the one
// that --config names, else DATA/tenderbox.toml if it is there. known are the flags of `serve`: anything
// else in the file is a mistake, and a mistake in a settings file must not be found out on the day that
// it would have mattered.
func loadSettings(ctx *kong.Context, known []*kong.Flag) error {
	file, named := flagText(ctx, "config"), true
	if file == "" {
		file, named = filepath.Join(flagText(ctx, "data"), "tenderbox.toml"), false
	}
	s, err := readSettings(file)
	if !named && (errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ENOTDIR)) {
		return nil
	}
	if err != nil {
		return err
	}
	if err := s.judge(known, named); err != nil {
		return err
	}
	ctx.AddResolver(s)
	return nil
}

func readSettings(file string) (*settings, error) {
	info, err := os.Stat(file)
	if err != nil {
		return nil, hint(fmt.Errorf("settings: %w", err), "--config must name a readable file")
	}
	if !info.Mode().IsRegular() || info.Size() > settingsBytesMax {
		return nil, hint(fmt.Errorf("settings: %s is no settings file", file), "--config must name a text file such as tenderbox.toml")
	}
	s := &settings{file: file, values: map[string]any{}}
	if _, err := toml.DecodeFile(file, &s.values); err != nil {
		var syntax toml.ParseError
		if errors.As(err, &syntax) {
			return nil, hint(fmt.Errorf("%s:%d: %s", file, syntax.Position.Line, syntax.Message), `write one setting a line: name = "value"`)
		}
		return nil, hint(fmt.Errorf("settings: %w", err), "may this user read it?")
	}
	return s, nil
}

// judge refuses keys that are no flags, settings that cannot work from a file, and a readable secret.
func (s *settings) judge(known []*kong.Flag, named bool) error {
	var names []string
	for _, flag := range known {
		switch {
		case flag.Name == "help", flag.Name == "config", flag.Name == "data" && !named:
			// The file cannot say where it is itself found.
		default:
			names = append(names, flag.Name)
		}
	}
	var unknown []string
	for key := range s.values {
		if !slices.Contains(names, key) {
			unknown = append(unknown, key)
		}
	}
	if len(unknown) > 0 {
		slices.Sort(unknown)
		next := "`tenderbox serve --help` lists the settings"
		if dashed := strings.ReplaceAll(unknown[0], "_", "-"); slices.Contains(names, dashed) {
			next = "write it " + dashed
		}
		return hint(fmt.Errorf("%s: unknown setting %s", s.file, strings.Join(unknown, ", ")), next)
	}
	if s.holdsSecret() {
		return private(s.file)
	}
	return nil
}

// holdsSecret tells whether a secret stands in the file itself: the processor's key, or a password of the mail server.
func (s *settings) holdsSecret() bool {
	key, _ := s.values["upstream-key"].(string)
	server, _ := s.values["smtp-url"].(string)
	return key != "" && !strings.HasPrefix(key, "@") || !strings.HasPrefix(server, "@") && strings.Contains(server, "@")
}

// Validate is part of kong.Resolver.
func (s *settings) Validate(*kong.Application) error { return nil }

// Resolve gives a flag its value from the file. Kong asks only for flags that the command line left open,
// but would let the file win over the environment.
func (s *settings) Resolve(_ *kong.Context, _ *kong.Path, flag *kong.Flag) (any, error) {
	for _, name := range flag.Envs {
		if _, set := os.LookupEnv(name); set {
			return nil, nil
		}
	}
	value, ok := s.values[flag.Name]
	if !ok {
		return nil, nil
	}
	text, err := flagValue(value)
	if err != nil {
		return nil, hint(fmt.Errorf("%s: %w", s.file, err), "`tenderbox serve --help` shows what it takes")
	}
	if err := tryFlag(flag, text); err != nil {
		return nil, hint(fmt.Errorf("%s: %w", s.file, err), "`tenderbox serve --help` shows what it takes")
	}
	return text, nil
}

// flagValue writes a TOML value as it would stand on the command line, so that a file takes exactly what
// a flag takes: a duration needs its unit in both.
func flagValue(value any) (string, error) {
	switch v := value.(type) {
	case string:
		return v, nil
	case int64, bool:
		return fmt.Sprint(v), nil
	case []any:
		parts := make([]string, len(v))
		for i, element := range v {
			text, ok := element.(string)
			if !ok {
				return "", errors.New("want a list of strings")
			}
			parts[i] = text
		}
		return kong.JoinEscaped(parts, ','), nil
	}
	return "", errors.New("want text, a whole number, true, false or a list of text")
}

// tryFlag parses text as the flag would, into nowhere, so that the error can name the file.
func tryFlag(flag *kong.Flag, text string) error {
	scratch := reflect.New(flag.Target.Type()).Elem()
	return flag.Mapper.Decode(&kong.DecodeContext{
		Value: flag.Value,
		Scan:  kong.Scan().PushTyped(text, kong.FlagValueToken),
	}, scratch)
}

// flagText is a text flag's value before files are asked: command line, else environment, else default.
func flagText(ctx *kong.Context, name string) string {
	for _, flag := range ctx.Flags() {
		if flag.Name == name {
			text, _ := ctx.FlagValue(flag).(string)
			return text
		}
	}
	return ""
}

// serveFlags are the flags of `serve`, whatever command is running.
func serveFlags(ctx *kong.Context) []*kong.Flag {
	for _, node := range ctx.Model.Children {
		if node.Name == "serve" {
			return node.Flags
		}
	}
	return nil
}
