package ledger

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"net/mail"
	"strings"
	"sync"
	"time"

	json "github.com/go-json-experiment/json"
	"golang.org/x/text/cases"
	"golang.org/x/text/unicode/norm"

	"tenderbox/shards"
	"tenderbox/tenants"
)

// UserID names a user within its tenant: the app's own id, or one of ours. It is
// hashed to the slot in which all that belongs to the user lives.
type UserID string

// User is a tenant's customer or member of staff, as the app knows them.
type User struct {
	ID         UserID     `json:"id"`
	Object     string     `json:"object"` // "user"
	Email      string     `json:"email"`
	Name       string     `json:"name"`
	VerifiedAt *time.Time `json:"verified_at"`
	CreatedAt  time.Time  `json:"created_at"`
	UpdatedAt  time.Time  `json:"updated_at"`

	// Version grows with each change: what If-Match is held against.
	Version int64 `json:"version"`
}

// NewUser is a request for a user.
type NewUser struct {
	ID    string // "": the box makes one
	Email string
	Name  string
}

// UserChange says what to change; nil stays as it is.
type UserChange struct {
	Email, Name *string
	Version     int64 // the change is refused if the user has another; 0: whatever it has
}

const (
	nameMax  = 200 // bytes; the longest names of people are shorter
	emailMax = 254 // bytes, as RFC 5321 has it
)

const (
	// UserCreated and UserVerified: their data is the user.
	UserCreated  EventType = "user.created"
	UserVerified EventType = "user.verified"
)

var errEmailTaken = &Error{Kind: Conflict, Code: "email_taken", Field: "email", Message: "another user has this e-mail address"}

// errEmailClaimed is told while the same address is on its way in.
var errEmailClaimed = &Error{Kind: Conflict, Code: "email_taken", Field: "email", RetryAfter: retryAfterDefault,
	Message: "a user with this e-mail address is being stored at this moment"}

// foldEmail is the form in which addresses are compared: case-folded, in one
// Unicode form. Which mailboxes a host tells apart by case only it knows, and none does.
func foldEmail(s string) string { return norm.NFC.String(cases.Fold().String(norm.NFC.String(s))) }

func checkEmail(s string) error {
	a, err := mail.ParseAddress(s)
	if err != nil || a.Address != s || a.Name != "" || len(s) > emailMax || !strings.Contains(s, "@") {
		return invalid("email_invalid", "email", "must be one e-mail address such as ana@example.org, without a name")
	}
	if err := checkText("email", s, emailMax, true); err != nil {
		return err
	}
	if holdsCardNumber(s) {
		return cardData("email")
	}
	return nil
}

func checkName(s string) error {
	if err := checkText("name", s, nameMax, true); err != nil {
		return err
	}
	if holdsCardNumber(s) {
		return cardData("name")
	}
	return nil
}

func (n *NewUser) validate() error {
	if err := checkText("id", n.ID, appIDMax, true); err != nil {
		return err
	}
	if strings.Trim(n.ID, ".") == "" && n.ID != "" || strings.ContainsAny(n.ID, "/\\?#% ") {
		return invalid("id_invalid", "id", "must be fit for a path: no slashes, spaces, dots alone, nor ? # %")
	}
	if err := checkEmail(n.Email); err != nil {
		return err
	}
	return checkName(n.Name)
}

// emails are addresses on their way into a shard. With the index of each file
// they make addresses unique in their tenant: this process owns every file.
type emails struct{ claims sync.Map } // [2]string{tenant, folded} → struct{}

func (e *emails) claim(t tenants.ID, folded string) (end func(), err error) {
	c := [2]string{string(t), folded}
	if _, taken := e.claims.LoadOrStore(c, struct{}{}); taken {
		return nil, errEmailClaimed
	}
	return func() { e.claims.Delete(c) }, nil
}

// CreateUser adds a user. Errors are *[Error]: a used id or address is a Conflict.
func (l *Ledger) CreateUser(ctx context.Context, t tenants.ID, key IdempotencyKey, n NewUser) (User, bool, error) {
	if err := n.validate(); err != nil {
		return User{}, false, err
	}
	return once(ctx, l, t, request[User]{key: key, meaning: []string{"user", n.ID, n.Email, n.Name},
		read: func(ctx context.Context, id string) (User, error) { return l.User(ctx, t, id) },
		make: func(ctx context.Context, seen lookup) (User, error) {
			return l.createUser(ctx, t, key, seen, &n)
		}})
}

