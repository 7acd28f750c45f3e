package bus

import (
	"encoding/base64"
	"encoding/json"
	"time"
	"unicode/utf8"
)

// Event is one fact, in the terms of CloudEvents 1.0 (https://github.com/cloudevents/spec).
// Its JSON form is the structured mode of that specification, with the extension
// attributes "tenant", "sequence" and "recordedtime".
type Event struct {
	ID           string    // unique for ever: "evt_" and a ULID; the stream's deduplication id
	Source       string    // who says so, "/tenderbox/<box id>"; Publish fills an empty one from Options.Source
	Tenant       string    // a DNS label
	Type         string    // "payment.succeeded"; tokens of letters, digits, '_' and '-', separated by dots
	Subject      string    // what it is about, "pay_01J…"; may be empty
	Time         time.Time // when it happened
	RecordedTime time.Time // when the box wrote it down; zero is left out
	Sequence     string    // orders the events of one box, compared as text; may be empty
	Data         json.RawMessage
}

// MarshalJSON answers the event as CloudEvents 1.0 JSON.
func (e Event) MarshalJSON() ([]byte, error) { return e.AppendJSON(make([]byte, 0, 512)), nil }

// AppendJSON appends the event as CloudEvents 1.0 JSON. It cannot fail: data that is
// not JSON goes as "data_base64", as the specification has it for binary data, so that
// one damaged event never holds up those behind it. Whatever the strings hold, the
// result is valid JSON.
func (e Event) AppendJSON(dst []byte) []byte {
	dst = append(dst, `{"specversion":"1.0","id":`...)
	dst = appendString(dst, e.ID)
	dst = append(dst, `,"source":`...)
	dst = appendString(dst, e.Source)
	dst = append(dst, `,"type":`...)
	dst = appendString(dst, e.Type)
	if e.Subject != "" {
		dst = append(dst, `,"subject":`...)
		dst = appendString(dst, e.Subject)
	}
	dst = append(dst, `,"time":"`...)
	dst = e.Time.UTC().AppendFormat(dst, time.RFC3339Nano)
	dst = append(dst, `","tenant":`...)
	dst = appendString(dst, e.Tenant)
	if !e.RecordedTime.IsZero() {
		dst = append(dst, `,"recordedtime":"`...)
		dst = e.RecordedTime.UTC().AppendFormat(dst, time.RFC3339Nano)
		dst = append(dst, '"')
	}
	if e.Sequence != "" {
		dst = append(dst, `,"sequence":`...)
		dst = appendString(dst, e.Sequence)
	}
	switch {
	case len(e.Data) == 0:
	case json.Valid(e.Data):
		dst = append(dst, `,"datacontenttype":"application/json","data":`...)
		dst = append(dst, e.Data...)
	default:
		dst = append(dst, `,"datacontenttype":"application/octet-stream","data_base64":"`...)
		dst = base64.StdEncoding.AppendEncode(dst, e.Data)
		dst = append(dst, '"')
	}
	return append(dst, '}')
}

// UnmarshalJSON reads what AppendJSON wrote; attributes that it does not know are passed over.
func (e *Event) UnmarshalJSON(b []byte) error {
	var w struct {
		ID           string          `json:"id"`
		Source       string          `json:"source"`
		Type         string          `json:"type"`
		Subject      string          `json:"subject"`
		Time         time.Time       `json:"time"`
		Tenant       string          `json:"tenant"`
		RecordedTime time.Time       `json:"recordedtime"`
		Sequence     string          `json:"sequence"`
		Data         json.RawMessage `json:"data"`
		DataBase64   []byte          `json:"data_base64"`
	}
	if err := json.Unmarshal(b, &w); err != nil {
		return err
	}
	*e = Event{ID: w.ID, Source: w.Source, Tenant: w.Tenant, Type: w.Type, Subject: w.Subject,
		Time: w.Time, RecordedTime: w.RecordedTime, Sequence: w.Sequence, Data: w.Data}
	if w.Data == nil {
		e.Data = w.DataBase64
	}
	return nil
}

const hexDigits = "0123456789abcdef"

// appendString appends s as a JSON string. Plain ASCII, which is nearly all there is,
// is copied in one go; invalid UTF-8 becomes U+FFFD.
func appendString(dst []byte, s string) []byte {
	dst = append(dst, '"')
	start := 0
	for i := 0; i < len(s); {
		c := s[i]
		if c >= ' ' && c != '"' && c != '\\' && c < utf8.RuneSelf {
			i++
			continue
		}
		if c < utf8.RuneSelf {
			dst = append(dst, s[start:i]...)
			switch c {
			case '"', '\\':
				dst = append(dst, '\\', c)
			default:
				dst = append(dst, '\\', 'u', '0', '0', hexDigits[c>>4], hexDigits[c&15])
			}
			i++
			start = i
			continue
		}
		r, size := utf8.DecodeRuneInString(s[i:])
		if r == utf8.RuneError && size == 1 {
			dst = append(dst, s[start:i]...)
			dst = append(dst, "\ufffd"...)
			start = i + 1
		}
		i += size
	}
	dst = append(dst, s[start:]...)
	return append(dst, '"')
}
