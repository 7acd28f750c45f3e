package email

import (
	"encoding/json"
	"errors"
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

var update = flag.Bool("update", false, "write testdata/golden anew")

func values(t testing.TB, data string) map[string]any {
	t.Helper()
	v, err := (&Mail{Data: []byte(data)}).values()
	if err != nil {
		t.Fatal(err)
	}
	return v
}

// TestBuiltIn compares what the built-in templates make with testdata/golden.
func TestBuiltIn(t *testing.T) {
	ts, err := loadTemplates("")
	if err != nil {
		t.Fatal(err)
	}
	for file, tc := range map[string]struct{ name, data string }{
		"welcome":                {"welcome", `{"name":"Ada","url":"https://corner.example/in?a=1&b=2"}`},
		"welcome-nobody":         {"welcome", ``},
		"welcome-hostile":        {"welcome", `{"name":"<script>alert(1)</script>","url":"javascript:alert(1)"}`},
		"account-verified":       {"account-verified", `{"name":"Ada"}`},
		"receipt":                {"receipt", `{"order_id":"ord_01J","amount":9007199254740993,"currency":"usd","items":[{"sku":"a","name":"Tea & <b>scones</b>","quantity":2,"unit_amount":450},{"sku":"b","name":"Jam","quantity":1,"unit_amount":5}]}`},
		"receipt-without-cents":  {"receipt", `{"order_id":"ord_01J","amount":1999,"currency":"jpy","name":"Ada"}`},
		"receipt-three-decimals": {"receipt", `{"order_id":"ord_01J","amount":-5,"currency":"kwd"}`},
	} {
		t.Run(file, func(t *testing.T) {
			c, err := ts.render("shop", tc.name, values(t, tc.data))
			if err != nil {
				t.Fatal(err)
			}
			got := "Subject: " + c.subject + "\n\n" + c.text + "\n---- html ----\n" + c.html
			golden := filepath.Join("testdata", "golden", file+".txt")
			if *update {
				if err := os.WriteFile(golden, []byte(got), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(golden)
			if err != nil {
				t.Fatal(err)
			}
			if got != string(want) {
				t.Errorf("%s differs (-update writes it anew):\n%s", golden, got)
			}
		})
	}
	for name, want := range map[string]string{"welcome": "Welcome to our platform!", "account-verified": "Account verified successfully"} {
		if c, err := ts.render("", name, nil); err != nil || c.subject != want {
			t.Errorf("%s: subject %q, %v, want %q", name, c.subject, err, want)
		}
	}
}

// folder writes files below a new folder.
func folder(t testing.TB, files map[string]string) string {
	t.Helper()
	dir := t.TempDir()
	for name, content := range files {
		file := filepath.Join(dir, filepath.FromSlash(name))
		if err := os.MkdirAll(filepath.Dir(file), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// TestTenantsOwn: a tenant's files take the place of the built-in ones, part by part, for that tenant only.
func TestTenantsOwn(t *testing.T) {
	ts, err := loadTemplates(folder(t, map[string]string{
		"shop/welcome.subject": "Ahoy {{.name}}\n",
		"shop/news.txt":        "News for {{.name}}",
		"shop/news.html":       `<p title="{{.name}}">{{.name}}</p>`,
		"kiosk/welcome.txt":    "Kiosk {{printf \"%s!\" .name}}",
		"kiosk/.hidden":        "ignored",
		".git/config":          "ignored",
	}))
	if err != nil {
		t.Fatal(err)
	}
	data := values(t, `{"name":"A<b>\""}`)
	for _, tc := range []struct{ tenant, name, subject, text, html string }{
		{"shop", "welcome", `Ahoy A<b>"`, "welcome! Your account is ready.", "A&lt;b&gt;"},
		{"kiosk", "welcome", "Welcome to our platform!", `Kiosk A<b>"!`, "A&lt;b&gt;"},
		{"third", "welcome", "Welcome to our platform!", `Hello A<b>",`, "A&lt;b&gt;"},
		{"shop", "news", "", `News for A<b>"`, `<p title="A&lt;b&gt;&#34;">A&lt;b&gt;&#34;</p>`},
	} {
		c, err := ts.render(tc.tenant, tc.name, data)
		if err != nil || c.subject != tc.subject || !strings.Contains(c.text, tc.text) || !strings.Contains(c.html, tc.html) {
			t.Errorf("%s of %s: %+v, %v", tc.name, tc.tenant, c, err)
		}
	}
	if _, err := ts.render("kiosk", "news", data); err == nil {
		t.Error("kiosk has the shop's template")
	}
}

// TestLoad: what is wrong with a template is found at the start, all of it, by file.
func TestLoad(t *testing.T) {
	for name, tc := range map[string]struct{ file, content, says string }{
		"syntax":       {"shop/welcome.html", "{{.name", "shop/welcome.html: template: welcome.html:1: unclosed action"},
		"function":     {"shop/welcome.txt", "{{env \"HOME\"}}", `function "env" not defined`},
		"unsafe html":  {"shop/welcome.html", `<a href="{{if .x}}"{{end}}>`, "shop/welcome.html: html/template"},
		"kind":         {"shop/welcome.md", "x", "shop/welcome.md: use .html, .txt or .subject"},
		"name":         {"shop/Welcome.txt", "x", "a template's name is made of a-z"},
		"no text":      {"shop/news.html", "x", "shop/news.txt: a mail needs a text part"},
		"tenant":       {"Shop/welcome.txt", "x", "Shop: a folder named as a tenant"},
		"file on top":  {"welcome.txt", "x", "welcome.txt: a folder named as a tenant"},
		"folder below": {"shop/welcome.txt/x", "x", "shop/welcome.txt: is no file"},
		"big":          {"shop/welcome.txt", strings.Repeat("x", templateBytesMax+1), "over 65536 bytes"},
		"not utf-8":    {"shop/welcome.txt", "\xff", "is not UTF-8"},
	} {
		t.Run(name, func(t *testing.T) {
			if _, err := loadTemplates(folder(t, map[string]string{tc.file: tc.content})); err == nil || !strings.Contains(err.Error(), tc.says) {
				t.Errorf("%v, want %q", err, tc.says)
			}
		})
	}
	_, err := loadTemplates(folder(t, map[string]string{"a/welcome.txt": "{{", "b/welcome.txt": "{{"}))
	if err == nil || !strings.Contains(err.Error(), "a/welcome.txt") || !strings.Contains(err.Error(), "b/welcome.txt") {
		t.Errorf("not all are named: %v", err)
	}
	outside := folder(t, map[string]string{"x.txt": "outside"})
	dir := folder(t, map[string]string{"shop/news.txt": "x"})
	if err := os.Symlink(filepath.Join(outside, "x.txt"), filepath.Join(dir, "shop", "welcome.txt")); err != nil {
		t.Fatal(err)
	}
	if _, err := loadTemplates(dir); err == nil || !strings.Contains(err.Error(), "shop/welcome.txt: cannot be read") {
		t.Errorf("a link out of the folder: %v", err)
	}
}

// TestRunaway: templates that would run for ever, or fill the memory, end soon. The data is what a client may send.
func TestRunaway(t *testing.T) {
	list, err := json.Marshal(make([]int, 1000))
	if err != nil {
		t.Fatal(err)
	}
	data := values(t, `{"l":`+string(list)+`,"s":"`+strings.Repeat("x", 50_000)+`"}`)
	for name, tc := range map[string]struct{ template, says string }{
		"output":           {`{{range .l}}{{$.s}}{{end}}`, "more than 262144 bytes"},
		"nested loops":     {`{{range .l}}{{range $.l}}{{range $.l}}{{end}}{{end}}{{end}}`, "more than 20000 loops"},
		"counting":         {`{{range 1000000000000}}{{end}}`, "more than 20000 loops"},
		"calls itself":     {`{{define "a"}}{{template "a" .}}{{end}}{{template "a" .}}`, "more than 20000 loops"},
		"calls twice":      {`{{define "a"}}{{template "a" .}}{{template "a" .}}{{end}}{{template "a" .}}`, "more than 20000 loops"},
		"in else":          {`{{range .none}}{{else}}{{range 99999999999}}{{end}}{{end}}`, "more than 20000 loops"},
		"in if and with":   {`{{if true}}{{with 1}}{{range 99999999999}}{{end}}{{end}}{{end}}`, "more than 20000 loops"},
		"in else of if":    {`{{if false}}{{else}}{{range 99999999999}}{{end}}{{end}}`, "more than 20000 loops"},
		"doubling":         {`{{$s := .s}}{{range .l}}{{$s = print $s $s}}{{end}}`, "more than 4194304 bytes of strings"},
		"escaping":         {`{{$s := "&"}}{{range .l}}{{$s = html $s $s}}{{end}}`, "more than 4194304 bytes of strings"},
		"printf":           {`{{$s := .s}}{{range .l}}{{$s = printf "%s%s" $s $s}}{{end}}`, "more than 4194304 bytes of strings"},
		"wide":             {`{{printf "%100000000d" 1}}`, "printf: up to 32 verbs"},
		"wide by number":   {`{{printf "%*d" 100000000 1}}`, "printf: up to 32 verbs"},
		"precise":          {`{{printf "%.99999f" 1.5}}`, "printf: up to 32 verbs"},
		"wide and indexed": {`{{printf "%[1]99999d" 1}}`, "printf: up to 32 verbs"},
		"many verbs":       {`{{printf "` + strings.Repeat("%[1]s", 33) + `" .s}}`, "printf: up to 32 verbs"},
		"many arguments":   {`{{print ` + strings.Repeat(".s ", 17) + `}}`, "17 arguments, up to 16"},
	} {
		t.Run(name, func(t *testing.T) {
			template := strings.Replace(tc.template, ".none", "(slice .l 0 0)", 1)
			for kind, file := range map[string]string{".txt": "shop/run.txt", ".html": "shop/run.html", ".subject": "shop/run.subject"} {
				files := map[string]string{"shop/run.txt": "x"}
				files[file] = template
				ts, err := loadTemplates(folder(t, files))
				if err != nil {
					t.Fatal(err)
				}
				if _, err := ts.render("shop", "run", data); err == nil || !strings.Contains(err.Error(), tc.says) {
					t.Errorf("%s: %v, want %q", kind, err, tc.says)
				}
			}
		})
	}
}

// TestSlowTemplate: the clock ends a template, too.
func TestSlowTemplate(t *testing.T) {
	l := newLimits()
	l.until = time.Now().Add(-time.Second)
	text, err := parseText("slow", "{{range .}}{{end}}")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := renderText(text, map[string]any{"a": 1}, l); err == nil || !strings.Contains(err.Error(), "longer than 5s") || !errors.Is(err, errSlow) {
		t.Errorf("%v, want it to be too slow", err)
	}
}

// TestOrdinaryLoops: the limits leave alone what people write, and variables and breaks keep their meaning.
func TestOrdinaryLoops(t *testing.T) {
	ts, err := loadTemplates(folder(t, map[string]string{
		"shop/list.txt": `{{define "row"}}[{{.}}]{{end}}{{$n := 0}}{{range $i, $v := .l}}{{if eq $i 3}}{{break}}{{end}}{{template "row" $v}}{{$n = $i}}{{else}}none{{end}} {{$n}} {{printf "%5.2f|%-3d|%q" 1.5 2 "x"}} {{html "<"}} {{len .l}}`,
	}))
	if err != nil {
		t.Fatal(err)
	}
	c, err := ts.render("shop", "list", values(t, `{"l":["a","b","c","d"]}`))
	if want := `[a][b][c] 2  1.50|2  |"x" &lt; 4`; err != nil || c.text != want {
		t.Errorf("%q, %v, want %q", c.text, err, want)
	}
	c, err = ts.render("shop", "list", values(t, `{"l":[]}`))
	if err != nil || !strings.HasPrefix(c.text, "none 0") {
		t.Errorf("%q, %v", c.text, err)
	}
}
