package main

import (
	"encoding/json"
	"io"
	"net/http/httptest"
	"strings"
	"testing"
	"time"
)

// tell has a queue of a kind do tasks, and returns its answers.
func tell(t *testing.T, kind string, tasks ...task) []done {
	t.Helper()
	var in, out strings.Builder
	for _, task := range tasks {
		if err := json.NewEncoder(&in).Encode(task); err != nil {
			t.Fatal(err)
		}
	}
	if err := playQueue(t.Context(), []string{kind, t.TempDir()}, strings.NewReader(in.String()), &out); err != nil {
		t.Fatal(err)
	}
	var answers []done
	for from := json.NewDecoder(strings.NewReader(out.String())); ; {
		var d done
		if err := from.Decode(&d); err == io.EOF {
			break
		} else if err != nil {
			t.Fatal(err)
		}
		answers = append(answers, d)
	}
	if len(answers) != len(tasks)+1 {
		t.Fatalf("%d answers to %d tasks and its being ready", len(answers), len(tasks))
	}
	return answers[1:]
}

func TestQueueDoesWhatItCounts(t *testing.T) {
	for _, kind := range []string{engineKind, bareKind} {
		t.Run(kind, func(t *testing.T) {
			for i, d := range tell(t, kind,
				task{Do: enqueueTask, Jobs: 300, At: 10, Tenants: 3},
				task{Do: enqueueTask, Jobs: 2500, At: 2, Bulk: bulkSize},
				task{Do: runTask, Jobs: 2800, At: 8},
			) {
				if d.Error != "" || d.Jobs != []int{300, 2500, 2800}[i] || d.Took <= 0 || d.Commits == 0 || d.Commits > uint64(d.Jobs) {
					t.Errorf("task %d: %+v", i, d)
				}
			}
			if d := tell(t, kind, task{Do: "dance"}); d[0].Error == "" {
				t.Error("it takes any task")
			}
		})
	}
}

// Jobs that are delayed must not be among those that run, or the run beside a stock measures the stock.
func TestStockStaysWhereItIs(t *testing.T) {
	answers := tell(t, engineKind,
		task{Do: enqueueTask, Jobs: 50, At: 1, Delay: farOff},
		task{Do: enqueueTask, Jobs: 20, At: 1},
		task{Do: runTask, Jobs: 20, At: 4},
	)
	if d := answers[2]; d.Error != "" || d.Jobs != 20 {
		t.Errorf("%+v", d)
	}
}

func TestPayloadIsWhatTheGoalsSay(t *testing.T) {
	if len(payload) != 200 || !json.Valid(payload) {
		t.Errorf("%d bytes: %s", len(payload), payload)
	}
	if !json.Valid([]byte(addBody)) || !json.Valid([]byte(bulkBody)) || strings.Count(bulkBody, addedName) != bulkSize {
		t.Error("the bodies are not what they are meant to be")
	}
}

func TestAddAndWorkOverHTTP(t *testing.T) {
	s := httptest.NewServer(noop())
	defer s.Close()
	add := load{address: address(s), connections: 3, count: 30, want: wanted{path: addPath, body: addBody, sign: `"waiting"`}}
	r, err := drive(t.Context(), add)
	if err != nil || r.done != 30 || r.answered < 500 {
		t.Errorf("%+v, %v", r, err)
	}
	r, err = work(t.Context(), load{address: address(s), connections: 2, count: 3 * leaseBatch})
	if err != nil || r.done != 3*leaseBatch || len(r.latencies) != 3 {
		t.Errorf("%+v, %v", r, err)
	}
	add.want.sign = "what is not there"
	if _, err := drive(t.Context(), add); err == nil {
		t.Error("an answer was not looked at")
	}
}

func TestCompletionSpeaksOfEachJob(t *testing.T) {
	var leased noopJobs
	for i := range leaseBatch {
		j := newNoopJob(i, addedName, payload, "active")
		j.LeaseToken = noopToken
		leased.Jobs = append(leased.Jobs, j)
	}
	content, err := json.Marshal(leased)
	if err != nil {
		t.Fatal(err)
	}
	body, err := completion(nil, content)
	if err != nil {
		t.Fatal(err)
	}
	var said noopComplete
	if err := json.Unmarshal(body, &said); err != nil || len(said.Jobs) != leaseBatch {
		t.Fatalf("%v: %s", err, body)
	}
	for i, j := range said.Jobs {
		if j.ID != noopID(i) || j.LeaseToken != noopToken {
			t.Errorf("job %d: %+v", i, j)
		}
	}
	leased.Jobs = leased.Jobs[1:]
	if content, err = json.Marshal(leased); err != nil {
		t.Fatal(err)
	}
	if _, err := completion(nil, content); err == nil {
		t.Error("too few jobs were taken for a batch")
	}
}

func TestMiddle(t *testing.T) {
	ds := []done{{Jobs: 10, Took: time.Second}, {Jobs: 30, Took: time.Second}, {Jobs: 20, Took: time.Second}}
	if got := middle(ds, done.rate); got != 20 {
		t.Errorf("median %v, want 20", got)
	}
}