func (l *Ledger) createUser(ctx context.Context, t tenants.ID, key IdempotencyKey, seen lookup, n *NewUser) (User, error) {
	now := l.clock.now()
	u := User{ID: UserID(n.ID), Object: "user", Email: n.Email, Name: n.Name, CreatedAt: now, UpdatedAt: now, Version: 1}
	if u.ID == "" {
		u.ID = l.ids.user(now)
	}
	folded := foldEmail(u.Email)
	end, err := l.emails.claim(t, folded)
	if err != nil {
		return User{}, err
	}
	defer end()
	if err := l.emailFree(ctx, t, folded, ""); err != nil {
		return User{}, err
	}
	slot := shards.SlotOf(string(t), string(u.ID))
	row := newKeyRow(t, key, l.ids.userRecord(now, slot, u.ID), seen)
	event := l.event(t, UserCreated, string(u.ID), slot, now, u)
	err = l.set.Shard(slot).Update(ctx, func(tx *shards.Tx) error {
		n, err := tx.Exec(`INSERT INTO users (tenant, id, email, email_folded, name, created_at, updated_at) VALUES (?,?,?,?,?,?,?) ON CONFLICT DO NOTHING`,
			string(t), string(u.ID), u.Email, folded, u.Name, now.UnixMilli(), now.UnixMilli())
		if err != nil {
			return err
		}
		if n == 0 {
			return &Error{Kind: Conflict, Code: "user_exists", Field: "id", Message: "there is a user of this id"}
		}
		tx.Attach(event)
		return row.attach(tx)
	})
	l.keys.settled(row, err)
	return u, err
}

const userColumns = `id, email, name, verified_at, created_at, updated_at, version FROM users`

func scanUser(row scanner) (u User, err error) {
	var verified sql.NullInt64
	var created, updated int64
	err = row.Scan(&u.ID, &u.Email, &u.Name, &verified, &created, &updated, &u.Version)
	u.Object, u.VerifiedAt, u.CreatedAt, u.UpdatedAt = "user", optionalTime(verified), instant(created), instant(updated)
	return u, err
}

// User returns one of the tenant's users.
func (l *Ledger) User(ctx context.Context, t tenants.ID, id string) (u User, err error) {
	err = l.userShard(t, id).View(ctx, func(tx *shards.Tx) (err error) {
		u, err = scanUser(tx.QueryRow(`SELECT `+userColumns+` WHERE tenant = ? AND id = ?`, string(t), id))
		return err
	})
	return u, found("user", err)
}

// codeUserUnknown tells that a member names a user that the tenant does not have.
const codeUserUnknown = "user_unknown"

// userThere refuses what is for a user that the tenant does not have.
func userThere(tx *shards.Tx, t tenants.ID, id string) error {
	var one int
	err := tx.QueryRow(`SELECT 1 FROM users WHERE tenant = ? AND id = ?`, string(t), id).Scan(&one)
	if errors.Is(err, sql.ErrNoRows) {
		return invalid(codeUserUnknown, "user_id", "no such user")
	}
	return err
}

func (l *Ledger) userShard(t tenants.ID, id string) *shards.Shard {
	return l.set.Shard(shards.SlotOf(string(t), id))
}

// found turns a missing row into NotFound, and a shard's error into words.
func found(what string, err error) error {
	if errors.Is(err, sql.ErrNoRows) {
		return notFound(what)
	}
	return unavailable(err)
}

// UserByEmail returns the tenant's user with this address, in any case of letters.
func (l *Ledger) UserByEmail(ctx context.Context, t tenants.ID, email string) (User, bool, error) {
	if err := checkEmail(email); err != nil {
		return User{}, false, err
	}
	return l.userByEmail(ctx, t, foldEmail(email))
}

// userByEmail asks every file: with one out of service nobody knows whether the
// address is in it.
func (l *Ledger) userByEmail(ctx context.Context, t tenants.ID, folded string) (u User, ok bool, err error) {
	var mu sync.Mutex // guards u and ok
	err = each(ctx, l.set.All(), func(_ context.Context, tx *shards.Tx) error {
		one, err := scanUser(tx.QueryRow(`SELECT `+userColumns+` INDEXED BY users_email WHERE tenant = ? AND email_folded = ?`, string(t), folded))
		if errors.Is(err, sql.ErrNoRows) {
			return nil
		}
		if err == nil {
			mu.Lock()
			u, ok = one, true
			mu.Unlock()
		}
		return err
	})
	return u, ok, unavailable(err)
}

