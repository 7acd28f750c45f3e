package email_test

import (
	"context"
	"fmt"
	"net/mail"
	"os"
	"time"

	"tenderbox/jobs"
	"tenderbox/jobs/email"
	"tenderbox/store"
)

// Without a mail server mail is kept as files. With Options.SMTPURL the same program would send it.
func Example() {
	if err := example(); err != nil {
		fmt.Println(err)
	}
	// Output:
	// mail goes to files
	// To: <ada@example.com>
	// Subject: Welcome to our platform!
}

func example() error {
	dir, err := os.MkdirTemp("", "email")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	s, err := store.Open(dir+"/jobs.db", store.Options{})
	if err != nil {
		return err
	}
	defer s.Close()
	e, err := jobs.Open(s, jobs.Options{Queues: []jobs.QueueConfig{{Name: email.Queue}}})
	if err != nil {
		return err
	}
	defer e.Close()

	m, err := email.New(email.Options{Folder: dir, From: "shop@corner.example"})
	if err != nil {
		return err
	}
	fmt.Println("mail goes to", m.Status().Mode)

	handlers := m.Handlers()
	done := make(chan struct{})
	r, err := e.NewRunner(jobs.RunnerOptions{Queue: email.Queue, Ready: m.Ready, Handler: func(ctx context.Context, j *jobs.Job) error {
		defer close(done)
		return handlers[j.Name](ctx, j)
	}})
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	if _, err := e.Enqueue(ctx, jobs.NewJob{
		Queue: email.Queue, Tenant: "default", Name: email.SendJob,
		Data: []byte(`{"to": "ada@example.com", "template": "welcome", "data": {"name": "Ada"}}`),
	}); err != nil {
		return err
	}
	go func() {
		<-done
		cancel() // one job is enough here
	}()
	if err := r.Run(ctx); err != nil {
		return err
	}

	files, err := os.ReadDir(m.Status().Folder + "/default")
	if err != nil {
		return err
	}
	f, err := os.Open(m.Status().Folder + "/default/" + files[0].Name())
	if err != nil {
		return err
	}
	defer f.Close()
	kept, err := mail.ReadMessage(f)
	if err != nil {
		return err
	}
	fmt.Println("To:", kept.Header.Get("To"))
	fmt.Println("Subject:", kept.Header.Get("Subject"))
	return nil
}
