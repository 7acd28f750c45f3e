package web

import (
	"bytes"
	"fmt"
	"mime"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"

	json "github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
)

const (
	formType = "application/x-www-form-urlencoded"

	// stripeParamsMax parameters a request may have: 50 of metadata, and what an SDK writes beside them.
	stripeParamsMax = 200
	// stripeNestMax brackets a name may have: payment_method_options[card][mandate_options][interval] has three.
	stripeNestMax = 6
)

// A stripeParam is one value of a request. What a form and a JSON body say alike is the same here.
type stripeParam struct {
	name string   // as a form writes it: metadata[till]
	base string   // metadata
	path []string // till
	text string
	kind jsontext.Kind // of a JSON body's value: '"', '0', 't' or 'f', 'n'; 0: of a form, where everything is text
}

// stripeParams are a request's parameters in the order in which they came.
type stripeParams []stripeParam

// params reads a POST's body, or a GET's query, and refuses every parameter that the rules do not know.
func (x *exchange) params(rules stripeRules) (ps stripeParams, err error) {
	if x.hasBody {
		ps, err = x.stripeBody()
	} else {
		ps, err = parseForm([]byte(x.r.URL.RawQuery))
	}
	if err != nil {
		return nil, err
	}
	return ps, rules.check(ps)
}

func (x *exchange) stripeBody() (ps stripeParams, err error) {
	if x.r.URL.RawQuery != "" {
		return nil, badForm("parameters of a POST stand in its body")
	}
	buf := x.s.bodies.Get().(*[]byte)
	defer x.s.bodies.Put(buf)
	body, err := x.readBody(*buf)
	if err != nil {
		return nil, err
	}
	isForm, err := checkFormType(x.r.Header, len(body) == 0)
	switch {
	case err != nil:
		return nil, err
	case isForm:
		return parseForm(body)
	}
	return parseJSON(body)
}

// checkFormType accepts a form or JSON in UTF-8; without a body, nothing too.
func checkFormType(h http.Header, empty bool) (isForm bool, err error) {
	values := h["Content-Type"]
	if empty && len(values) == 0 {
		return true, nil
	}
	if err := checkMediaType(h); err == nil {
		return false, nil
	} else if len(values) != 1 || len(h["Content-Encoding"]) > 0 {
		return false, err
	}
	kind, params, err := mime.ParseMediaType(values[0])
	if err != nil || kind != formType {
		return false, errStripeType
	}
	for name, value := range params {
		if name != "charset" || !strings.EqualFold(value, "utf-8") {
			return false, errStripeType
		}
	}
	return true, nil
}

var errStripeType = problem(http.StatusUnsupportedMediaType, "content_type_unsupported", "Content-Type",
	"send a form as application/x-www-form-urlencoded, or JSON as application/json, in UTF-8")

func badForm(why string) *stripeError {
	return &stripeError{status: http.StatusBadRequest, Type: invalidRequest, Code: "form_invalid", Message: "The parameters cannot be read: " + why + "."}
}

// parseForm reads name=value&… as Stripe's clients write it. The texts are copies: body goes back to its pool.
func parseForm(body []byte) (stripeParams, error) {
	if len(body) == 0 {
		return nil, nil
	}
	if bytes.Count(body, []byte("&")) >= stripeParamsMax {
		return nil, tooManyParams
	}
	var ps stripeParams
	seen := map[string]bool{}
	for pair := range bytes.SplitSeq(body, []byte("&")) {
		if len(pair) == 0 {
			continue
		}
		n, v, _ := strings.Cut(string(pair), "=")
		name, err := url.QueryUnescape(n)
		value, errValue := url.QueryUnescape(v)
		if err != nil || errValue != nil {
			return nil, badForm("an escape is incomplete")
		}
		p := stripeParam{name: name, text: value}
		if err := p.split(); err != nil {
			return nil, err
		}
		if seen[name] && !strings.HasSuffix(name, "[]") {
			return nil, &stripeError{status: http.StatusBadRequest, Type: invalidRequest, Code: "parameter_duplicate", Param: clip(name),
				Message: "A parameter may be given once: " + clip(name)}
		}
		seen[name] = true
		ps = append(ps, p)
	}
	return ps, nil
}

var tooManyParams = badForm(fmt.Sprintf("there are more than %d", stripeParamsMax))

// split takes the name apart, and refuses what no text needs.
func (p *stripeParam) split() error {
	for _, s := range []string{p.name, p.text} {
		if !utf8.ValidString(s) || strings.ContainsRune(s, 0) {
			return badForm("they are not text in UTF-8")
		}
	}
	at := strings.IndexByte(p.name, '[')
	if at < 0 {
		at = len(p.name)
	}
	p.base = p.name[:at]
	malformed := p.base == "" || strings.Contains(p.base, "]")
	for rest := p.name[at:]; rest != "" && !malformed; {
		end := strings.IndexByte(rest, ']')
		if malformed = rest[0] != '[' || end < 0 || len(p.path) == stripeNestMax; malformed {
			break
		}
		p.path = append(p.path, rest[1:end])
		malformed = strings.Contains(rest[1:end], "[")
		rest = rest[end+1:]
	}
	if malformed {
		return badForm("the name " + clip(p.name) + " is malformed, or nests too deep")
	}
	return nil
}

