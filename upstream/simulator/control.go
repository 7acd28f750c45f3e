package simulator

import (
	"encoding/json"
	"errors"
	"net/http"
)

// controlView is what /_control answers.
type controlView struct {
	Control
	Fired map[string]int64 `json:"fired"`
}

// order is what POST /_control takes: settings, and what is to be done at this moment.
type order struct {
	Control
	ForgetKeys bool               `json:"forget_keys"` // forget every idempotency key now
	Alter      map[string]Altered `json:"alter"`       // objects by id, as a processor that has lost or mistaken something shows them
}

// serveControl shows the settings; POST sets those that are named, all or none.
func (s *Simulator) serveControl(w http.ResponseWriter, r *http.Request) {
	switch r.Method {
	case http.MethodGet:
	case http.MethodPost:
		s.mu.Lock()
		c := order{Control: s.control}
		s.mu.Unlock()
		d := json.NewDecoder(http.MaxBytesReader(w, r.Body, bodyBytesMax))
		d.DisallowUnknownFields()
		err := d.Decode(&c)
		if err == nil {
			err = errors.Join(c.validate(), s.validateAltered(c.Alter))
		}
		if err != nil {
			writeJSON(w, http.StatusBadRequest, map[string]any{"error": failure{Type: "invalid_request_error", Message: err.Error()}})
			return
		}
		s.mu.Lock()
		if c.Rate != s.control.Rate {
			s.setRate(c.Rate)
		}
		s.control, s.state.settling = c.Control, c.Settling
		if c.ForgetKeys {
			s.state.forgetKeys()
		}
		for id, a := range c.Alter {
			s.state.alter(id, a)
		}
		s.mu.Unlock()
	default:
		w.WriteHeader(http.StatusMethodNotAllowed)
		return
	}
	s.mu.Lock()
	c := s.control
	s.mu.Unlock()
	writeJSON(w, http.StatusOK, controlView{c, s.Fired()})
}
