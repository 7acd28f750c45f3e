package web

import (
	"context"
	"net/http"

	"github.com/danielgtaylor/huma/v2"

	"tenderbox/ledger"
)

const (
	statusPath = "/api/v1/status"
	shardsPath = "/api/v1/shards"
	healthPath = "/healthz"
	readyPath  = "/readyz"
)

type bareInput struct{ request }

type statusOutput struct{ Body ledger.Overview }

type shardsOutput struct {
	Body struct {
		Data []shardView `json:"data"`
	}
}

// shardView is how one shard file stands.
type shardView struct {
	ID       int     `json:"id"`
	State    string  `json:"state" enum:"serving,isolated"`
	Error    *string `json:"error" doc:"Why it is isolated."`
	Commits  uint64  `json:"commits" doc:"Group commits since start; each one fsync."`
	Writes   uint64  `json:"writes" doc:"Writes in them."`
	Queued   int     `json:"queued" doc:"Writes that wait now."`
	WALBytes int64   `json:"wal_bytes"`
}

type healthOutput struct {
	Body struct {
		Status string `json:"status" enum:"ok"`
	}
}

type readyOutput struct {
	Status int
	Body   struct {
		Ready    bool     `json:"ready" doc:"Payments can be taken."`
		Degraded []string `json:"degraded" doc:"Codes of what is not as it should be."`
	}
}

func (s *Server) registerStatus() {
	register(s, huma.Operation{
		OperationID: "get-status", Method: http.MethodGet, Path: statusPath, Tags: []string{"status"},
		Summary:     "See the line, the backlog and the queues",
		Description: "A tenant sees its own; the operator, naming no tenant, the whole box.",
	}, forAnyone, func(ctx context.Context, in *bareInput) (*statusOutput, error) {
		overview, err := s.ledger.Status(ctx, in.x.caller.Tenant)
		return &statusOutput{overview}, err
	})
	register(s, huma.Operation{
		OperationID: "list-shards", Method: http.MethodGet, Path: shardsPath, Tags: []string{"operator"},
		Summary: "See the shard files",
	}, operatorOnly, func(context.Context, *bareInput) (*shardsOutput, error) {
		out := &shardsOutput{}
		out.Body.Data = []shardView{}
		for _, sh := range s.ledger.Shards() {
			v := shardView{ID: sh.ID, State: "serving", Commits: sh.Stats.Commits, Writes: sh.Stats.Closures, Queued: sh.Stats.Queued, WALBytes: sh.Stats.WALBytes}
			if sh.Err != nil {
				why := sh.Err.Error()
				v.State, v.Error = "isolated", &why
			}
			out.Body.Data = append(out.Body.Data, v)
		}
		return out, nil
	})
}

func (s *Server) registerHealth() {
	register(s, huma.Operation{
		OperationID: "health", Method: http.MethodGet, Path: healthPath, Tags: []string{"machines"}, Summary: "Is the process alive?",
	}, public, func(context.Context, *bareInput) (*healthOutput, error) {
		out := &healthOutput{}
		out.Body.Status = "ok"
		return out, nil
	})
	register(s, huma.Operation{
		OperationID: "ready", Method: http.MethodGet, Path: readyPath, Tags: []string{"machines"},
		Summary:     "Can payments be taken?",
		Description: "503 when not. Without the line payments can be taken.",
	}, public, func(context.Context, *bareInput) (*readyOutput, error) {
		out := &readyOutput{Status: http.StatusOK}
		if out.Body.Ready, out.Body.Degraded = s.ledger.Ready(); !out.Body.Ready {
			out.Status = http.StatusServiceUnavailable
		}
		if out.Body.Degraded == nil {
			out.Body.Degraded = []string{}
		}
		return out, nil
	})
}
