package email

import (
	"bytes"
	"embed"
	"errors"
	"fmt"
	htmltemplate "html/template"
	"io"
	"io/fs"
	"maps"
	"os"
	"path"
	"slices"
	"strings"
	texttemplate "text/template"
	"unicode/utf8"
)

const (
	templateBytesMax    = 64 << 10  // of one file: styles included, far above what people write
	templatesMax        = 200       // of one tenant: memory, and the time that a start takes
	partBytesMax        = 256 << 10 // of what a template makes: mail programs cut what is longer
	templateNameMax     = 64
	templateTenantsMax  = 10_000
	templateFilesPerDir = 3 * templatesMax
)

// The parts of a template, by the ending of the file that holds them.
const (
	partHTML    = ".html"
	partText    = ".txt"
	partSubject = ".subject"
)

//go:embed templates/*
var builtIn embed.FS

// A template makes a subject, a text part and, if it has one, an HTML part. A part that a tenant does not bring comes from the built-in template of
// that name.
type template struct {
	subject, text *texttemplate.Template
	html          *htmltemplate.Template
}

// templates are the built-in ones and those of tenants.
type templates struct {
	builtIn map[string]*template
	tenants map[string]map[string]*template
}

// content is what a template made.
type content struct{ subject, text, html string }

// loadTemplates reads the built-in templates and those below folder ("": none), and tells all that is wrong with them.
func loadTemplates(folder string) (*templates, error) {
	own, err := fs.Sub(builtIn, "templates")
	if err != nil {
		return nil, err
	}
	t := &templates{tenants: map[string]map[string]*template{}}
	if t.builtIn, err = loadFolder(own, ".", nil); err != nil || folder == "" {
		return t, err
	}
	root, err := os.OpenRoot(folder) // nothing below it leads out of it, not even a link
	if err != nil {
		return nil, err
	}
	defer root.Close()
	tenants, err := fs.ReadDir(root.FS(), ".")
	if err != nil {
		return nil, err
	}
	if len(tenants) > templateTenantsMax {
		return nil, fmt.Errorf("%d entries, up to %d are read", len(tenants), templateTenantsMax)
	}
	var errs []error
	for _, d := range tenants {
		name := d.Name()
		switch {
		case strings.HasPrefix(name, "."):
		case !d.IsDir() || !isTenant(name):
			errs = append(errs, fmt.Errorf("%s: a folder named as a tenant is expected", name))
		default:
			if t.tenants[name], err = loadFolder(root.FS(), name, t.builtIn); err != nil {
				errs = append(errs, err)
			}
		}
	}
	return t, errors.Join(errs...)
}

// loadFolder reads one folder of templates. Parts that are missing are taken from below.
func loadFolder(fsys fs.FS, folder string, below map[string]*template) (map[string]*template, error) {
	files, err := fs.ReadDir(fsys, folder)
	if err != nil {
		return nil, err
	}
	if len(files) > templateFilesPerDir {
		return nil, fmt.Errorf("%s: %d files, up to %d are read", folder, len(files), templateFilesPerDir)
	}
	all := map[string]*template{}
	var errs []error
	for _, f := range files {
		if strings.HasPrefix(f.Name(), ".") {
			continue
		}
		if err := loadPart(fsys, path.Join(folder, f.Name()), all, below); err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", path.Join(folder, f.Name()), err))
		}
	}
	for _, name := range slices.Sorted(maps.Keys(all)) {
		if all[name].text == nil && len(errs) == 0 {
			errs = append(errs, fmt.Errorf("%s: a mail needs a text part", path.Join(folder, name+partText)))
		}
	}
	return all, errors.Join(errs...)
}

// loadPart reads one file and puts it into its template.
func loadPart(fsys fs.FS, file string, all, below map[string]*template) error {
	kind := path.Ext(file)
	name := strings.TrimSuffix(path.Base(file), kind)
	if len(name) > templateNameMax || !isTenant(name) {
		return errors.New("a template's name is made of a-z, 0-9 and -")
	}
	text, err := readPart(fsys, file)
	if err != nil {
		return err
	}
	t := all[name]
	if t == nil {
		t = &template{}
		if b := below[name]; b != nil {
			*t = *b
		}
		all[name] = t
	}
	switch kind {
	case partHTML:
		t.html, err = parseHTML(name+kind, text)
	case partText:
		t.text, err = parseText(name+kind, text)
	case partSubject:
		t.subject, err = parseText(name+kind, strings.TrimSpace(text))
	default:
		err = fmt.Errorf("use %s, %s or %s", partHTML, partText, partSubject)
	}
	return err
}

