package ledger

import (
	"math/rand/v2"
	"reflect"
	"testing"
	"time"

	json "github.com/go-json-experiment/json"
)

// What is written by hand is what the structs say, whatever stands in them.
func TestPaymentsTexts(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	for range 2000 {
		var p Payment
		fill(random, reflect.ValueOf(&p).Elem())
		if p.Metadata == nil {
			p.Metadata = map[string]string{}
		}
		compare(t, &p, p.AppendJSON(nil))
		var d eventData
		fill(random, reflect.ValueOf(&d).Elem())
		compare(t, &d, d.appendJSON(nil))
	}
}

func compare(t *testing.T, v any, got []byte) {
	t.Helper()
	want, err := json.Marshal(v, json.Deterministic(true))
	if err != nil {
		t.Fatal(err)
	}
	if string(got) != string(want) {
		t.Fatalf("got  %s\nwant %s", got, want)
	}
}

// fill puts something into every member that v has, also those that are added one day.
func fill(random *rand.Rand, v reflect.Value) {
	texts := []string{"", "usd", "Tisch 7, zwei Kaffee ☕", "\"\\/<>&'\n\t\x00\u2028\U0001F600"}
	switch v.Interface().(type) {
	case time.Time:
		v.Set(reflect.ValueOf(time.UnixMilli(random.Int64N(4_000_000_000_000)).UTC()))
		return
	}
	switch v.Kind() {
	case reflect.Struct:
		for i := range v.NumField() {
			fill(random, v.Field(i))
		}
	case reflect.Pointer:
		if random.IntN(2) == 0 {
			v.Set(reflect.New(v.Type().Elem()))
			fill(random, v.Elem())
		}
	case reflect.Map:
		v.Set(reflect.MakeMap(v.Type()))
		for range random.IntN(4) {
			v.SetMapIndex(reflect.ValueOf(texts[random.IntN(len(texts))]), reflect.ValueOf(texts[random.IntN(len(texts))]))
		}
	case reflect.String:
		v.SetString(texts[random.IntN(len(texts))])
	case reflect.Int, reflect.Int64:
		v.SetInt(random.Int64() - random.Int64())
	case reflect.Bool:
		v.SetBool(random.IntN(2) == 0)
	default:
		panic("a member of kind " + v.Kind().String())
	}
}
