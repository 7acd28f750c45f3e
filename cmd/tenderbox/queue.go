package main

import (
	"fmt"
	"net/http"
	"net/url"
	"text/tabwriter"
	"time"
)

// queueCommand looks after the queues of a running box over its HTTP API.
type queueCommand struct {
	List        queueList        `cmd:"" help:"Lists the queues and how they stand."`
	Pause       queuePause       `cmd:"" help:"Starts no more jobs of a queue, also after a restart."`
	Resume      queueResume      `cmd:"" help:"Starts jobs of a paused queue again."`
	RetryFailed queueRetryFailed `cmd:"" name:"retry-failed" help:"Lets all failed jobs of a queue wait again."`
	SendNow     queueSendNow     `cmd:"" name:"send-now" help:"Makes all jobs of a queue that were put off due now."`
}

const queuesPath = "/api/v1/queues"

// queueFlags say of which box and of whose jobs a command speaks.
type queueFlags struct {
	boxFlags
	Tenant string `placeholder:"NAME" help:"Only this tenant's jobs; default: all of the box."`
}

// do asks the box, for the tenant if one is named.
func (f *queueFlags) do(t *terminal, method, path string, out any) error {
	b, err := f.open()
	if err != nil {
		return err
	}
	header := http.Header{}
	if f.Tenant != "" {
		header.Set("X-Tenant-ID", f.Tenant)
	}
	return b.send(t.ctx, method, path, header, nil, out)
}

// queueView is a queue as the API tells it, as far as the terminal shows it.
type queueView struct {
	Name     string  `json:"name"`
	Tenant   *string `json:"tenant"`
	ReadOnly bool    `json:"read_only"`
	Paused   bool    `json:"paused"`
	Counts   struct {
		Waiting, Delayed, Active, Completed, Failed int
	} `json:"counts"`
	OldestWaitingAt *time.Time `json:"oldest_waiting_at"`
}

type queueList struct {
	queueFlags
}

func (queueList) Help() string {
	return "Example:\n\n    tenderbox queue list\n    tenderbox queue list --tenant shop\n"
}

func (c *queueList) Run(t *terminal) error {
	w := tabwriter.NewWriter(t.stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "QUEUE\tOF\tSTATE\tWAITING\tDELAYED\tACTIVE\tCOMPLETED\tFAILED\tOLDEST WAITS SINCE")
	err := pages(queuesPath, func(path string, out any) error { return c.do(t, http.MethodGet, path, out) }, func(v *queueView) {
		of, state, oldest := "box", "running", ""
		if v.Tenant != nil {
			of = *v.Tenant
		}
		if v.Paused {
			state = "paused"
		}
		if v.OldestWaitingAt != nil {
			oldest = v.OldestWaitingAt.Local().Format(time.DateTime)
		}
		n := &v.Counts
		fmt.Fprintf(w, "%s\t%s\t%s\t%d\t%d\t%d\t%d\t%d\t%s\n", v.Name, of, state, n.Waiting, n.Delayed, n.Active, n.Completed, n.Failed, oldest)
	})
	if err != nil {
		return err
	}
	return w.Flush()
}

// queueNamed are the flags of a command about one queue.
type queueNamed struct {
	queueFlags
	Queue string `arg:"" help:"The queue's name."`
}

func (c *queueNamed) path(verb string) string {
	return queuesPath + "/" + url.PathEscape(c.Queue) + "/" + verb
}

// whose ends a sentence about the queue.
func (c *queueNamed) whose() string {
	if c.Tenant == "" {
		return ""
	}
	return " for tenant " + c.Tenant
}

type queuePause struct {
	queueNamed
}

func (queuePause) Help() string {
	return "What is active goes on, and jobs can still be added.\n\nExample:\n\n    tenderbox queue pause email\n    tenderbox queue pause email --tenant shop\n"
}

func (c *queuePause) Run(t *terminal) error {
	if err := c.do(t, http.MethodPost, c.path("pause"), nil); err != nil {
		return err
	}
	_, err := fmt.Fprintf(t.stdout, "Queue %s is paused%s.\n", c.Queue, c.whose())
	return err
}

type queueResume struct {
	queueNamed
}

func (queueResume) Help() string {
	return "Ends a pause of the same scope: of the whole queue, or with --tenant of that tenant's jobs.\n\nExample:\n\n    tenderbox queue resume email\n"
}

func (c *queueResume) Run(t *terminal) error {
	if err := c.do(t, http.MethodPost, c.path("resume"), nil); err != nil {
		return err
	}
	_, err := fmt.Fprintf(t.stdout, "Queue %s is resumed%s.\n", c.Queue, c.whose())
	return err
}

type queueRetryFailed struct {
	queueNamed
}

func (queueRetryFailed) Help() string {
	return "Their attempts are counted anew.\n\nExample:\n\n    tenderbox queue retry-failed email\n"
}

func (c *queueRetryFailed) Run(t *terminal) error {
	var done struct {
		Count int `json:"count"`
	}
	if err := c.do(t, http.MethodPost, c.path("retry-failed"), &done); err != nil {
		return err
	}
	_, err := fmt.Fprintf(t.stdout, "%d failed jobs of queue %s wait again%s.\n", done.Count, c.Queue, c.whose())
	return err
}

type queueSendNow struct {
	queueNamed
}

func (queueSendNow) Help() string {
	return "What was put off, by a delay or after a failed attempt, is tried at once. Of payments: if the line is up; the drain's pace holds.\n\nExample:\n\n    tenderbox queue send-now payments\n    tenderbox queue send-now payments --tenant shop\n"
}

func (c *queueSendNow) Run(t *terminal) error {
	var done struct {
		Count int `json:"count"`
	}
	if err := c.do(t, http.MethodPost, c.path("promote"), &done); err != nil {
		return err
	}
	_, err := fmt.Fprintf(t.stdout, "%d jobs of queue %s are due now%s.\n", done.Count, c.Queue, c.whose())
	return err
}
