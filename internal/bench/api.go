package main

import (
	"context"
	"fmt"
	"io"
	"maps"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"text/tabwriter"
	"time"
)

const (
	// addConnections is where the goal of adding is set; bulks and workers come over fewer.
	addConnections  = 64
	bulkConnections = 4
	workConnections = 32
	// addedName is what the jobs are called.
	addedName = "send-receipt"
)

// addBody is a job as it is asked for, bulkBody a bulk of them.
var (
	addBody  = `{"name":"` + addedName + `","data":` + string(payload) + `}`
	bulkBody = `{"jobs":[` + strings.Repeat(addBody+",", bulkSize-1) + addBody + `]}`
)

// measureAPI compares jobs over HTTP with a server that answers the same and has none, in turns. The workers lease what was added
// in the same round, so that each round begins with an empty queue.
func measureAPI(ctx context.Context, o jobsOptions, binary, top string) error {
	plain, err := startNoop(ctx)
	if err != nil {
		return err
	}
	defer plain.stop()
	data := filepath.Join(top, "api")
	if err := os.Mkdir(data, 0o700); err != nil {
		return err
	}
	box, err := startBox(ctx, binary, data, "--upstream-url", deadLine)
	if err != nil {
		return err
	}
	defer box.stop()
	if err := box.declare(ctx, benchQueue); err != nil {
		return err
	}
	add, bulk := wanted{path: addPath, body: addBody, sign: `"waiting"`}, wanted{path: addPath, body: bulkBody, sign: `"waiting"`}
	servers := []*server{plain, box}
	for _, s := range servers { // pools and caches fill
		w, err := look(ctx, s, load{run: "warm", connections: addConnections, count: o.jobs / 10, want: add}, drive)
		if err == nil {
			_, err = look(ctx, s, load{connections: workConnections, count: w.done}, work)
		}
		if err != nil {
			return err
		}
	}
	steps := []struct {
		what  string
		load  load
		drive driver
		jobs  int // in a request
		goal  string
	}{
		{fmt.Sprintf("add, %d connections", addConnections), load{connections: addConnections, count: o.jobs, want: add}, drive, 1, "0.5"},
		{fmt.Sprintf("add bulks of %d, %d connections", bulkSize, bulkConnections), load{connections: bulkConnections, count: o.jobs / bulkSize, want: bulk}, drive, bulkSize, ""},
		{fmt.Sprintf("lease + complete, batches of %d, %d connections", leaseBatch, workConnections), load{connections: workConnections, count: 2 * o.jobs}, work, 1, "0.5 or 50,000/s"},
	}
	seen := map[*server][][]*window{plain: make([][]*window, len(steps)), box: make([][]*window, len(steps))}
	refused := map[int]int{}
	for range o.rounds {
		for i, step := range steps {
			for _, s := range servers {
				w, err := look(ctx, s, step.load, step.drive)
				if err != nil {
					return fmt.Errorf("%s: %w", step.what, err)
				}
				for status, n := range w.refused {
					refused[status] += n
				}
				seen[s][i] = append(seen[s][i], w)
			}
		}
	}
	fmt.Printf("Jobs over HTTP, %d bytes of data, durable, beside a no-op JSON handler on httprouter; median of %d rounds of %d jobs in turns\n", len(payload), o.rounds, o.jobs)
	table := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', tabwriter.AlignRight)
	_, _ = fmt.Fprintln(table, "what\tno-op jobs/s\tjobs/s\tratio\tgoal\tp50, p99 no-op\tp50, p99 box\tCPU µs a job no-op\tbox\tof it kernel\tafter the answer\tclient µs\tfsyncs/job\tbytes answered no-op, box\t")
	for i, step := range steps {
		p, b, each := summarise(seen[plain][i]), summarise(seen[box][i]), float64(step.jobs)
		_, _ = fmt.Fprintf(table, "%s\t%.0f\t%.0f\t%.2f\t%s\t%s, %s\t%s, %s\t%.1f\t%.1f\t%.1f\t%.1f\t%.1f, %.1f\t%.4f\t%d, %d\t\n",
			step.what, p.rate*each, b.rate*each, b.rate/p.rate, step.goal, micros(p.p50), micros(p.p99), micros(b.p50), micros(b.p99),
			p.cpu/each, b.cpu/each, b.kernel/each, b.after/each, p.client/each, b.client/each, syncsPerStore*b.store/each,
			seen[plain][i][0].answered, seen[box][i][0].answered)
	}
	if err := table.Flush(); err != nil {
		return err
	}
	fmt.Println("  latencies are of a request, or of a lease with its completion; CPU µs are the server process's own; client µs the load client's beside either")
	for _, status := range slices.Sorted(maps.Keys(refused)) {
		fmt.Printf("  %d requests were answered %d and are not counted\n", refused[status], status)
	}
	held, err := residentOf(box.pid)
	if err != nil {
		return err
	}
	fmt.Printf("  the box's RSS after all this: %s\n\n", held)
	return nil
}

// declareMax bounds the answer to a declaration.
const declareMax = 10 * time.Second

// declare makes a queue of the first tenant's own.
func (s *server) declare(ctx context.Context, queue string) error {
	ctx, cancel := context.WithTimeout(ctx, declareMax)
	defer cancel()
	request, err := http.NewRequestWithContext(ctx, http.MethodPut, "http://"+s.address+"/api/v1/queues/"+queue, strings.NewReader("{}"))
	if err != nil {
		return err
	}
	request.Header.Set("Authorization", "Bearer "+s.key)
	request.Header.Set("Content-Type", "application/json")
	answer, err := http.DefaultClient.Do(request)
	if err != nil {
		return err
	}
	defer answer.Body.Close()
	content, err := io.ReadAll(io.LimitReader(answer.Body, answerMax))
	if err == nil && answer.StatusCode/100 != 2 {
		err = fmt.Errorf("PUT queue %s: %d %s", queue, answer.StatusCode, content)
	}
	return err
}
