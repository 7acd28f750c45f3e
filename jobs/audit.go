package jobs

import (
	"go.etcd.io/bbolt"
)

// auditBeside is the part of Audit that looks at what is kept beside jobs: the index of delayed ones, logs, schedules.
func auditBeside(tx *bbolt.Tx, say func(format string, args ...any), each func(name []byte, do func(k, v []byte) bool)) {
	later := tx.Bucket(bLater)
	indexed := 0
	each(bLater, func(_, _ []byte) bool { indexed++; return true })
	each(bDelayed, func(k, _ []byte) bool {
		queue, tenant, p, ok := splitDelayed(k)
		if got, found := splitLater(be.AppendUint64(nil, p.seq), later.Get(laterKey(queue, tenant, p.seq))); ok && (!found || got != p) {
			say("jobs: queue %q, tenant %q, sequence %d: a delayed job that its line does not know", queue, tenant, p.seq)
		} else if ok {
			indexed--
		}
		return true // said already if it does not belong there
	})
	if indexed > 0 {
		say("jobs: %d lines' entries of delayed jobs lead nowhere", indexed)
	}

	owners := map[string]bool{} // of log lines, whose jobs were not met
	each(bLogs, func(k, v []byte) bool {
		queue, tenant, rest, ok := cutLine(k)
		if !ok || len(rest) != logKeyBytes {
			return false
		}
		if _, err := decodeLog(string(queue), string(tenant), k, v); err != nil {
			say("jobs: queue %q, tenant %q, sequence %d: a log line: %v", queue, tenant, be.Uint64(rest), err)
		}
		owners[string(k[:len(k)-8])] = true
		return true
	})
	if len(owners) > 0 {
		for _, name := range indexes {
			each(name, func(k, v []byte) bool {
				queue, tenant, _, ok := cutLine(k)
				if p, err := decodePlace(v); ok && err == nil {
					delete(owners, string(logPrefix(string(queue), string(tenant), p.seq)))
				}
				return true
			})
		}
		each(bWaiting, func(k, v []byte) bool {
			if queue, tenant, rest, ok := cutLine(k); ok && len(rest) == orderBytes {
				p := place{in: placeWaiting}
				p.priority, p.seq = orderOf(rest)
				if id, err := idOf(string(queue), string(tenant), v); err == nil && tells(string(id), p) {
					delete(owners, string(logPrefix(string(queue), string(tenant), p.seq)))
				}
			}
			return true // said already if it does not belong there
		})
		each(bParked, func(k, _ []byte) bool {
			if queue, tenant, rest, ok := cutLine(k); ok {
				if p, err := decodePlace(rest); err == nil {
					delete(owners, string(logPrefix(string(queue), string(tenant), p.seq)))
				}
			}
			return true
		})
	}
	for range owners {
		say("jobs: a log without its job")
	}

	each(bSchedules, func(k, v []byte) bool {
		queue, tenant, id, ok := cutPlan(k)
		if !ok {
			return false
		}
		p, err := decodePlan(queue, tenant, id, v)
		if err == nil {
			_, err = p.timing()
		}
		if err != nil {
			say("jobs: queue %q, tenant %q, schedule %q: %v", queue, tenant, id, err)
		}
		return true
	})
}
