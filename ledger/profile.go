package ledger

import (
	"context"
	"database/sql"
	"errors"
	"time"

	json "github.com/go-json-experiment/json"
	"golang.org/x/text/language"

	"tenderbox/jobs"
	"tenderbox/shards"
	"tenderbox/tenants"
)

// profileName is what the jobs that make profiles are called.
const profileName = "create-profile"

// Profile is what the box keeps about a user beside what the app told: how to
// speak to them, and how their inbox stands. It lives in the user's slot. A user
// without one has the defaults, and gets it with the first notification.
type Profile struct {
	Object        string     `json:"object"` // "profile"
	UserID        UserID     `json:"user_id"`
	Locale        string     `json:"locale"`        // BCP 47
	Notifications bool       `json:"notifications"` // false: pushes end without an entry
	CreatedAt     *time.Time `json:"created_at"`    // nil: the defaults, nothing is stored
}

// ProfileChange says what to change; nil stays as it is.
type ProfileChange struct {
	Locale        *string
	Notifications *bool
}

const (
	localeDefault = "en"
	localeMax     = 35 // bytes, the least that RFC 5646 (4.4.1) wants taken

	// welcomeMessage is the first entry in an inbox, so that an app's first look shows how entries look.
	welcomeMessage = "Welcome! Messages for you appear here."
)

// createProfile is the job that gives a new user the profile.
func createProfile(e *Event) jobs.NewJob {
	data, err := json.Marshal(struct {
		UserID string `json:"user_id"`
	}{e.Subject})
	if err != nil { // an id was checked to be UTF-8
		panic(err)
	}
	return jobs.NewJob{Queue: NotificationsQueue, Tenant: string(e.Tenant), ID: "profile_" + string(e.ID), Name: profileName, Data: data}
}

// CreateProfile gives a user the profile and the first entry in the inbox. Twice is fine.
func (l *Ledger) CreateProfile(ctx context.Context, t tenants.ID, userID string) error {
	if err := checkRecipient(userID); err != nil {
		return err
	}
	now, slot := l.clock.now(), shards.SlotOf(string(t), userID)
	n := Notification{ID: l.ids.notification(now, slot), Object: "notification", UserID: UserID(userID), Message: welcomeMessage,
		Timestamp: now, DeliveredAt: &now}
	err := l.set.Shard(slot).Update(ctx, func(tx *shards.Tx) error {
		p, err := l.openProfile(tx, t, userID, now)
		if err != nil {
			return err
		}
		first, err := tx.Exec(`UPDATE profiles SET welcomed = 1 WHERE tenant = ? AND user_id = ? AND welcomed = 0`, string(t), userID)
		if err != nil || first == 0 || !p.Notifications {
			return err
		}
		return l.putNotification(tx, t, &n)
	})
	return unavailable(err)
}

// openProfile reads an existing user's profile, and makes it if there is none.
func (l *Ledger) openProfile(tx *shards.Tx, t tenants.ID, userID string, now time.Time) (Profile, error) {
	p, err := readProfile(tx, t, userID)
	if !errors.Is(err, sql.ErrNoRows) {
		return p, err
	}
	if err := userThere(tx, t, userID); err != nil {
		return Profile{}, err
	}
	_, err = tx.Exec(`INSERT INTO profiles (tenant, user_id, locale, notifications, created_at) VALUES (?,?,?,1,?)`,
		string(t), userID, localeDefault, now.UnixMilli())
	if err != nil {
		return Profile{}, err
	}
	return readProfile(tx, t, userID)
}

func readProfile(tx *shards.Tx, t tenants.ID, userID string) (p Profile, err error) {
	var created int64
	err = tx.QueryRow(`SELECT user_id, locale, notifications, created_at FROM profiles WHERE tenant = ? AND user_id = ?`,
		string(t), userID).Scan(&p.UserID, &p.Locale, &p.Notifications, &created)
	at := instant(created)
	p.Object, p.CreatedAt = "profile", &at
	return p, err
}

// Profile returns a user's profile.
func (l *Ledger) Profile(ctx context.Context, t tenants.ID, userID string) (p Profile, err error) {
	err = l.userShard(t, userID).View(ctx, func(tx *shards.Tx) (err error) {
		if p, err = readProfile(tx, t, userID); !errors.Is(err, sql.ErrNoRows) {
			return err
		}
		p = Profile{Object: "profile", UserID: UserID(userID), Locale: localeDefault, Notifications: true}
		return tx.QueryRow(`SELECT id FROM users WHERE tenant = ? AND id = ?`, string(t), userID).Scan(&p.UserID)
	})
	return p, found("user", err)
}

// ChangeProfile changes what the box keeps about a user.
func (l *Ledger) ChangeProfile(ctx context.Context, t tenants.ID, userID string, c ProfileChange) (p Profile, err error) {
	var locale any
	if c.Locale != nil {
		tag, err := language.Parse(*c.Locale)
		if err != nil || len(*c.Locale) > localeMax || tag == language.Und {
			return Profile{}, invalid("locale_invalid", "locale", "must be a language tag such as en, de-CH or pt-BR")
		}
		locale = tag.String()
	}
	now := l.clock.now()
	err = l.userShard(t, userID).Update(ctx, func(tx *shards.Tx) error {
		if _, err := l.openProfile(tx, t, userID, now); err != nil {
			return err
		}
		if _, err := tx.Exec(`UPDATE profiles SET locale = coalesce(?, locale), notifications = coalesce(?, notifications) WHERE tenant = ? AND user_id = ?`,
			locale, c.Notifications, string(t), userID); err != nil {
			return err
		}
		p, err = readProfile(tx, t, userID)
		return err
	})
	var refused *Error
	if errors.As(err, &refused) && refused.Code == codeUserUnknown {
		err = notFound("user") // named by the path here, not by a member
	}
	return p, unavailable(err)
}
