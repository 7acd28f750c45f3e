package jobs

import (
	"context"
	"encoding/json"
	"sync"
	"sync/atomic"
	"time"
)

const (
	// watchBuffer transitions wait for a reader at most. A second or so of a busy queue: who is further behind
	// had better read the state.
	watchBuffer = 256

	// watchersMax readers at a time: each costs every move of a job a look.
	watchersMax = 1024
)

// Transition is one move of a job, told live and not kept.
type Transition struct {
	Tenant, Queue, ID, Name string
	State                   State
	At                      time.Time
	Progress                json.RawMessage // set when only the progress changed
}

// watchers are the readers of transitions.
type watchers struct {
	any  atomic.Bool // whether there is one, for those who would tell nobody
	mu   sync.Mutex  // guards what follows
	all  map[*watcher]struct{}
	over bool
}

type watcher struct {
	tenant, queue string
	ch            chan Transition
	stop          func() bool // of the context's end
}

// Watch tells the moves of a tenant's ("": all tenants') jobs in a queue ("": all queues) from now on, until ctx ends; then the channel is
// closed. A reader who falls behind by more than watchBuffer moves has his channel closed before, and so has one too many
// and everybody when the engine closes: he reads the state anew. Of jobs that are removed nobody is told.
func (e *Engine) Watch(ctx context.Context, tenant, queue string) <-chan Transition {
	w := &watcher{tenant: tenant, queue: queue, ch: make(chan Transition, watchBuffer)}
	ws := &e.watchers
	ws.mu.Lock()
	defer ws.mu.Unlock()
	if ws.over || ctx.Err() != nil || len(ws.all) >= watchersMax {
		close(w.ch)
		return w.ch
	}
	if ws.all == nil {
		ws.all = map[*watcher]struct{}{}
	}
	ws.all[w] = struct{}{}
	ws.any.Store(true)
	w.stop = context.AfterFunc(ctx, func() {
		ws.mu.Lock()
		defer ws.mu.Unlock()
		ws.drop(w)
	})
	return w.ch
}

// drop closes a reader's channel, once. ws.mu is held.
func (ws *watchers) drop(w *watcher) {
	if _, in := ws.all[w]; !in {
		return
	}
	delete(ws.all, w)
	ws.any.Store(len(ws.all) > 0)
	w.stop()
	close(w.ch)
}

// tell passes a transition on to those who want it. It never waits for a reader.
func (ws *watchers) tell(t Transition) {
	ws.mu.Lock()
	defer ws.mu.Unlock()
	for w := range ws.all {
		if w.tenant != "" && w.tenant != t.Tenant || w.queue != "" && w.queue != t.Queue {
			continue
		}
		select {
		case w.ch <- t:
		default:
			ws.drop(w)
		}
	}
}

// close ends all of them.
func (ws *watchers) close() {
	ws.mu.Lock()
	defer ws.mu.Unlock()
	ws.over = true
	for w := range ws.all {
		ws.drop(w)
	}
}
