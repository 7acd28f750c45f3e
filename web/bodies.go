package web

import (
	"fmt"
	"net/http"
	"sync/atomic"
)

const (
	// jobBodyMax is the limit of a body that carries one job, a result or a progress; bulkBodyMax that of one that carries many.
	jobBodyMax  = 1 << 20
	bulkBodyMax = 16 << 20

	// dataDepthMax levels may a body nest that carries an app's own data. Beyond it a mistake is likelier than a document.
	dataDepthMax = 128

	// largeBodiesMax bytes of bodies over bodyMax may be in hand at once, until they are answered: with their decoded and stored
	// forms, some 200 MiB of memory. One tenant may hold half of it, which is two bulks.
	largeBodiesMax       = 64 << 20
	tenantLargeBodiesMax = largeBodiesMax / 2

	// largeAnswersMax bytes of answers over bodyMax may be on their way at once, half of them one tenant's: readers who stand still must not
	// hold the box's memory. Beyond it nothing more is leased or read; an answer that is made is always sent.
	largeAnswersMax       = 128 << 20
	tenantLargeAnswersMax = largeAnswersMax / 2

	// largeBodyStart is the first buffer of a large body. It doubles as the bytes arrive, so that who only announces 16 MiB
	// holds nothing.
	largeBodyStart = 256 << 10
)

// grow takes room for so many more bytes of a large body. It is given back with the rest of what the request holds.
func (h *holding) grow(bytes int64) error {
	if h.admission == nil {
		return errOverloaded
	}
	if h.lane != nil && !take(&h.lane.large, bytes, tenantLargeBodiesMax) {
		return errTenantBusy
	}
	if !take(&h.admission.large, bytes, largeBodiesMax) {
		if h.lane != nil {
			h.lane.large.Add(-bytes)
		}
		return errOverloaded
	}
	h.large += bytes
	return nil
}

// mayAnswer refuses, before it is done, what may have a large answer while too many of those are on their way.
func (x *exchange) mayAnswer() error {
	if x.lane != nil && x.lane.answers.Load() > tenantLargeAnswersMax {
		return errTenantBusy
	}
	if x.s.admission.answers.Load() > largeAnswersMax {
		return errOverloaded
	}
	return nil
}

// answering counts an answer of so many bytes until it is sent.
func (x *exchange) answering(bytes int) (sent func()) {
	if bytes <= bodyMax {
		return func() {}
	}
	count := func(by int64) {
		x.s.admission.answers.Add(by)
		if x.lane != nil {
			x.lane.answers.Add(by)
		}
	}
	count(int64(bytes))
	return func() { count(-int64(bytes)) }
}

func take(n *atomic.Int64, by, most int64) bool {
	if n.Add(by) > most {
		n.Add(-by)
		return false
	}
	return true
}

// decodeWithin reads a body of up to limit bytes and decodes it into v. It returns the body's size.
func (x *exchange) decodeWithin(limit int, v any) (size int, err error) {
	if err := checkMediaType(x.r.Header); err != nil {
		return 0, err
	}
	if x.r.ContentLength > int64(limit) {
		return 0, bodyLarge(limit)
	}
	pooled := x.s.bodies.Get().(*[]byte)
	defer x.s.bodies.Put(pooled)
	n, err := readUpTo(x.r.Body, *pooled)
	if err != nil {
		return 0, bodyError(err)
	}
	body := (*pooled)[:n]
	if n > bodyMax {
		if body, err = x.readOn(body, limit); err != nil {
			return 0, err
		}
	}
	return len(body), decodeDeep(body, dataDepthMax, v)
}

// readOn reads the rest of a body whose beginning is given.
func (x *exchange) readOn(beginning []byte, limit int) ([]byte, error) {
	var buf []byte
	n := 0
	for size := min(largeBodyStart, limit+1); ; size = min(2*size, limit+1) {
		if err := x.held.grow(int64(size - len(buf))); err != nil {
			return nil, err
		}
		larger := make([]byte, size)
		if buf == nil {
			n = copy(larger, beginning)
		} else {
			copy(larger, buf[:n])
		}
		buf = larger
		m, err := readUpTo(x.r.Body, buf[n:])
		if n += m; err != nil {
			return nil, bodyError(err)
		}
		switch {
		case n > limit:
			return nil, bodyLarge(limit)
		case n < size:
			return buf[:n], nil
		}
	}
}

func bodyLarge(limit int) *Problem {
	return problem(http.StatusRequestEntityTooLarge, "body_too_large", "", fmt.Sprintf("the body may have at most %d KiB", limit>>10))
}
