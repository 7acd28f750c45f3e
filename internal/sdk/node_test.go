package sdk

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

// Each file of scenarios runs under Node's own test runner against a box of its own. It is told where the box is, and two keys: the
// shop's, and the operator's for taking the line away.
func TestNode(t *testing.T) {
	files, err := filepath.Glob(filepath.Join("node", "*.test.js"))
	if err != nil || len(files) == 0 {
		t.Fatalf("no scenarios: %v", err)
	}
	for _, file := range files {
		t.Run(filepath.Base(file), func(t *testing.T) {
			s := openShop(t)
			node := exec.CommandContext(t.Context(), "node", "--test", filepath.Base(file))
			node.Dir = "node"
			node.Env = append(os.Environ(), "BOX_URL="+s.url, "BOX_KEY="+s.key, "BOX_OPERATOR="+s.operator)
			out, err := node.CombinedOutput()
			if err != nil {
				t.Errorf("%v\n%s", err, out)
			} else if testing.Verbose() {
				t.Logf("%s", out)
			}
		})
	}
}
