package jobs

import (
	"regexp"
	"strings"
	"sync"
	"time"
	_ "time/tzdata" // 450 KiB: boxes at the edge often carry no time zones, and a schedule must not depend on that

	"github.com/robfig/cron/v3"
)

const (
	everyMin     = time.Second // what the clock is looked at for; also the unit of occurrences
	cronBytesMax = 200         // a line of the densest lists; more is no expression
	zoneBytesMax = 64          // the longest name in the database has 30

	// transitionsMax bounds the search over changes of a zone's offset: five years of cron's own limit, at four a year
	// (a zone that also suspends its summer time for Ramadan), and some to spare.
	transitionsMax = 32
)

// timing says when a schedule is due: instants, each a whole second.
//
// robfig's parser reads the expression and finds the next match on a clock without changes of offset. Its own way through such
// changes leaves out what falls into the gap in spring and repeats the hour in autumn, so that is done here, as cron(8) does it:
//   - a time of day that the clock jumped over comes when the jump is over, once;
//   - one that the clock shows twice comes the first time only;
//   - expressions whose minute or hour begins with * mean "as often as", so they just follow the clock's reading.
type timing struct {
	spec *cron.SpecSchedule
	wild bool // minute or hour begins with *
	zone *time.Location

	every, phase time.Duration // without spec: all t with t ≡ phase (mod every) since 1970
}

var (
	cronParser = cron.NewParser(cron.Minute | cron.Hour | cron.Dom | cron.Month | cron.Dow | cron.Descriptor)

	// cronShape keeps from the parser what it reads too kindly (1,,2 and *-5) or panics at (TZ=).
	cronShape = regexp.MustCompile(`^(@[a-z]+|` + cronField + `([ \t]+` + cronField + `){4})$`)
)

const (
	cronRange = `([*?]|[0-9A-Za-z]+(-[0-9A-Za-z]+)?)(/[0-9]+)?`
	cronField = cronRange + `(,` + cronRange + `)*`
)

// parseTiming reads a cron expression in a zone.
func parseTiming(expr, zone string) (timing, error) {
	loc, err := loadZone(zone)
	if err != nil {
		return timing{}, err
	}
	switch {
	case len(expr) > cronBytesMax:
		return timing{}, invalid("cron", "%d bytes, up to %d are taken", len(expr), cronBytesMax)
	case strings.HasPrefix(expr, "@every"):
		return timing{}, invalid("cron", "for an interval use every")
	case !cronShape.MatchString(expr):
		return timing{}, invalid("cron", "use five fields of numbers, names and * , - /, or @daily and the like")
	}
	s, err := cronParser.Parse(expr)
	if err != nil {
		return timing{}, invalid("cron", "%q: %v", expr, err)
	}
	spec, ok := s.(*cron.SpecSchedule)
	if !ok {
		return timing{}, invalid("cron", "%q: it is no calendar", expr)
	}
	spec.Location = time.UTC // what it is given are readings of a clock, written as if they were UTC
	fields := strings.Fields(expr)
	w := timing{spec: spec, zone: loc, wild: expr == "@hourly"}
	if len(fields) == 5 {
		w.wild = strings.ContainsAny(fields[0][:1]+fields[1][:1], "*?")
	}
	return w, nil
}

// everyTiming is an interval that passes through at.
func everyTiming(every, phase time.Duration) timing { return timing{every: every, phase: phase} }

// zones keeps what was loaded: it holds names of the database only, so it stays small.
var zones sync.Map

func loadZone(name string) (*time.Location, error) {
	if name == "" || name == "UTC" {
		return time.UTC, nil
	}
	if z, ok := zones.Load(name); ok {
		return z.(*time.Location), nil
	}
	if len(name) > zoneBytesMax || name == "Local" {
		return nil, invalid("time_zone", "use a name like Europe/Berlin")
	}
	z, err := time.LoadLocation(name)
	if err != nil {
		return nil, invalid("time_zone", "%q: there is no such zone; use a name like Europe/Berlin", name)
	}
	zones.Store(name, z)
	return z, nil
}

// next returns the first instant after t; zero: none within five years.
func (w *timing) next(t time.Time) time.Time {
	if w.spec == nil {
		since := t.UnixNano() - int64(w.phase)
		k := since / int64(w.every)
		if since >= 0 {
			k++
		} else if since%int64(w.every) == 0 {
			k++
		}
		return time.Unix(0, int64(w.phase)+k*int64(w.every)).UTC()
	}
	local := t.In(w.zone)
	start, end := local.ZoneBounds()
	off := offset(local)
	reading := shift(local, off)
	if !start.IsZero() && !w.wild {
		if before := offset(start.Add(-1)); before > off { // the clock was set back: what it shows again is passed over
			if until := shift(start, before); reading.Before(until) {
				reading = until.Add(-1)
			}
		}
	}
	for range transitionsMax {
		found := w.spec.Next(reading)
		if found.IsZero() {
			return found
		}
		if at := shift(found, -off); end.IsZero() || at.Before(end) {
			return at
		}
		// The reading lies behind the zone's next change. Go on from there.
		was := off
		change := end.In(w.zone)
		off = offset(change)
		_, end = change.ZoneBounds()
		reading = shift(change, off).Add(-1)
		if !w.wild && off > was && found.Before(shift(change, off)) {
			return change.UTC() // jumped over
		}
		if !w.wild && off < was {
			reading = shift(change, was).Add(-1)
		}
	}
	return time.Time{}
}

// last returns the last instant in (from, to]; zero: none. It asks next some thirty times, however many there are.
func (w *timing) last(from, to time.Time) time.Time {
	due := func(after time.Time) bool {
		n := w.next(after)
		return !n.IsZero() && !n.After(to)
	}
	if !from.Before(to) || !due(from) {
		return time.Time{}
	}
	for to := to; to.Sub(from) > everyMin; {
		if middle := from.Add(to.Sub(from) / 2); due(middle) {
			from = middle
		} else {
			to = middle
		}
	}
	return w.next(from)
}

func offset(t time.Time) time.Duration {
	_, s := t.Zone()
	return time.Duration(s) * time.Second
}

// shift turns an instant into the reading of a clock off ahead of UTC, written as UTC; with -off it turns it back.
func shift(t time.Time, off time.Duration) time.Time { return t.UTC().Add(off) }
