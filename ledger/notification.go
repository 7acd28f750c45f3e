package ledger

import (
	"cmp"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"strconv"
	"time"

	json "github.com/go-json-experiment/json"

	"tenderbox/jobs"
	"tenderbox/shards"
	"tenderbox/tenants"
)

// pushName is what the jobs that deliver are called.
const pushName = "push-notification"

// Notification is a message in a user's inbox, or on its way there.
type Notification struct {
	ID          NotificationID `json:"id"`
	Object      string         `json:"object"` // "notification"
	UserID      UserID         `json:"user_id"`
	Message     string         `json:"message"`
	Timestamp   time.Time      `json:"timestamp"`    // of what it tells, as its sender says
	DeliveredAt *time.Time     `json:"delivered_at"` // nil: its job waits in the queue
	ReadAt      *time.Time     `json:"read_at"`
}

// NewNotification is a request for a notification.
type NewNotification struct {
	UserID  string
	Message string
}

// Push is what a job of the queue delivers.
type Push struct {
	// JobID and EnqueuedAt name the job for good: an id alone may be used again
	// once its job is gone, and means another message then.
	JobID      string
	EnqueuedAt time.Time

	UserID    string
	Message   string
	Timestamp time.Time // zero: that of the delivery
}

const (
	messageMax = 2000 // bytes; what a person reads at a glance, and no page of the inbox is large

	// inboxMax bounds a user's inbox: who reads the 1001st message back? The
	// oldest read ones make room first, then the oldest.
	inboxMax = 1000
)

const (
	// NotificationRequested is told when an app asked for one, and is what its job
	// is derived from: the row is the request. It is its own subject.
	NotificationRequested EventType = "notification.requested"
	// NotificationCreated and NotificationRead are told when a notification came
	// into its inbox, and when it was first read. Their data is the notification.
	NotificationCreated EventType = "notification.created"
	NotificationRead    EventType = "notification.read"
)

func checkMessage(s string) error {
	if s == "" {
		return invalid("message_missing", "message", "must be given")
	}
	if err := checkText("message", s, messageMax, false); err != nil {
		return err
	}
	if holdsCardNumber(s) {
		return cardData("message")
	}
	return nil
}

func checkRecipient(id string) error {
	if id == "" {
		return invalid("user_missing", "user_id", "a notification is for a user")
	}
	return checkText("user_id", id, appIDMax, true)
}

// Notify takes a notification of an app's. What it returns is durable, and on its
// way: its job has its id.
func (l *Ledger) Notify(ctx context.Context, t tenants.ID, key IdempotencyKey, n NewNotification) (Notification, bool, error) {
	if err := errors.Join(checkRecipient(n.UserID), checkMessage(n.Message)); err != nil {
		return Notification{}, false, err
	}
	return once(ctx, l, t, request[Notification]{key: key, meaning: []string{"notification", n.UserID, n.Message},
		read: func(ctx context.Context, id string) (Notification, error) { return l.requested(ctx, t, EventID(id)) },
		make: func(ctx context.Context, seen lookup) (Notification, error) {
			return l.notify(ctx, t, key, seen, &n)
		}})
}

func (l *Ledger) notify(ctx context.Context, t tenants.ID, key IdempotencyKey, seen lookup, in *NewNotification) (Notification, error) {
	now, slot := l.clock.now(), shards.SlotOf(string(t), in.UserID)
	n := Notification{ID: l.ids.notification(now, slot), Object: "notification", UserID: UserID(in.UserID), Message: in.Message, Timestamp: now}
	e := l.event(t, NotificationRequested, "", slot, now, n)
	e.Subject = string(e.ID)
	row := newKeyRow(t, key, recordID(e.ID), seen)
	err := l.set.Shard(slot).Update(ctx, func(tx *shards.Tx) error {
		if err := userThere(tx, t, in.UserID); err != nil {
			return err
		}
		tx.Attach(e)
		return row.attach(tx)
	})
	l.keys.settled(row, err)
	return n, err
}

// requested finds the notification that a key asked for, as it is now.
func (l *Ledger) requested(ctx context.Context, t tenants.ID, id EventID) (Notification, error) {
	e, err := l.emitted(ctx, t, id)
	if err != nil {
		return Notification{}, err
	}
	var n Notification
	if err := json.Unmarshal(e.Data, &n); err != nil {
		return Notification{}, fmt.Errorf("event %s: %w", id, err)
	}
	now, err := l.notification(ctx, t, string(n.ID))
	if errors.Is(err, sql.ErrNoRows) { // it waits in the queue, or had to make room
		return n, nil
	}
	return now, unavailable(err)
}

// pushJob is what a job named push-notification carries.
type pushJob struct {
	UserID    UserID    `json:"user_id"`
	Message   string    `json:"message"`
	Timestamp time.Time `json:"timestamp"`
}

