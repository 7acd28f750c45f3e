package email

import (
	"errors"
	"fmt"
	"io"
	"regexp"
	"strconv"
	"strings"
	texttemplate "text/template"
	"text/template/parse"
	"time"

	"golang.org/x/text/currency"
)

// A template is a program, and Go's can neither be cancelled nor counted: a range over a range over a range of the data, a template
// that calls itself, or a string that doubles itself would hold a worker or fill the memory. So each body of a loop and each template begins with a
// call of `tick`, put there after parsing, and each function that makes strings accounts for them.

const (
	stepsMax     = 20_000          // bodies of loops and templates that one mail enters; it bounds the depth of calls, too
	renderMax    = 5 * time.Second // for all parts of one mail: they take less than a millisecond, but a box may be busy
	workBytesMax = 4 << 20         // of strings that functions make for one mail
	argsMax      = 16              // arguments of print and its kin
	verbsMax     = 32              // in a format of printf
)

var (
	errSteps  = fmt.Errorf("more than %d loops and calls", stepsMax)
	errSlow   = fmt.Errorf("longer than %v", renderMax)
	errWork   = fmt.Errorf("more than %d bytes of strings on the way", workBytesMax)
	errSize   = fmt.Errorf("more than %d bytes", partBytesMax)
	errPrintf = fmt.Errorf("printf: up to %d verbs, and widths of up to three digits written out, are taken", verbsMax)
)

// limits are what one mail may still use up. They belong to one goroutine.
type limits struct {
	steps, work int
	until       time.Time
}

// nobody is for parsing, which wants to know the names of functions.
var nobody = &limits{}

func newLimits() *limits { return &limits{steps: stepsMax, work: workBytesMax} }

// run starts the clock.
func (l *limits) run(f func(*limits) error) error {
	l.until = time.Now().Add(renderMax)
	return f(l)
}

// tick is what a body begins with.
func (l *limits) tick() (string, error) {
	if l.steps--; l.steps < 0 {
		return "", errSteps
	}
	if !l.until.IsZero() && time.Now().After(l.until) {
		return "", errSlow
	}
	return "", nil
}

// funcs are what templates can call besides the functions of Go's templates that make no strings.
func (l *limits) funcs() map[string]any {
	account := func(f func(...any) string) func(...any) (string, error) {
		return func(args ...any) (string, error) {
			if len(args) > argsMax {
				return "", fmt.Errorf("%d arguments, up to %d are taken", len(args), argsMax)
			}
			s := f(args...)
			if l.work -= len(s); l.work < 0 {
				return "", errWork
			}
			return s, nil
		}
	}
	return map[string]any{
		"tick":  l.tick,
		"money": money,
		"printf": func(format string, args ...any) (string, error) {
			if strings.Count(format, "%") > verbsMax || wideVerb.MatchString(format) {
				return "", errPrintf
			}
			return account(func(args ...any) string { return fmt.Sprintf(format, args...) })(args...)
		},
		"print":    account(fmt.Sprint),
		"println":  account(fmt.Sprintln),
		"html":     account(texttemplate.HTMLEscaper),
		"js":       account(texttemplate.JSEscaper),
		"urlquery": account(texttemplate.URLQueryEscaper),
	}
}

var wideVerb = regexp.MustCompile(`%[^%a-zA-Z]*(\*|\d{4})`)

// ticking is the node `{{$tick := tick}}`: a declaration prints nothing, and html/template leaves it alone.
var ticking = texttemplate.Must(texttemplate.New("limits").Funcs(nobody.funcs()).Parse(`{{$tick := tick}}`)).Root.Nodes[0]

// count makes a template's body and the bodies of its loops tick.
func count(t *parse.Tree) {
	if t == nil || t.Root == nil {
		return
	}
	countList(t.Root, true)
}

func countList(list *parse.ListNode, ticks bool) {
	if list == nil {
		return
	}
	for _, n := range list.Nodes {
		switch n := n.(type) {
		case *parse.RangeNode:
			countList(n.List, true)
			countList(n.ElseList, false)
		case *parse.IfNode:
			countList(n.List, false)
			countList(n.ElseList, false)
		case *parse.WithNode:
			countList(n.List, false)
			countList(n.ElseList, false)
		}
	}
	if ticks {
		list.Nodes = append([]parse.Node{ticking.Copy()}, list.Nodes...)
	}
}

// capped takes so many bytes and then refuses, which ends the template.
type capped struct {
	w    io.Writer
	left int
}

func (c *capped) Write(p []byte) (int, error) {
	if c.left -= len(p); c.left < 0 {
		return 0, errSize
	}
	return c.w.Write(p)
}

// money writes minor units as people write the currency: 1999 usd is "19.99 USD", 1999 jpy "1999 JPY". A code that ISO 4217 does not know is
// an error: better no receipt than a wrong one.
func money(minor any, code any) (string, error) {
	amount, err := strconv.ParseInt(fmt.Sprint(minor), 10, 64)
	if err != nil {
		return "", errors.New("money: the amount is no whole number of minor units")
	}
	name, ok := code.(string)
	if !ok {
		return "", errors.New("money: the currency is no text")
	}
	unit, err := currency.ParseISO(name)
	if err != nil {
		return "", errors.New("money: the currency is no code of ISO 4217")
	}
	sign, digits := "", strconv.FormatInt(amount, 10)
	if amount < 0 {
		sign, digits = "-", digits[1:]
	}
	if scale, _ := currency.Standard.Rounding(unit); scale > 0 {
		if short := scale + 1 - len(digits); short > 0 {
			digits = strings.Repeat("0", short) + digits
		}
		digits = digits[:len(digits)-scale] + "." + digits[len(digits)-scale:]
	}
	return sign + digits + " " + unit.String(), nil
}