func readPart(fsys fs.FS, file string) (string, error) {
	f, err := fsys.Open(file)
	if err != nil {
		return "", errors.New("cannot be read")
	}
	defer f.Close()
	if info, err := f.Stat(); err != nil || !info.Mode().IsRegular() {
		return "", errors.New("is no file")
	}
	b, err := io.ReadAll(io.LimitReader(f, templateBytesMax+1))
	switch {
	case err != nil:
		return "", errors.New("cannot be read")
	case len(b) > templateBytesMax:
		return "", fmt.Errorf("over %d bytes", templateBytesMax)
	case !utf8.Valid(b):
		return "", errors.New("is not UTF-8")
	}
	return string(b), nil
}

// parseText parses a template with the limits built in. A name that the data does not have is an error, not a hole in somebody's mail.
func parseText(name, text string) (*texttemplate.Template, error) {
	t, err := texttemplate.New(name).Option("missingkey=error").Funcs(nobody.funcs()).Parse(text)
	if err != nil {
		return nil, err
	}
	for _, part := range t.Templates() {
		count(part.Tree)
	}
	return t, nil
}

// parseHTML is parseText for HTML. That markup can be escaped safely is found by trying: html/template only looks when it runs.
func parseHTML(name, text string) (*htmltemplate.Template, error) {
	t, err := htmltemplate.New(name).Option("missingkey=error").Funcs(nobody.funcs()).Parse(text)
	if err != nil {
		return nil, err
	}
	for _, part := range t.Templates() {
		count(part.Tree)
	}
	try, err := t.Clone()
	if err != nil {
		return nil, err
	}
	var bad *htmltemplate.Error
	if err := try.Funcs(newLimits().funcs()).Execute(io.Discard, map[string]any{}); errors.As(err, &bad) {
		return nil, bad
	}
	return t, nil
}

// render makes a mail's content. Its errors name the place in the template, never what stood in the data.
func (ts *templates) render(tenant, name string, data map[string]any) (content, error) {
	t := ts.tenants[tenant][name]
	if t == nil {
		t = ts.builtIn[name]
	}
	if t == nil {
		return content{}, fmt.Errorf("template %q: %w; there are %s", clip(name), errNoTemplate, strings.Join(ts.names(tenant), ", "))
	}
	var c content
	err := newLimits().run(func(l *limits) (err error) {
		if t.subject != nil {
			if c.subject, err = renderText(t.subject, data, l); err != nil {
				return err
			}
		}
		if c.text, err = renderText(t.text, data, l); err != nil || t.html == nil {
			return err
		}
		h, err := t.html.Clone() // each run has limits of its own, and html/template changes what it runs
		if err != nil {
			return err
		}
		var b bytes.Buffer
		err = h.Funcs(l.funcs()).Execute(&capped{w: &b, left: partBytesMax}, data)
		c.html = b.String()
		return err
	})
	if err != nil {
		return content{}, fmt.Errorf("template %q: %w", name, err)
	}
	return c, nil
}

func renderText(t *texttemplate.Template, data map[string]any, l *limits) (string, error) {
	t, err := t.Clone()
	if err != nil {
		return "", err
	}
	var b bytes.Buffer
	err = t.Funcs(l.funcs()).Execute(&capped{w: &b, left: partBytesMax}, data)
	return b.String(), err
}

// names are the templates that a tenant can use.
func (ts *templates) names(tenant string) []string {
	all := maps.Clone(ts.builtIn)
	maps.Copy(all, ts.tenants[tenant])
	return slices.Sorted(maps.Keys(all))
}

// isTenant knows DNS labels, which names of tenants are, and so safe as names of files.
func isTenant(s string) bool {
	return isHostName(s) && !strings.Contains(s, ".") && strings.ToLower(s) == s
}