// pushRequested is the job of a notification that was asked for.
func pushRequested(e *Event) jobs.NewJob {
	var n Notification
	err := json.Unmarshal(e.Data, &n)
	var data []byte
	if err == nil {
		data, err = json.Marshal(pushJob{n.UserID, n.Message, n.Timestamp})
	}
	if err != nil { // no row of ours is like that; its job fails, and says so
		data = e.Data
	}
	return jobs.NewJob{Queue: NotificationsQueue, Tenant: string(e.Tenant), ID: string(n.ID), Name: pushName, Data: data}
}

// Deliver puts a job's message into its user's inbox, once for each job however
// often it runs: the entry, the mark that the job was here and the event are one
// transaction. It returns the notification's id, or "" if the user wants none.
func (l *Ledger) Deliver(ctx context.Context, t tenants.ID, p Push) (id NotificationID, err error) {
	if err := errors.Join(checkRecipient(p.UserID), checkMessage(p.Message)); err != nil {
		return "", err
	}
	now, slot := l.clock.now(), shards.SlotOf(string(t), p.UserID)
	mark, asked := "push/"+p.JobID, NotificationID(p.JobID)
	if own, ok := asked.slot(); !ok || own != slot {
		mark, asked = mark+"/"+strconv.FormatInt(p.EnqueuedAt.UnixNano(), 10), ""
	}
	if p.Timestamp.IsZero() {
		p.Timestamp = now
	}
	n := Notification{Object: "notification", UserID: UserID(p.UserID), Message: p.Message,
		Timestamp: instant(p.Timestamp.UnixMilli()), DeliveredAt: &now}
	err = l.set.Shard(slot).Update(ctx, func(tx *shards.Tx) error {
		profile, err := l.openProfile(tx, t, p.UserID, now)
		if err != nil {
			return err
		}
		if !profile.Notifications {
			return nil
		}
		fresh, err := tx.Exec(`INSERT INTO recorded_events (tenant, id, recorded_at) VALUES (?,?,?) ON CONFLICT DO NOTHING`,
			string(t), mark, now.UnixMilli())
		if err != nil {
			return err
		}
		marked := now.UnixMilli()
		if fresh == 0 {
			err = tx.QueryRow(`SELECT recorded_at FROM recorded_events WHERE tenant = ? AND id = ?`, string(t), mark).Scan(&marked)
		}
		// The job of a request has the notification's id. Others get one of the delivery: it is the place
		// in the inbox, and a message that was delayed is new when it comes.
		n.ID = cmp.Or(asked, NotificationID(notificationPrefix+namedULID(t, mark, instant(marked), slot).String()))
		id = n.ID
		if err != nil || fresh == 0 {
			return err
		}
		return l.putNotification(tx, t, &n)
	})
	if err != nil {
		return "", unavailable(err)
	}
	return id, nil
}

// putNotification adds an entry to an inbox that has a profile, and makes room for it.
func (l *Ledger) putNotification(tx *shards.Tx, t tenants.ID, n *Notification) error {
	user := string(n.UserID)
	fresh, err := tx.Exec(`INSERT INTO notifications (tenant, user_id, id, message, occurred_at, delivered_at) VALUES (?,?,?,?,?,?) ON CONFLICT DO NOTHING`,
		string(t), user, string(n.ID), n.Message, n.Timestamp.UnixMilli(), n.DeliveredAt.UnixMilli())
	if err != nil || fresh == 0 {
		return err
	}
	slot, _ := n.ID.slot()
	tx.Attach(l.event(t, NotificationCreated, string(n.ID), slot, *n.DeliveredAt, n))
	var entries int
	err = tx.QueryRow(`UPDATE profiles SET entries = entries + 1, unread = unread + 1 WHERE tenant = ? AND user_id = ? RETURNING entries`,
		string(t), user).Scan(&entries)
	if err != nil || entries <= inboxMax {
		return err
	}
	var id string
	var read bool
	err = tx.QueryRow(`SELECT id, 1 FROM notifications INDEXED BY notifications_read
		WHERE tenant = ? AND user_id = ? AND read_at IS NOT NULL ORDER BY id LIMIT 1`, string(t), user).Scan(&id, &read)
	if errors.Is(err, sql.ErrNoRows) {
		err = tx.QueryRow(`SELECT id FROM notifications WHERE tenant = ? AND user_id = ? AND id <> ? ORDER BY id LIMIT 1`,
			string(t), user, string(n.ID)).Scan(&id)
	}
	if err != nil {
		return err
	}
	if _, err := tx.Exec(`DELETE FROM notifications WHERE tenant = ? AND user_id = ? AND id = ?`, string(t), user, id); err != nil {
		return err
	}
	_, err = tx.Exec(`UPDATE profiles SET entries = entries - 1, unread = unread - iif(?, 0, 1) WHERE tenant = ? AND user_id = ?`, read, string(t), user)
	return err
}

