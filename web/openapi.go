package web

import (
	"bytes"
	_ "embed"
	"fmt"
	"html/template"
	"io"
	"net/http"
	"reflect"
	"slices"
	"strconv"
	"strings"

	"github.com/danielgtaylor/huma/v2"
	json "github.com/go-json-experiment/json"
	"github.com/julienschmidt/httprouter"
)

const (
	specPath = "/openapi.json"
	docsPath = "/docs"

	securityBearer = "bearer"
	securityBasic  = "basic"

	// docsPolicy: the page holds text and a style sheet of its own, and nothing else ever.
	docsPolicy = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)

// apiConfig is huma's, without what it adds by default: paths of its own, the $schema hook, other formats.
func apiConfig(version string) huma.Config {
	if version == "" {
		version = "0"
	}
	return huma.Config{
		OpenAPI: &huma.OpenAPI{
			OpenAPI: "3.1.0",
			Info: &huma.Info{Title: "Tenderbox", Version: version,
				Description: "Payments at the edge of the network: taken with or without the line, kept durably, settled exactly once. " +
					"Errors are application/problem+json with a stable code. Repeat a request that got no answer, or a 5xx, with the same Idempotency-Key."},
			Components: &huma.Components{
				Schemas: huma.NewMapRegistry("#/components/schemas/", schemaName),
				SecuritySchemes: map[string]*huma.SecurityScheme{
					securityBearer: {Type: "http", Scheme: "bearer", Description: "A tenant's API key, or the operator's token together with X-Tenant-ID."},
					securityBasic:  {Type: "http", Scheme: "basic", Description: "The same key as the user name, without a password."},
				},
			},
		},
		Formats: map[string]huma.Format{
			jsonType: {Marshal: marshal},
			"json":   {Marshal: marshal}, // what huma makes of application/problem+json
		},
		DefaultFormat: jsonType,
	}
}

func marshal(w io.Writer, v any) error { return json.MarshalWrite(w, v) }

// schemaName names schemas as the API's words, not as our types.
func schemaName(t reflect.Type, hint string) string {
	name := huma.DefaultSchemaNamer(t, hint)
	name = strings.TrimSuffix(strings.TrimSuffix(name, "View"), "Form")
	if inner, ok := strings.CutPrefix(name, "Page"); ok && inner != "" {
		return strings.TrimSuffix(inner, "View") + "List"
	}
	return name
}

// documentBody says what a route's body looks like. huma does not know of bodies here, so that it neither reads nor
// decodes them a second time.
func documentBody[T any](api huma.API, method, path string) {
	item := api.OpenAPI().Paths[path]
	op := map[string]*huma.Operation{http.MethodPost: item.Post, http.MethodPut: item.Put, http.MethodPatch: item.Patch}[method]
	op.RequestBody = &huma.RequestBody{Required: true, Content: map[string]*huma.MediaType{
		jsonType: {Schema: api.OpenAPI().Components.Schemas.Schema(reflect.TypeFor[T](), true, "")},
	}}
}

//go:embed docs.html
var docsTemplate string

// registerDocs serves the description, and a page of it that needs no script and nothing from outside: the box may be offline.
func (s *Server) registerDocs() error {
	// What the box sends may grow new members: clients made from the description must not choke on them.
	for name, schema := range s.api.OpenAPI().Components.Schemas.Map() {
		if !strings.HasPrefix(name, "New") && !strings.HasSuffix(name, "Change") && schema.AdditionalProperties == false {
			schema.AdditionalProperties = nil
		}
	}
	spec, err := s.api.OpenAPI().MarshalJSON()
	if err != nil {
		return fmt.Errorf("openapi: %w", err)
	}
	page, err := s.docs()
	if err != nil {
		return fmt.Errorf("docs: %w", err)
	}
	s.static(specPath, "application/json", "", spec)
	s.static(docsPath, "text/html; charset=utf-8", docsPolicy, page)
	return nil
}

func (s *Server) static(path, contentType, policy string, content []byte) {
	rt := s.metrics.route("GET " + path)
	s.router.GET(path, func(w http.ResponseWriter, _ *http.Request, _ httprouter.Params) {
		x := w.(*exchange)
		x.route = rt
		h := x.Header()
		h.Set("Content-Type", contentType)
		h.Set("Content-Length", strconv.Itoa(len(content)))
		if policy != "" {
			h.Set("Content-Security-Policy", policy)
		}
		x.WriteHeader(http.StatusOK)
		_, _ = x.Write(content) // the client has gone; there is nobody to tell
	})
}

type docsOperation struct {
	Method, Path string
	*huma.Operation
	Success string
	Body    *huma.Schema
}

// docs renders the page once.
func (s *Server) docs() ([]byte, error) {
	api := s.api.OpenAPI()
	var ops []docsOperation
	for path, item := range api.Paths {
		for method, op := range map[string]*huma.Operation{
			http.MethodGet: item.Get, http.MethodPost: item.Post, http.MethodPut: item.Put, http.MethodPatch: item.Patch, http.MethodDelete: item.Delete,
		} {
			if op == nil {
				continue
			}
			d := docsOperation{Method: method, Path: path, Operation: op, Success: strconv.Itoa(op.DefaultStatus)}
			if op.RequestBody != nil {
				d.Body = resolve(api, op.RequestBody.Content[jsonType].Schema)
			}
			ops = append(ops, d)
		}
	}
	slices.SortFunc(ops, func(a, b docsOperation) int { return strings.Compare(a.Path+" "+a.Method, b.Path+" "+b.Method) })
	t, err := template.New("docs").Parse(docsTemplate)
	if err != nil {
		return nil, err
	}
	var out bytes.Buffer
	err = t.Execute(&out, map[string]any{"Info": api.Info, "Operations": ops})
	return out.Bytes(), err
}

// resolve follows a reference to the schema itself.
func resolve(api *huma.OpenAPI, schema *huma.Schema) *huma.Schema {
	if schema.Ref != "" {
		return api.Components.Schemas.SchemaFromRef(schema.Ref)
	}
	return schema
}