// emailFree refuses an address that another user than id has, or may have: a file that takes no writes may hold a commit that failed,
// which cannot be seen, and which the next start may take up. The caller holds the claim.
func (l *Ledger) emailFree(ctx context.Context, t tenants.ID, folded, id string) error {
	other, taken, err := l.userByEmail(ctx, t, folded)
	if err != nil {
		return err
	}
	if taken && string(other.ID) != id {
		return errEmailTaken
	}
	for _, sh := range l.set.All() {
		if out := sh.Err(); out != nil {
			return fmt.Errorf("%w: %w", shards.ErrUnavailable, out)
		}
	}
	return nil
}

var errVersion = &Error{Kind: Stale, Code: "version_mismatch", Field: "If-Match", Message: "the record was changed meanwhile; read it again"}

// ChangeUser changes a user's address or name.
func (l *Ledger) ChangeUser(ctx context.Context, t tenants.ID, id string, c UserChange) (u User, err error) {
	if c.Email != nil {
		if err := checkEmail(*c.Email); err != nil {
			return User{}, err
		}
		folded := foldEmail(*c.Email)
		end, err := l.emails.claim(t, folded)
		if err != nil {
			return User{}, err
		}
		defer end()
		if err := l.emailFree(ctx, t, folded, id); err != nil {
			return User{}, unavailable(err)
		}
	}
	if c.Name != nil {
		if err := checkName(*c.Name); err != nil {
			return User{}, err
		}
	}
	err = l.changeUser(ctx, t, id, func(tx *shards.Tx, now time.Time, was User) (User, error) {
		if c.Version != 0 && c.Version != was.Version {
			return was, errVersion
		}
		u := was
		if c.Email != nil {
			u.Email = *c.Email
			if foldEmail(u.Email) != foldEmail(was.Email) {
				u.VerifiedAt = nil // the new address was never proven
			}
		}
		if c.Name != nil {
			u.Name = *c.Name
		}
		return u, nil
	}, &u)
	return u, err
}

// VerifyUser notes that the user's address was proven. Twice is fine: the first time stays.
func (l *Ledger) VerifyUser(ctx context.Context, t tenants.ID, id string) (u User, err error) {
	err = l.changeUser(ctx, t, id, func(tx *shards.Tx, now time.Time, was User) (User, error) {
		if was.VerifiedAt != nil {
			return was, nil
		}
		u := was
		u.VerifiedAt = &now
		after := u
		after.UpdatedAt, after.Version = now, was.Version+1
		tx.Attach(l.event(t, UserVerified, id, shards.SlotOf(string(t), id), now, after))
		return u, nil
	}, &u)
	return u, err
}

// changeUser reads the user, lets change decide, and stores what it returns, in one transaction. out is the user after it.
func (l *Ledger) changeUser(ctx context.Context, t tenants.ID, id string, change func(tx *shards.Tx, now time.Time, was User) (User, error), out *User) error {
	now := l.clock.now()
	err := l.userShard(t, id).Update(ctx, func(tx *shards.Tx) error {
		was, err := scanUser(tx.QueryRow(`SELECT `+userColumns+` WHERE tenant = ? AND id = ?`, string(t), id))
		if err != nil {
			return err
		}
		u, err := change(tx, now, was)
		if err != nil {
			return err
		}
		*out = u
		if u == was {
			return nil
		}
		u.UpdatedAt, u.Version = now, was.Version+1
		*out = u
		var verified any
		if u.VerifiedAt != nil {
			verified = u.VerifiedAt.UnixMilli()
		}
		_, err = tx.Exec(`UPDATE users SET email = ?, email_folded = ?, name = ?, verified_at = ?, updated_at = ?, version = ? WHERE tenant = ? AND id = ?`,
			u.Email, foldEmail(u.Email), u.Name, verified, now.UnixMilli(), u.Version, string(t), id)
		return err
	})
	return found("user", err)
}

// event describes a change of a record other than a payment.
func (l *Ledger) event(t tenants.ID, typ EventType, subject string, slot shards.Slot, at time.Time, data any) *Event {
	b, err := json.Marshal(data)
	if err != nil { // structs of strings, numbers and times always encode
		panic(err)
	}
	return &Event{ID: l.ids.event(at, slot), Tenant: t, Type: typ, Subject: subject, Slot: slot, OccurredAt: at, Data: b}
}