const notificationColumns = `id, user_id, message, occurred_at, delivered_at, read_at FROM notifications`

func scanNotification(row scanner) (n Notification, err error) {
	var occurred, delivered int64
	var read sql.NullInt64
	err = row.Scan(&n.ID, &n.UserID, &n.Message, &occurred, &delivered, &read)
	at := instant(delivered)
	n.Object, n.Timestamp, n.DeliveredAt, n.ReadAt = "notification", instant(occurred), &at, optionalTime(read)
	return n, err
}

func readNotification(tx *shards.Tx, t tenants.ID, id string) (Notification, error) {
	return scanNotification(tx.QueryRow(`SELECT `+notificationColumns+` INDEXED BY notifications_id WHERE tenant = ? AND id = ?`, string(t), id))
}

// notification returns one that was delivered, or ErrNoRows.
func (l *Ledger) notification(ctx context.Context, t tenants.ID, id string) (n Notification, err error) {
	slot, ok := NotificationID(id).slot()
	if !ok {
		return Notification{}, sql.ErrNoRows
	}
	err = l.set.Shard(slot).View(ctx, func(tx *shards.Tx) (err error) {
		n, err = readNotification(tx, t, id)
		return err
	})
	return n, err
}

// InboxFilter selects a page of a user's inbox.
type InboxFilter struct {
	UserID string // required
	Limit  int    // 1 to 100; 0 means 20
	Cursor string // NextCursor of the page before
}

// Inbox is part of a user's inbox, newest first.
type Inbox struct {
	Data       []Notification
	Unread     int // in the whole inbox
	HasMore    bool
	NextCursor string // "" when there is no more
}

// Inbox lists a user's notifications. The inbox of a user that is not there is empty.
func (l *Ledger) Inbox(ctx context.Context, t tenants.ID, f InboxFilter) (in Inbox, err error) {
	if err := checkRecipient(f.UserID); err != nil {
		return Inbox{}, err
	}
	if f.Limit, err = pageLimit(f.Limit); err != nil {
		return Inbox{}, err
	}
	before, err := pageCursor(f.Cursor, func(id string) bool { _, ok := NotificationID(id).slot(); return ok })
	if err != nil {
		return Inbox{}, err
	}
	query, args := `SELECT `+notificationColumns+` WHERE tenant = ? AND user_id = ?`, []any{string(t), f.UserID}
	if before != "" {
		query, args = query+` AND id < ?`, append(args, before)
	}
	err = l.userShard(t, f.UserID).View(ctx, func(tx *shards.Tx) error {
		in = Inbox{}
		err := tx.QueryRow(`SELECT unread FROM profiles WHERE tenant = ? AND user_id = ?`, string(t), f.UserID).Scan(&in.Unread)
		if errors.Is(err, sql.ErrNoRows) {
			return nil // nothing ever came
		}
		if err != nil {
			return err
		}
		rows, err := tx.Query(query+` ORDER BY id DESC LIMIT ?`, append(args, f.Limit+1)...)
		if err != nil {
			return err
		}
		defer rows.Close()
		for rows.Next() {
			n, err := scanNotification(rows)
			if err != nil {
				return err
			}
			in.Data = append(in.Data, n)
		}
		return rows.Err()
	})
	if err != nil {
		return Inbox{}, unavailable(err)
	}
	in.Data, in.NextCursor = cutPage(in.Data, f.Limit, func(n Notification) string { return string(n.ID) })
	in.HasMore = in.NextCursor != ""
	return in, nil
}

// ReadNotification marks a notification as read. Twice is fine: the first time stays.
func (l *Ledger) ReadNotification(ctx context.Context, t tenants.ID, id string) (n Notification, err error) {
	slot, ok := NotificationID(id).slot()
	if !ok {
		return Notification{}, notFound("notification")
	}
	now := l.clock.now()
	err = l.set.Shard(slot).Update(ctx, func(tx *shards.Tx) (err error) {
		if n, err = readNotification(tx, t, id); err != nil || n.ReadAt != nil {
			return err
		}
		n.ReadAt = &now
		if _, err := tx.Exec(`UPDATE notifications SET read_at = ? WHERE tenant = ? AND user_id = ? AND id = ?`,
			now.UnixMilli(), string(t), string(n.UserID), id); err != nil {
			return err
		}
		if _, err := tx.Exec(`UPDATE profiles SET unread = unread - 1 WHERE tenant = ? AND user_id = ?`, string(t), string(n.UserID)); err != nil {
			return err
		}
		tx.Attach(l.event(t, NotificationRead, id, slot, now, n))
		return nil
	})
	return n, found("notification", err)
}
