package ledger

import "tenderbox/shards"

// migrations is the ledger's part of every shard file. A migration that has
// been released is never edited; a change is a further entry.
//
// Every table of a tenant's records begins its primary key with the tenant, so
// that a tenant's rows are one contiguous range. Times are milliseconds since
// 1970 UTC. Rows that are read on every request are small; what is long or
// rarely read stands in a side table.
var migrations = []shards.Migration{{Version: 1, Name: "payments", SQL: `
CREATE TABLE payments (
	tenant          TEXT    NOT NULL,
	id              TEXT    NOT NULL,
	amount          INTEGER NOT NULL CHECK (amount > 0),
	currency        TEXT    NOT NULL CHECK (length(currency) = 3),
	status          TEXT    NOT NULL CHECK (status IN ('pending', 'succeeded', 'failed')),
	sync            TEXT    NOT NULL CHECK (sync IN ('queued', 'sending', 'in_doubt', 'settled', 'review')),
	attempts        INTEGER NOT NULL DEFAULT 0,
	first_sent_at   INTEGER,
	account         TEXT,                       -- upstream account, pinned by the first seal
	last_error      TEXT,
	upstream_id     TEXT,
	failure_code    TEXT,
	failure_decline TEXT,
	failure_message TEXT,
	amount_refunded INTEGER NOT NULL DEFAULT 0 CHECK (amount_refunded BETWEEN 0 AND amount),
	order_id        TEXT,
	user_id         TEXT,
	source          BLOB,                       -- sealed; erased when the payment is final
	source_kind     TEXT    NOT NULL CHECK (source_kind IN ('source', 'payment_method')),
	has_extras      INTEGER NOT NULL DEFAULT 0,
	taken_offline   INTEGER NOT NULL,
	created_at      INTEGER NOT NULL,
	settled_at      INTEGER,
	PRIMARY KEY (tenant, id),
	CHECK ((sync = 'settled') = (status <> 'pending')),
	CHECK (status <> 'succeeded' OR upstream_id IS NOT NULL)
) STRICT, WITHOUT ROWID;

CREATE INDEX payments_open ON payments (tenant, id) WHERE sync <> 'settled';
CREATE INDEX payments_failed ON payments (tenant, id) WHERE status = 'failed';
CREATE INDEX payments_user ON payments (tenant, user_id, id) WHERE user_id IS NOT NULL;

CREATE TABLE payment_extras (
	tenant      TEXT NOT NULL,
	payment_id  TEXT NOT NULL,
	description TEXT,
	metadata    TEXT,                           -- JSON object of strings
	PRIMARY KEY (tenant, payment_id)
) STRICT, WITHOUT ROWID;

-- In the order of the records and not of the keys: rows are added at the end of
-- a tenant's range, and a group of them costs a page instead of a page each.
-- That a key is used once is held in memory: see keys.
CREATE TABLE idempotency_keys (
	tenant      TEXT    NOT NULL,
	record      TEXT    NOT NULL,               -- id of what the request made
	key         TEXT    NOT NULL,
	fingerprint BLOB    NOT NULL,               -- keyed hash of the canonical request
	PRIMARY KEY (tenant, record)
) STRICT, WITHOUT ROWID;

-- One row an upstream key: the exact bytes that are sent under it, whenever.
CREATE TABLE sends (
	tenant       TEXT    NOT NULL,
	payment_id   TEXT    NOT NULL,
	upstream_key TEXT    NOT NULL,
	path         TEXT    NOT NULL,
	body         BLOB,                          -- sealed; erased when the payment is final
	body_hash    BLOB    NOT NULL,              -- SHA-256 of the clear bytes
	sealed_at    INTEGER NOT NULL,
	PRIMARY KEY (tenant, payment_id, upstream_key)
) STRICT, WITHOUT ROWID;

-- One row a try. A try without an outcome was cut short and may have left.
CREATE TABLE attempts (
	tenant       TEXT    NOT NULL,
	payment_id   TEXT    NOT NULL,
	n            INTEGER NOT NULL,
	upstream_key TEXT    NOT NULL,
	account      TEXT    NOT NULL,
	epoch        INTEGER NOT NULL,
	started_at   INTEGER NOT NULL,
	ended_at     INTEGER,
	outcome      TEXT CHECK (outcome IN ('succeeded', 'declined', 'retryable', 'unknown')),
	maybe_sent   INTEGER,
	http_status  INTEGER,
	request_id   TEXT,
	reason       TEXT,
	evidence     TEXT,                          -- the processor's object, allow-listed members, JSON
	PRIMARY KEY (tenant, payment_id, n)
) STRICT, WITHOUT ROWID;

-- The outbox. Append-only; rows are chained by mac. data_hash stands in for
-- data that was erased.
CREATE TABLE journal (
	seq         INTEGER PRIMARY KEY,
	id          TEXT    NOT NULL,
	tenant      TEXT    NOT NULL,
	type        TEXT    NOT NULL,
	subject     TEXT    NOT NULL,
	slot        INTEGER NOT NULL,
	epoch       INTEGER NOT NULL,
	occurred_at INTEGER NOT NULL,
	data        TEXT,
	data_hash   BLOB,
	mac         BLOB    NOT NULL,
	CHECK ((data IS NULL) <> (data_hash IS NULL))
) STRICT;
`}, {Version: 2, Name: "users and orders", SQL: `
CREATE TABLE users (
	tenant       TEXT    NOT NULL,
	id           TEXT    NOT NULL,
	email        TEXT    NOT NULL,
	email_folded TEXT    NOT NULL,              -- as addresses are compared
	name         TEXT    NOT NULL,
	verified_at  INTEGER,
	created_at   INTEGER NOT NULL,
	updated_at   INTEGER NOT NULL,
	version      INTEGER NOT NULL DEFAULT 1,
	PRIMARY KEY (tenant, id)
) STRICT, WITHOUT ROWID;

CREATE UNIQUE INDEX users_email ON users (tenant, email_folded);

CREATE TABLE orders (
	tenant       TEXT    NOT NULL,
	id           TEXT    NOT NULL,
	user_id      TEXT    NOT NULL,
	status       TEXT    NOT NULL DEFAULT 'open' CHECK (status IN ('open', 'paid', 'completed', 'canceled')),
	amount       INTEGER NOT NULL CHECK (amount > 0),
	currency     TEXT    NOT NULL CHECK (length(currency) = 3),
	payment_id   TEXT,                          -- the one that is not failed or canceled
	created_at   INTEGER NOT NULL,
	paid_at      INTEGER,
	completed_at INTEGER,
	canceled_at  INTEGER,
	PRIMARY KEY (tenant, id),
	CHECK ((status IN ('paid', 'completed')) = (paid_at IS NOT NULL)),
	CHECK (paid_at IS NULL OR payment_id IS NOT NULL),
	CHECK ((status = 'completed') = (completed_at IS NOT NULL)),
	CHECK ((status = 'canceled') = (canceled_at IS NOT NULL))
) STRICT, WITHOUT ROWID;

CREATE INDEX orders_user ON orders (tenant, user_id, id);

CREATE TABLE order_items (
	tenant   TEXT NOT NULL,
	order_id TEXT NOT NULL,
	items    TEXT NOT NULL,                     -- JSON array
	PRIMARY KEY (tenant, order_id)
) STRICT, WITHOUT ROWID;

-- Events of apps' own, which alone are their own subject: so that a repeated
-- request finds the one that it made.
CREATE INDEX journal_emitted ON journal (tenant, id) WHERE subject = id;

CREATE INDEX payments_order ON payments (tenant, order_id, id) WHERE order_id IS NOT NULL;
`}, {Version: 3, Name: "recorded events", SQL: `
-- Events that arose outside the shards, by the id under which they were handed
-- over: what makes writing their journal row idempotent.
CREATE TABLE recorded_events (
	tenant      TEXT    NOT NULL,
	id          TEXT    NOT NULL,
	recorded_at INTEGER NOT NULL,
	PRIMARY KEY (tenant, id)
) STRICT, WITHOUT ROWID;

CREATE INDEX recorded_events_age ON recorded_events (recorded_at);
`}, {Version: 4, Name: "notifications", SQL: `
-- What the box keeps about a user, with the inbox's counts, which change in the
-- transactions that change the inbox.
CREATE TABLE profiles (
	tenant        TEXT    NOT NULL,
	user_id       TEXT    NOT NULL,
	locale        TEXT    NOT NULL,
	notifications INTEGER NOT NULL CHECK (notifications IN (0, 1)), -- wanted?
	welcomed      INTEGER NOT NULL DEFAULT 0 CHECK (welcomed IN (0, 1)),
	entries       INTEGER NOT NULL DEFAULT 0,
	unread        INTEGER NOT NULL DEFAULT 0 CHECK (unread BETWEEN 0 AND entries),
	created_at    INTEGER NOT NULL,
	PRIMARY KEY (tenant, user_id)
) STRICT, WITHOUT ROWID;

-- An inbox is one range.
CREATE TABLE notifications (
	tenant       TEXT    NOT NULL,
	user_id      TEXT    NOT NULL,
	id           TEXT    NOT NULL,
	message      TEXT    NOT NULL,
	occurred_at  INTEGER NOT NULL,
	delivered_at INTEGER NOT NULL,
	read_at      INTEGER,
	PRIMARY KEY (tenant, user_id, id)
) STRICT, WITHOUT ROWID;

CREATE UNIQUE INDEX notifications_id ON notifications (tenant, id);
CREATE INDEX notifications_read ON notifications (tenant, user_id, id) WHERE read_at IS NOT NULL;
`}, {Version: 5, Name: "refunds, cancelling, look-ups", SQL: `
-- SQLite cannot change a CHECK: the table is made anew.
CREATE TABLE payments_5 (
	tenant          TEXT    NOT NULL,
	id              TEXT    NOT NULL,
	amount          INTEGER NOT NULL CHECK (amount > 0),
	currency        TEXT    NOT NULL CHECK (length(currency) = 3),
	status          TEXT    NOT NULL CHECK (status IN ('requires_confirmation', 'pending', 'succeeded', 'failed', 'canceled')),
	sync            TEXT    NOT NULL CHECK (sync IN ('queued', 'sending', 'in_doubt', 'settled', 'review')),
	attempts        INTEGER NOT NULL DEFAULT 0, -- sends that were sealed
	series          INTEGER NOT NULL DEFAULT 1, -- which of its upstream keys is in use: the next only after the last was proved absent
	first_sent_at   INTEGER,                    -- under the present key
	resolve_first   INTEGER NOT NULL DEFAULT 0, -- 1: looked up upstream before it may be sent; 2: by its client's key too
	account         TEXT,                       -- upstream account, pinned by the first seal
	last_error      TEXT,
	upstream_id     TEXT,                       -- of a pending one: what was made upstream and has no outcome yet
	failure_code    TEXT,
	failure_decline TEXT,
	failure_message TEXT,
	amount_refunded INTEGER NOT NULL DEFAULT 0 CHECK (amount_refunded BETWEEN 0 AND amount), -- by refunds that have not failed
	order_id        TEXT,
	user_id         TEXT,
	source          BLOB,                       -- sealed; erased when the payment is final
	source_kind     TEXT    NOT NULL CHECK (source_kind IN ('source', 'payment_method')),
	has_extras      INTEGER NOT NULL DEFAULT 0,
	taken_offline   INTEGER NOT NULL,
	created_at      INTEGER NOT NULL,
	settled_at      INTEGER,
	PRIMARY KEY (tenant, id),
	CHECK ((sync = 'settled') = (status IN ('succeeded', 'failed', 'canceled'))),
	CHECK (status <> 'requires_confirmation' OR sync = 'queued'),
	CHECK (status <> 'succeeded' OR upstream_id IS NOT NULL)
) STRICT, WITHOUT ROWID;

INSERT INTO payments_5 (tenant, id, amount, currency, status, sync, attempts, first_sent_at, account, last_error, upstream_id,
	failure_code, failure_decline, failure_message, amount_refunded, order_id, user_id, source, source_kind, has_extras,
	taken_offline, created_at, settled_at)
SELECT tenant, id, amount, currency, status, sync, attempts, first_sent_at, account, last_error, upstream_id,
	failure_code, failure_decline, failure_message, amount_refunded, order_id, user_id, source, source_kind, has_extras,
	taken_offline, created_at, settled_at FROM payments;
DROP TABLE payments;
ALTER TABLE payments_5 RENAME TO payments;

CREATE INDEX payments_open ON payments (tenant, id) WHERE sync <> 'settled';
CREATE INDEX payments_failed ON payments (tenant, id) WHERE status = 'failed';
CREATE INDEX payments_user ON payments (tenant, user_id, id) WHERE user_id IS NOT NULL;
CREATE INDEX payments_order ON payments (tenant, order_id, id) WHERE order_id IS NOT NULL;
CREATE INDEX payments_intents ON payments (tenant, id) WHERE source_kind = 'payment_method';

-- Stands in its payment's slot. The columns that say where it is on its way are those of payments.
CREATE TABLE refunds (
	tenant          TEXT    NOT NULL,
	id              TEXT    NOT NULL,
	payment_id      TEXT    NOT NULL,
	amount          INTEGER NOT NULL CHECK (amount > 0),
	currency        TEXT    NOT NULL CHECK (length(currency) = 3),
	status          TEXT    NOT NULL CHECK (status IN ('pending', 'succeeded', 'failed')),
	sync            TEXT    NOT NULL CHECK (sync IN ('queued', 'sending', 'in_doubt', 'settled', 'review')),
	attempts        INTEGER NOT NULL DEFAULT 0,
	series          INTEGER NOT NULL DEFAULT 1,
	first_sent_at   INTEGER,
	resolve_first   INTEGER NOT NULL DEFAULT 0,
	account         TEXT,
	last_error      TEXT,
	upstream_id     TEXT,
	failure_code    TEXT,
	failure_decline TEXT,
	failure_message TEXT,
	reason          TEXT,
	metadata        TEXT,                       -- JSON object of strings
	voids           INTEGER NOT NULL DEFAULT 0, -- 1: it canceled an unsent payment; no money moved
	created_at      INTEGER NOT NULL,
	settled_at      INTEGER,
	PRIMARY KEY (tenant, id),
	CHECK ((sync = 'settled') = (status <> 'pending')),
	CHECK (status <> 'succeeded' OR voids OR upstream_id IS NOT NULL)
) STRICT, WITHOUT ROWID;

CREATE INDEX refunds_open ON refunds (tenant, id) WHERE sync <> 'settled';
CREATE INDEX refunds_payment ON refunds (tenant, payment_id, id);

-- Sends and their tries are a payment's or a refund's.
ALTER TABLE sends RENAME COLUMN payment_id TO record;
ALTER TABLE attempts RENAME COLUMN payment_id TO record;
ALTER TABLE attempts ADD COLUMN step TEXT;       -- charge, create, confirm or refund; NULL: charge, of an older program
ALTER TABLE attempts ADD COLUMN credential TEXT; -- names the API key that it was sent with, and is none
ALTER TABLE attempts ADD COLUMN their_time INTEGER; -- the processor's clock when it was sealed, if it was known

-- When, by the processor's clock, a key was first found past its time though only the box's own clock says so; NULL: not yet.
ALTER TABLE idempotency_keys ADD COLUMN past_at INTEGER;

-- The lives of the folder that the shard has lived through; see epoch.go.
CREATE TABLE epochs (
	epoch    INTEGER PRIMARY KEY,
	began_at INTEGER,         -- NULL: no clock was known to be right yet
	seq      INTEGER NOT NULL -- the journal's last row of the epoch before
) STRICT;

-- What was found out about a record without sending it: polls, look-ups, and a person's verdict.
CREATE TABLE findings (
	tenant     TEXT    NOT NULL,
	record     TEXT    NOT NULL,
	n          INTEGER NOT NULL,
	attempts   INTEGER NOT NULL,                -- of the record, that were sealed before
	kind       TEXT    NOT NULL CHECK (kind IN ('poll', 'resolve', 'verdict')),
	account    TEXT    NOT NULL,
	epoch      INTEGER NOT NULL,
	started_at INTEGER NOT NULL,
	ended_at   INTEGER NOT NULL,
	result     TEXT    NOT NULL,                -- found, absent, undecided, pending; of a verdict: what the person said
	reason     TEXT,
	evidence   TEXT,                            -- JSON
	PRIMARY KEY (tenant, record, n)
) STRICT, WITHOUT ROWID;

-- What succeeded, by when: what a comparison with the processor's list goes through. In the order of time, so that settling adds to its end.
CREATE INDEX payments_settled ON payments (tenant, settled_at, id) WHERE status = 'succeeded';
CREATE INDEX refunds_settled ON refunds (tenant, settled_at, id) WHERE status = 'succeeded' AND NOT voids;

-- The last comparisons with the processor's lists; a tenant's stand in one slot. Long and few: a table with row ids.
CREATE TABLE reconciliations (
	tenant      TEXT NOT NULL,
	id          TEXT NOT NULL,
	day         TEXT,                           -- date that a daily one is about
	result      TEXT NOT NULL,                  -- JSON, without the differences
	differences TEXT NOT NULL,                  -- JSON array
	PRIMARY KEY (tenant, id)
) STRICT;
`}, {Version: 6, Name: "checks by comparison", SQL: `
-- SQLite makes a table of a CHECK's IN list of three or more, anew for each row: a third of what inserting a payment cost. Comparisons cost next
-- to nothing. What may stand in the columns has not changed.
CREATE TABLE payments_6 (
	tenant          TEXT    NOT NULL,
	id              TEXT    NOT NULL,
	amount          INTEGER NOT NULL CHECK (amount > 0),
	currency        TEXT    NOT NULL CHECK (length(currency) = 3),
	status          TEXT    NOT NULL CHECK (status = 'pending' OR status = 'succeeded' OR status = 'failed' OR status = 'canceled' OR status = 'requires_confirmation'),
	sync            TEXT    NOT NULL CHECK (sync = 'queued' OR sync = 'sending' OR sync = 'in_doubt' OR sync = 'settled' OR sync = 'review'),
	attempts        INTEGER NOT NULL DEFAULT 0, -- sends that were sealed
	series          INTEGER NOT NULL DEFAULT 1, -- which of its upstream keys is in use: the next only after the last was proved absent
	first_sent_at   INTEGER,                    -- under the present key
	resolve_first   INTEGER NOT NULL DEFAULT 0, -- not 0: looked up upstream before it may be sent; how, say the bits in epoch.go
	account         TEXT,                       -- upstream account, pinned by the first seal
	last_error      TEXT,
	upstream_id     TEXT,                       -- of a pending one: what was made upstream and has no outcome yet
	failure_code    TEXT,
	failure_decline TEXT,
	failure_message TEXT,
	amount_refunded INTEGER NOT NULL DEFAULT 0 CHECK (amount_refunded BETWEEN 0 AND amount), -- by refunds that have not failed
	order_id        TEXT,
	user_id         TEXT,
	source          BLOB,                       -- sealed; erased when the payment is final
	source_kind     TEXT    NOT NULL CHECK (source_kind = 'source' OR source_kind = 'payment_method'),
	has_extras      INTEGER NOT NULL DEFAULT 0,
	taken_offline   INTEGER NOT NULL,
	created_at      INTEGER NOT NULL,
	settled_at      INTEGER,
	PRIMARY KEY (tenant, id),
	CHECK ((sync = 'settled') = (status = 'succeeded' OR status = 'failed' OR status = 'canceled')),
	CHECK (status <> 'requires_confirmation' OR sync = 'queued'),
	CHECK (status <> 'succeeded' OR upstream_id IS NOT NULL)
) STRICT, WITHOUT ROWID;

INSERT INTO payments_6 (tenant, id, amount, currency, status, sync, attempts, series, first_sent_at, resolve_first, account, last_error, upstream_id,
	failure_code, failure_decline, failure_message, amount_refunded, order_id, user_id, source, source_kind, has_extras,
	taken_offline, created_at, settled_at)
SELECT tenant, id, amount, currency, status, sync, attempts, series, first_sent_at, resolve_first, account, last_error, upstream_id,
	failure_code, failure_decline, failure_message, amount_refunded, order_id, user_id, source, source_kind, has_extras,
	taken_offline, created_at, settled_at FROM payments;
DROP TABLE payments;
ALTER TABLE payments_6 RENAME TO payments;

CREATE INDEX payments_open ON payments (tenant, id) WHERE sync <> 'settled';
CREATE INDEX payments_failed ON payments (tenant, id) WHERE status = 'failed';
CREATE INDEX payments_user ON payments (tenant, user_id, id) WHERE user_id IS NOT NULL;
CREATE INDEX payments_order ON payments (tenant, order_id, id) WHERE order_id IS NOT NULL;
CREATE INDEX payments_intents ON payments (tenant, id) WHERE source_kind = 'payment_method';
CREATE INDEX payments_settled ON payments (tenant, settled_at, id) WHERE status = 'succeeded';
`}, {Version: 7, Name: "attempts' checks by comparison", SQL: `
-- As for payments, for what is written twice a send.
CREATE TABLE attempts_7 (
	tenant       TEXT    NOT NULL,
	record       TEXT    NOT NULL,              -- a payment or a refund
	n            INTEGER NOT NULL,
	upstream_key TEXT    NOT NULL,
	account      TEXT    NOT NULL,
	epoch        INTEGER NOT NULL,
	started_at   INTEGER NOT NULL,
	ended_at     INTEGER,
	outcome      TEXT CHECK (outcome = 'succeeded' OR outcome = 'declined' OR outcome = 'retryable' OR outcome = 'unknown'),
	maybe_sent   INTEGER,
	http_status  INTEGER,
	request_id   TEXT,
	reason       TEXT,
	evidence     TEXT,                          -- the processor's object, allow-listed members, JSON
	step         TEXT,                          -- charge, create, confirm or refund; NULL: charge, of an older program
	credential   TEXT,                          -- names the API key that it was sent with, and is none
	their_time   INTEGER,                       -- the processor's clock when it was sealed, if it was known
	PRIMARY KEY (tenant, record, n)
) STRICT, WITHOUT ROWID;

INSERT INTO attempts_7 (tenant, record, n, upstream_key, account, epoch, started_at, ended_at, outcome, maybe_sent, http_status, request_id, reason,
	evidence, step, credential, their_time)
SELECT tenant, record, n, upstream_key, account, epoch, started_at, ended_at, outcome, maybe_sent, http_status, request_id, reason,
	evidence, step, credential, their_time FROM attempts;
DROP TABLE attempts;
ALTER TABLE attempts_7 RENAME TO attempts;
`}}
