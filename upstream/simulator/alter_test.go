package simulator_test

import (
	"net/http"
	"strings"
	"testing"

	"tenderbox/upstream/simulator"
)

// Objects are altered and taken away by hand, each by itself, all or none of an order.
func TestAlter(t *testing.T) {
	p := start(t, simulator.Options{})
	var ids []string
	for _, key := range []string{"a", "b", "c"} {
		ids = append(ids, p.charge(key).json["id"].(string))
	}
	order := func(body string) int {
		req, _ := http.NewRequestWithContext(t.Context(), "POST", p.url+"/_control", strings.NewReader(body))
		return p.do(req).status
	}
	if got := order(`{"alter":{"` + ids[0] + `":{"gone":true},"ch_nobody":{"gone":true}}}`); got != 400 {
		t.Errorf("unknown: %d", got)
	}
	p.effects(3)
	if got := order(`{"alter":{"` + ids[0] + `":{"gone":true},"` + ids[1] + `":{"amount":7,"currency":"eur","status":"failed"}}}`); got != 200 {
		t.Errorf("%d", got)
	}
	if r := p.get("/charges/" + ids[0]); r.status != 404 {
		t.Errorf("%s", r.body)
	}
	if r := p.get("/charges/" + ids[1]); r.json["amount"] != 7.0 || r.json["currency"] != "eur" || r.json["status"] != "failed" {
		t.Errorf("%s", r.body)
	}
	p.effects(1)
	list := p.get("/charges?limit=1")
	if !strings.Contains(list.body, ids[2]) {
		t.Errorf("%s", list.body)
	}
	if r := p.get("/charges?starting_after=" + ids[2]); !strings.Contains(r.body, ids[1]) || r.json["has_more"] != false {
		t.Errorf("%s", r.body)
	}
	if err := p.Alter("ch_nobody", simulator.Altered{}); err == nil {
		t.Error("altered nothing")
	}
}
