package web

import (
	"errors"
	"net/http"
	"strings"

	json "github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
)

const (
	// depthMax levels of nesting: the deepest body of the API has four.
	depthMax = 16
	// clipMax bytes of a name that a client made up are shown back to it.
	clipMax = 64
)

// strict is how bodies are decoded. Version 2 of encoding/json refuses duplicate members, other cases of a name, trailing
// data, invalid UTF-8 and lone surrogates by itself.
var strict = json.RejectUnknownMembers(true)

// decodeObject decodes a body that must be one JSON object into v. Its errors are problems that name the member at fault.
func decodeObject(body []byte, v any) error { return decodeDeep(body, depthMax, v) }

// decodeDeep is decodeObject for bodies that carry an app's own data, nested up to depth levels.
func decodeDeep(body []byte, depth int, v any) error {
	if err := checkShape(body, depth); err != nil {
		return err
	}
	err := json.Unmarshal(body, v, strict)
	if err == nil {
		return nil
	}
	var known *Problem
	var syntax *jsontext.SyntacticError
	var meaning *json.SemanticError
	switch {
	case errors.As(err, &known): // of a member that decodes itself
		return known
	case errors.Is(err, jsontext.ErrDuplicateName) && errors.As(err, &syntax):
		return problem(http.StatusBadRequest, "member_duplicate", member(syntax.JSONPointer), "a member may stand in an object once")
	case errors.As(err, &syntax):
		return problem(http.StatusBadRequest, "json_invalid", member(syntax.JSONPointer), "the body is not one JSON object in UTF-8")
	case errors.Is(err, json.ErrUnknownName) && errors.As(err, &meaning):
		name := string(meaning.JSONPointer.LastToken())
		if isCardMember(name) {
			return problem(http.StatusUnprocessableEntity, "card_data_not_allowed", name, "send a token of your processor, never card data")
		}
		return problem(http.StatusUnprocessableEntity, "member_unknown", member(meaning.JSONPointer), "there is no such member; names are case-sensitive")
	case errors.As(err, &meaning):
		return problem(http.StatusUnprocessableEntity, memberCode(meaning.JSONPointer), member(meaning.JSONPointer), "the value is of the wrong type or out of range")
	}
	return problem(http.StatusBadRequest, "json_invalid", "", "the body is not one JSON object in UTF-8")
}

// checkShape refuses what is no object, and what nests too deep before anything is built for it.
func checkShape(body []byte, most int) error {
	depth, inString, first := 0, false, true
	for i := 0; i < len(body); i++ {
		c := body[i]
		if inString {
			switch c {
			case '\\':
				i++
			case '"':
				inString = false
			}
			continue
		}
		switch c {
		case ' ', '\t', '\r', '\n':
			continue
		case '"':
			inString = true
		case '{', '[':
			if depth++; depth > most {
				return problem(http.StatusBadRequest, "json_too_deep", "", "the body nests too deep")
			}
		case '}', ']':
			depth--
		}
		if first && c != '{' {
			return problem(http.StatusBadRequest, "json_invalid", "", "the body must be one JSON object in UTF-8")
		}
		first = false
	}
	if first {
		return problem(http.StatusBadRequest, "body_missing", "", "the body must be a JSON object")
	}
	return nil
}

// memberCode gives amounts a code of their own, the same one that the ledger uses.
func memberCode(at jsontext.Pointer) string {
	switch at {
	case "/amount":
		return "amount_invalid"
	case "/currency":
		return "currency_invalid"
	}
	return "member_invalid"
}

// isCardMember knows the names under which card data would be sent.
func isCardMember(name string) bool {
	switch strings.ToLower(name) {
	case "cvv", "cvc", "cvv2", "cvc2", "track1", "track2", "pan", "card_number", "number", "card":
		return true
	}
	return false
}

// member writes a JSON pointer as a[1].b.c, clipped: it may hold whatever the client made up.
func member(at jsontext.Pointer) string {
	var b strings.Builder
	for token := range at.Tokens() {
		if b.Len() > 0 && isIndex(token) {
			b.WriteString("[" + token + "]")
			continue
		}
		if b.Len() > 0 {
			b.WriteByte('.')
		}
		if b.WriteString(token); b.Len() > clipMax {
			break
		}
	}
	return clip(b.String())
}

// isIndex takes a short number for an array's index. A pointer does not tell it from a member of that name.
func isIndex(token string) bool {
	for i := range len(token) {
		if token[i] < '0' || token[i] > '9' {
			return false
		}
	}
	return len(token) > 0 && len(token) <= 6
}

// clip shortens s to what is shown back, and leaves out what looks like a number that nobody should see again.
func clip(s string) string {
	if len(s) > clipMax {
		s = strings.ToValidUTF8(s[:clipMax], "") + "…"
	}
	digits := 0
	for i := range len(s) {
		if s[i] >= '0' && s[i] <= '9' {
			digits++
		}
	}
	if digits >= 12 { // as many as the shortest card number
		return "…"
	}
	return s
}
