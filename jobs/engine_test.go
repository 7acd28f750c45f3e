package jobs_test

import (
	"testing"

	"tenderbox/jobs"
	"tenderbox/store"
	"tenderbox/store/storetest"
)

// open opens an engine on a fresh store; both are closed and checked when the test ends.
func open(t testing.TB, o jobs.Options) (*jobs.Engine, *store.Store) {
	t.Helper()
	s := storetest.Open(t, store.Options{})
	return openOn(t, s, o), s
}

func openOn(t testing.TB, s *store.Store, o jobs.Options) *jobs.Engine {
	t.Helper()
	e, err := jobs.Open(s, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := e.Close(); err != nil {
			t.Error(err)
		}
	})
	return e
}
