package torture

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io/fs"
	"net/http"
	"net/mail"
	"os"
	"path/filepath"
	"strings"
	"time"
)

const (
	// clerkPause is between two of a clerk's acts, and a tenant is one of so many: each changes box.db and its copy.
	clerkPause  = 60 * time.Millisecond
	tenantEvery = 8
)

// Hire is a tenant whose making the box has acknowledged, with the key that it gave out, once.
type Hire struct {
	Tenant, Key string
	Opens       int // status of the key's own request at the end
}

// Newcomer is a user whose making the box has acknowledged.
type Newcomer struct {
	Tenant, Email string
	Found         bool // at the end
	Welcomed      bool // a mail to the address was kept as a file
}

// clerk makes tenants, which stand in box.db, and users, each of which gets a mail: what payments do not touch.
func (r *round) clerk(ctx context.Context) {
	k := r.box
	for n := 0; r.paying.Load(); n++ {
		tenant := []string{"default", secondTenant}[n%2]
		if name := fmt.Sprintf("shop-%d", n); n%tenantEvery == 0 {
			var made struct {
				Key string `json:"api_key"`
			}
			if k.post(ctx, k.token, "/api/v1/tenants", map[string]string{"id": name}, &made) && made.Key != "" {
				r.history.hire(Hire{Tenant: name, Key: made.Key})
			}
		} else if email := fmt.Sprintf("customer-%d@example.org", n); k.post(ctx, r.keys[tenant], "/api/v1/users", map[string]string{"email": email, "name": "A Customer"}, nil) {
			r.history.welcome(Newcomer{Tenant: tenant, Email: email})
		}
		if pause(ctx, clerkPause) != nil {
			return
		}
	}
}

// post tells whether a POST was answered 201; then the answer is in into.
func (k *keeper) post(ctx context.Context, key, path string, body, into any) bool {
	content, err := json.Marshal(body)
	if err != nil {
		return false
	}
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, k.url()+path, bytes.NewReader(content))
	if err != nil {
		return false
	}
	request.Header.Set("Authorization", "Bearer "+key)
	request.Header.Set("Content-Type", "application/json")
	answer, err := k.client.Do(request)
	if err != nil {
		return false
	}
	defer answer.Body.Close()
	return answer.StatusCode == http.StatusCreated && (into == nil || json.NewDecoder(answer.Body).Decode(into) == nil)
}

// inspect asks for everything that the clerk made.
func (r *round) inspect(ctx context.Context) error {
	hired, welcomed := r.history.made()
	for i := range hired {
		status, err := r.box.try(ctx, hired[i].Key)
		if err != nil {
			return err
		}
		hired[i].Opens = status
	}
	for i, u := range welcomed {
		var page struct{ Data []struct{ Email string } }
		if err := r.box.get(ctx, u.Tenant, "/api/v1/users?email="+u.Email, &page); err != nil {
			return err
		}
		welcomed[i].Found = len(page.Data) == 1 && page.Data[0].Email == u.Email
	}
	r.history.inspected(hired, welcomed)
	return nil
}

// try is the status that a key's own list of payments is answered with.
func (k *keeper) try(ctx context.Context, key string) (int, error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, k.url()+"/api/v1/payments?limit=1", nil)
	if err != nil {
		return 0, err
	}
	request.Header.Set("Authorization", "Bearer "+key)
	answer, err := k.client.Do(request)
	if err != nil {
		return 0, err
	}
	return answer.StatusCode, answer.Body.Close()
}

// mailed reads to whom there are mails below a stopped box's folder, by tenant and address.
func mailed(data string) (map[[2]string]bool, error) {
	to, out := map[[2]string]bool{}, filepath.Join(data, "mail", "out")
	err := filepath.WalkDir(out, func(file string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || filepath.Ext(file) != ".eml" {
			return err
		}
		content, err := os.ReadFile(file)
		for line := range strings.Lines(string(content)) {
			if address, ok := strings.CutPrefix(line, "To: "); ok {
				who, err := mail.ParseAddress(strings.TrimSpace(address))
				if err != nil {
					return err
				}
				to[[2]string{filepath.Base(filepath.Dir(file)), who.Address}] = true
				break
			}
		}
		return err
	})
	if os.IsNotExist(err) {
		return to, nil
	}
	return to, err
}

// made looks at what the clerk made: it is there, and a user was welcomed. (A queue that was lost took mails with it; the box says so.)
func (j *judgement) made() {
	for _, h := range j.e.Hired {
		if h.Opens != http.StatusOK {
			j.found(TenantLost, "%s: its key is answered %d", h.Tenant, h.Opens)
		}
	}
	for _, u := range j.e.Newcomers {
		switch {
		case !u.Found:
			j.found(UserLost, "%s/%s", u.Tenant, u.Email)
		case !u.Welcomed && !j.e.QueueLost:
			j.found(MailLost, "%s/%s", u.Tenant, u.Email)
		}
	}
}
