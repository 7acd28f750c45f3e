package upstream

import "time"

// meterParts cut a meter's span, so that what was counted leaves it one part at a time.
const meterParts = 10

// meter counts what happened in the span before now.
type meter struct {
	span  time.Duration // 0: a second
	parts [meterParts]float64
	head  int64 // number of the latest part, counted from the zero time
}

func (m *meter) width() time.Duration {
	if m.span == 0 {
		return time.Second / meterParts
	}
	return m.span / meterParts
}

// move makes the part of now the latest one.
func (m *meter) move(now time.Time) {
	at := now.UnixNano() / int64(m.width())
	for m.head = max(m.head, at-meterParts); m.head < at; {
		m.head++
		m.parts[m.head%meterParts] = 0
	}
}

func (m *meter) add(now time.Time) {
	m.move(now)
	m.parts[m.head%meterParts]++
}

func (m *meter) perSecond(now time.Time) float64 {
	m.move(now)
	sum := 0.0
	for _, n := range m.parts {
		sum += n
	}
	whole, part := (meterParts-1)*m.width(), time.Duration(now.UnixNano()%int64(m.width()))
	return sum / (whole + part).Seconds()
}