// parseJSON reads a JSON object as the form that would say the same.
func parseJSON(body []byte) (stripeParams, error) {
	var members map[string]jsontext.Value
	if err := decodeObject(body, &members); err != nil {
		return nil, err
	}
	var ps stripeParams
	var err error
	for name, v := range members {
		if ps, err = flatten(ps, stripeParam{name: name, base: name}, v); err != nil {
			return nil, err
		}
	}
	return ps, nil
}

// flatten appends the values of v under the name of at.
func flatten(ps stripeParams, at stripeParam, v jsontext.Value) (stripeParams, error) {
	if len(ps) >= stripeParamsMax {
		return nil, tooManyParams
	}
	if len(at.path) > stripeNestMax || strings.ContainsAny(at.base, "[]\x00") || at.base == "" {
		return nil, badForm("the name " + clip(at.name) + " is malformed, or nests too deep")
	}
	under := func(key string) stripeParam {
		return stripeParam{name: at.name + "[" + key + "]", base: at.base, path: append(slices.Clone(at.path), key)}
	}
	var err error
	switch at.kind = v.Kind(); at.kind {
	case '{':
		var members map[string]jsontext.Value
		if err = json.Unmarshal(v, &members); err != nil {
			return nil, badForm("JSON that was read once cannot be read again")
		}
		for key, value := range members {
			if ps, err = flatten(ps, under(key), value); err != nil {
				return nil, err
			}
		}
		return ps, nil
	case '[':
		var items []jsontext.Value
		if err = json.Unmarshal(v, &items); err != nil {
			return nil, badForm("JSON that was read once cannot be read again")
		}
		for i, value := range items {
			if ps, err = flatten(ps, under(strconv.Itoa(i)), value); err != nil {
				return nil, err
			}
		}
		return ps, nil
	case '"':
		if err = json.Unmarshal(v, &at.text); err != nil {
			return nil, badForm("JSON that was read once cannot be read again")
		}
	case 'n': // as good as left out
		return ps, nil
	default:
		at.text = v.String()
	}
	if strings.ContainsRune(at.text, 0) {
		return nil, badForm("they are not text in UTF-8")
	}
	return append(ps, at), nil
}

// stripeRules say what a request may hold, by the names before any bracket.
type stripeRules map[string]stripeRule

// A stripeRule judges a parameter.
type stripeRule struct {
	nested bool            // takes what stands in brackets
	any    bool            // whatever it holds: it has no effect here
	only   []string        // the values that change nothing; others the box cannot honour
	no     string          // why the box cannot honour it at all; "": it can
	with   map[string]bool // of nested: the keys that there are; nil: any
}

var (
	takes   = stripeRule{}
	takesIn = stripeRule{nested: true}
	ignores = stripeRule{nested: true, any: true}
)

func takesOnly(values ...string) stripeRule { return stripeRule{only: values} }
func cannot(why string) stripeRule          { return stripeRule{nested: true, no: why} }

// check refuses unknown parameters as Stripe does, all at once, and those that would change what happens to the money if the box
// ignored them.
func (rules stripeRules) check(ps stripeParams) error {
	// A card first: that it must not be sent is what its client has to hear, whatever else is wrong with it.
	for i := range ps {
		p := &ps[i]
		if rule, known := rules[p.base]; !(known && rule.nested && rule.no == "") && p.holdsCard() {
			return &stripeError{status: http.StatusBadRequest, Type: invalidRequest, Code: "card_data_not_allowed", Param: clip(p.name),
				Message: "Send a token of your processor, never card data."}
		}
	}
	var unknown []string
	for i := range ps {
		p := &ps[i]
		rule, known := rules[p.base]
		switch {
		case !known:
			if !slices.Contains(unknown, clip(p.base)) {
				unknown = append(unknown, clip(p.base))
			}
		case rule.no != "":
			return unsupported(p.base, rule.no)
		case !rule.nested && len(p.path) > 0:
			return &stripeError{status: http.StatusBadRequest, Type: invalidRequest, Code: "parameter_invalid", Param: p.base,
				Message: "Invalid " + p.base + ": it is one value, not several."}
		case rule.only != nil && !slices.Contains(rule.only, p.text):
			return unsupported(p.base, "the box knows "+strings.Join(rule.only, ", ")+" only")
		case rule.with != nil && (len(p.path) != 1 || !rule.with[p.path[0]]) && len(p.path) > 0:
			unknown = append(unknown, clip(p.name))
		}
	}
	switch len(unknown) {
	case 0:
		return nil
	case 1:
		return &stripeError{status: http.StatusBadRequest, Type: invalidRequest, Code: "parameter_unknown", Param: unknown[0],
			Message: "Received unknown parameter: " + unknown[0]}
	}
	slices.Sort(unknown)
	return &stripeError{status: http.StatusBadRequest, Type: invalidRequest, Code: "parameter_unknown", Param: unknown[0],
		Message: "Received unknown parameters: " + strings.Join(unknown[:min(len(unknown), 10)], ", ")}
}

