package ledger

import (
	"go/ast"
	"go/parser"
	"go/token"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
)

// Every statement names the tenant, or says with /* box */ that it serves the
// box as a whole (the relay, the counts at start, the audit).
func TestEveryStatementNamesTheTenant(t *testing.T) {
	isSQL := regexp.MustCompile(`^\s*(/\* box \*/\s*)?(SELECT|INSERT|UPDATE|DELETE)\b`)
	byTenant := regexp.MustCompile(`(?s)\btenant = \?|INSERT (OR FAIL )?INTO \w+ \((seq, id, )?tenant\b|\(tenant, record\) > \(\?, \?\)|k\.tenant|p\.tenant = \?`)
	paths, err := filepath.Glob("*.go")
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	check := func(text string) {
		if !isSQL.MatchString(text) || len(text) < 20 {
			return
		}
		n++
		if !strings.Contains(text, "/* box */") && !byTenant.MatchString(text) {
			t.Errorf("statement without a tenant:\n%s", text)
		}
	}
	for _, path := range paths {
		if strings.HasSuffix(path, "_test.go") {
			continue
		}
		f, err := parser.ParseFile(token.NewFileSet(), path, nil, 0)
		if err != nil {
			t.Fatal(err)
		}
		ast.Inspect(f, func(node ast.Node) bool {
			switch node := node.(type) {
			case *ast.BinaryExpr: // a statement put together from parts is read as one
				check(literals(node))
				return false
			case *ast.BasicLit:
				check(literals(node))
			}
			return true
		})
	}
	if n < 15 {
		t.Fatalf("only %d statements found: the test no longer sees them", n)
	}
	if byTenant.MatchString(`SELECT id FROM payments WHERE id = ?`) {
		t.Fatal("the pattern accepts a statement without a tenant")
	}
}

// literals joins the string literals of an expression.
func literals(node ast.Node) (text string) {
	ast.Inspect(node, func(node ast.Node) bool {
		if lit, ok := node.(*ast.BasicLit); ok && lit.Kind == token.STRING {
			if s, err := strconv.Unquote(lit.Value); err == nil {
				text += s
			}
		}
		return true
	})
	return text
}
