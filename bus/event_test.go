package bus

import (
	"encoding/json"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"
)

func TestEventIsCloudEventsJSON(t *testing.T) {
	e := Event{
		ID: "evt_01JNZ8T6Q0W3D2C4B5A697887Z", Source: "/tenderbox/box-1", Tenant: "default", Type: "payment.succeeded", Subject: "pay_1",
		Time: time.Date(2026, 3, 1, 13, 0, 0, 5000, time.FixedZone("", 3600)), RecordedTime: time.Date(2026, 3, 1, 12, 0, 1, 0, time.UTC),
		Sequence: "000001.0000.0000000042", Data: json.RawMessage(`{"amount":1999}`),
	}
	for name, test := range map[string]struct {
		e    Event
		want string
	}{
		"all": {e, `{"specversion":"1.0","id":"evt_01JNZ8T6Q0W3D2C4B5A697887Z","source":"/tenderbox/box-1","type":"payment.succeeded","subject":"pay_1",` +
			`"time":"2026-03-01T12:00:00.000005Z","tenant":"default","recordedtime":"2026-03-01T12:00:01Z","sequence":"000001.0000.0000000042",` +
			`"datacontenttype":"application/json","data":{"amount":1999}}`},
		"least": {Event{ID: "e", Source: "/x", Type: "t", Tenant: "a", Time: e.RecordedTime},
			`{"specversion":"1.0","id":"e","source":"/x","type":"t","time":"2026-03-01T12:00:01Z","tenant":"a"}`},
		"data that is not JSON": {Event{ID: "e", Source: "/x", Type: "t", Tenant: "a", Time: e.RecordedTime, Data: json.RawMessage(`{"a":`)},
			`{"specversion":"1.0","id":"e","source":"/x","type":"t","time":"2026-03-01T12:00:01Z","tenant":"a","datacontenttype":"application/octet-stream","data_base64":"eyJhIjo="}`},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := json.Marshal(test.e)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(test.want, string(got)); diff != "" {
				t.Errorf("differs (-want +got):\n%s", diff)
			}
		})
	}
}

func TestAnyEventIsValidJSONAndReadBack(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		text := func(name string) string {
			return rapid.OneOf(rapid.String(), rapid.Map(rapid.SliceOf(rapid.Byte()), func(b []byte) string { return string(b) }),
				rapid.SampledFrom([]string{"", "\x00", "\u2028", `"\`, "a\xffb", "😀", "\r\n", "</script>", "\x7f"})).Draw(t, name)
		}
		e := Event{ID: text("id"), Source: text("source"), Tenant: text("tenant"), Type: text("type"), Subject: text("subject"), Sequence: text("sequence"),
			Time:         time.Unix(rapid.Int64Range(0, 1<<33).Draw(t, "s"), rapid.Int64Range(0, 999_999_999).Draw(t, "ns")).UTC(),
			RecordedTime: time.Unix(rapid.Int64Range(0, 1<<33).Draw(t, "recorded"), 0).UTC(),
			Data:         []byte(rapid.OneOf(rapid.SampledFrom([]string{"", "{}", "null", "[1,2]", ` {"a" : "b"} `, "{"}), rapid.String()).Draw(t, "data"))}
		got := e.AppendJSON([]byte("kept"))
		if !strings.HasPrefix(string(got), "kept") || !json.Valid(got[4:]) || !utf8.Valid(got[:len(got)-len(e.Data)]) && utf8.Valid(e.Data) {
			t.Fatalf("not valid JSON: %q", got)
		}
		var back Event
		if err := json.Unmarshal(got[4:], &back); err != nil {
			t.Fatal(err)
		}
		want := e
		for _, s := range []*string{&want.ID, &want.Source, &want.Tenant, &want.Type, &want.Subject, &want.Sequence} {
			*s = jsonText(*s)
		}
		if len(want.Data) == 0 {
			want.Data = nil
		}
		if json.Valid(e.Data) {
			want.Data = json.RawMessage(strings.TrimSpace(string(e.Data)))
		}
		if diff := cmp.Diff(want, back); diff != "" {
			t.Fatalf("differs (-want +got):\n%s", diff)
		}
	})
}

// jsonText is what a string becomes in JSON: each byte that is not UTF-8 turns into U+FFFD.
func jsonText(s string) string { return string([]rune(s)) }