// holdsCard reports whether the parameter is named as card data would be.
func (p *stripeParam) holdsCard() bool {
	if len(p.path) == 0 {
		return isCardMember(p.base) && p.base != "card" // an old name for source
	}
	last := p.path[len(p.path)-1]
	return isCardMember(last) && last != "card"
}

func unsupported(param, why string) *stripeError {
	return &stripeError{status: http.StatusBadRequest, Type: invalidRequest, Code: "parameter_unsupported", Param: param,
		Message: "The box cannot honour " + param + ": " + why + "."}
}

func missingParam(name string) *stripeError {
	return &stripeError{status: http.StatusBadRequest, Type: invalidRequest, Code: "parameter_missing", Param: name, Message: "Missing required param: " + name + "."}
}

// get returns the parameter of that plain name.
func (ps stripeParams) get(name string) (p stripeParam, ok bool) {
	for i := range ps {
		if ps[i].name == name {
			return ps[i], true
		}
	}
	return stripeParam{}, false
}

// text returns a parameter that is text; "" if it is not there.
func (ps stripeParams) text(name string) (string, error) {
	p, ok := ps.get(name)
	switch {
	case !ok:
		return "", nil
	case p.kind != 0 && p.kind != '"':
		return "", &stripeError{status: http.StatusBadRequest, Type: invalidRequest, Code: "parameter_invalid_string", Param: name, Message: "Invalid string: " + name + " must be text."}
	}
	return p.text, nil
}

// required returns a text that must be there and say something.
func (ps stripeParams) required(name string) (string, error) {
	if _, ok := ps.get(name); !ok {
		return "", missingParam(name)
	}
	s, err := ps.text(name)
	if err == nil && s == "" {
		err = &stripeError{status: http.StatusBadRequest, Type: invalidRequest, Code: "parameter_invalid_empty", Param: name,
			Message: "You passed an empty string for '" + name + "', which cannot be unset."}
	}
	return s, err
}

// integer returns a whole number; found tells whether it is there.
func (ps stripeParams) integer(name string) (n int64, found bool, err error) {
	p, ok := ps.get(name)
	if !ok {
		return 0, false, nil
	}
	n, err = strconv.ParseInt(p.text, 10, 64)
	// One spelling only: 1.0, 1e2, +1, 007 are mistakes somewhere, and so is a JSON string.
	if err != nil || strconv.FormatInt(n, 10) != p.text || (p.kind != 0 && p.kind != '0') {
		return 0, true, &stripeError{status: http.StatusBadRequest, Type: invalidRequest, Code: "parameter_invalid_integer", Param: name, Message: "Invalid integer: " + clip(p.text)}
	}
	return n, true, nil
}

// amount returns an amount that must be there.
func (ps stripeParams) amount() (int64, error) {
	n, found, err := ps.integer("amount")
	switch {
	case err != nil:
		return 0, err
	case !found:
		return 0, missingParam("amount")
	case n < 1:
		return 0, &stripeError{status: http.StatusBadRequest, Type: invalidRequest, Code: "parameter_invalid_integer", Param: "amount",
			Message: "This value must be greater than or equal to 1."}
	}
	return n, nil
}

func (ps stripeParams) boolean(name string) (bool, error) {
	p, ok := ps.get(name)
	switch {
	case !ok || p.text == "false" && p.kind != '"':
		return false, nil
	case p.text == "true" && p.kind != '"':
		return true, nil
	}
	return false, &stripeError{status: http.StatusBadRequest, Type: invalidRequest, Code: "parameter_invalid", Param: name, Message: "Invalid boolean: " + clip(p.text)}
}

// metadata returns metadata[…]. Values that are empty unset, and here there is nothing to unset yet. What else may be wrong with
// keys and values the ledger knows.
func (ps stripeParams) metadata() (map[string]string, error) {
	m := map[string]string{}
	for i := range ps {
		p := &ps[i]
		if p.base != "metadata" || len(p.path) == 0 && p.text == "" {
			continue
		}
		if len(p.path) != 1 || p.path[0] == "" || p.kind != 0 && p.kind != '"' {
			return nil, &stripeError{status: http.StatusBadRequest, Type: invalidRequest, Code: "parameter_invalid_hash", Param: "metadata",
				Message: "Invalid metadata: it is a set of keys with text as values."}
		}
		if p.text != "" {
			m[p.path[0]] = p.text
		}
	}
	return m, nil
}
