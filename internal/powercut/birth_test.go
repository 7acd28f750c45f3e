package powercut

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"testing"
	"time"

	"tenderbox/internal/blackbox"
)

const (
	// births is how many boxes are begun. Each of birthCuts lasts birthChangesMax changes at most: a first start makes some 150.
	births, birthCuts, birthChangesMax = 12, 4, 200
	// birthMax ends what hangs.
	birthMax = 30 * time.Second
)

// TestPowerAtTheFirstStart takes the power away while a box makes its folder, again and again. The next start makes it whole, and the keys in it open it.
func TestPowerAtTheFirstStart(t *testing.T) {
	needsBox(t)
	first := *seedFlag
	if first == 0 {
		first = rand.Uint64N(1_000_000) + 1
	}
	for seed := first; seed < first+births; seed++ {
		t.Run(fmt.Sprintf("seed %d", seed), func(t *testing.T) { bear(t, seed) })
	}
}

func bear(t *testing.T, seed uint64) {
	ctx, cancel := context.WithTimeout(t.Context(), birthMax)
	defer cancel()
	top := t.TempDir()
	log, err := os.Create(filepath.Join(top, "box.log"))
	if err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(top, "data")
	d, err := Mount(dir, Options{Seed: seed})
	if err != nil {
		t.Fatal(err)
	}
	random := rand.New(rand.NewPCG(seed, 0))
	serve := func() *blackbox.Process {
		p, err := blackbox.Serve(blackbox.ServeOptions{Binary: *boxFlag, Data: dir, Log: log, Args: []string{"--shards", "2"}})
		if err != nil {
			t.Fatal(err)
		}
		return p
	}
	defer func() {
		if err := d.Close(); err != nil {
			t.Error(err)
		}
		if t.Failed() {
			t.Logf("the end of the box's log:\n%s", tail(log.Name()))
		}
	}()
	for range birthCuts {
		p := serve()
		cut, done := context.WithTimeout(ctx, time.Second)
		d.Cut(cut, 1+random.IntN(birthChangesMax), func() {
			select {
			case <-p.Exited():
				t.Errorf("the box ended by itself: %v", p.Err())
			default:
			}
			_ = p.Signal(os.Kill)
		})
		done()
		p.Kill()
		if err := d.Restore(); err != nil {
			t.Fatal(err)
		}
	}
	p := serve()
	defer p.Kill()
	url, err := p.Ready(ctx)
	if err != nil {
		t.Fatal(err)
	}
	for name, path := range map[string]string{"default.key": "/api/v1/payments", "operator.token": "/api/v1/status"} {
		secret, err := p.Secret(name)
		if err != nil {
			t.Error(err)
			continue
		}
		if status, _ := ask(ctx, t, secret, http.MethodGet, url+path, ""); status != http.StatusOK {
			t.Errorf("%s does not open the box: GET %s was answered %d", name, path, status)
		}
	}
	if err := p.Stop(ctx); err != nil {
		t.Error(err)
	}
	if _, err := blackbox.Run(ctx, *boxFlag, "check", "--data", dir); err != nil {
		t.Error(err)
	}
}
