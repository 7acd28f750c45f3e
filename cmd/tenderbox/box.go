package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/tls"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

const (
	// boxTimeout bounds one question to a running box. It answers from its own disk.
	boxTimeout = 15 * time.Second
	// answerBytesMax bounds what is read of an answer: --server may name anything.
	answerBytesMax = 16 << 20
)

// boxFlags say which running box a command speaks to: the one of a data folder on this machine, or any
// that --server and --token name.
type boxFlags struct {
	Data   string `type:"path" default:"./tenderbox-data" help:"Data folder of a box on this machine; its address and token are found there."`
	Server string `placeholder:"URL" help:"Address of the box, if not the one of --data."`
	Token  string `placeholder:"T" help:"Operator's token, if not the one of --data; @FILE reads it from a file."`
}

// box is a running box as the operator's commands see it.
type box struct {
	url    string
	token  string
	client *http.Client
}

// open finds the box's address and the operator's token.
func (f *boxFlags) open() (*box, error) {
	b := &box{url: strings.TrimRight(f.Server, "/"), client: &http.Client{Timeout: boxTimeout}}
	if b.url == "" {
		address, err := os.ReadFile(filepath.Join(f.Data, addressFile))
		if errors.Is(err, fs.ErrNotExist) {
			return nil, hint(fmt.Errorf("no box is running on %s", f.Data), "start it with `tenderbox serve --data DIR`, or name another with --data or --server")
		}
		if err != nil {
			return nil, hint(err, "run this as the box's user, or give --server and --token")
		}
		lines := strings.Fields(string(address))
		if len(lines) == 0 {
			return nil, hint(fmt.Errorf("%s is empty", filepath.Join(f.Data, addressFile)), "restart the box; it writes the file anew")
		}
		b.url = lines[0]
		if len(lines) > 1 {
			b.client.Transport = pinned(lines[1])
		}
	} else if u, err := url.Parse(b.url); err != nil || u.Host == "" || (u.Scheme != "http" && u.Scheme != "https") {
		return nil, hint(fmt.Errorf("--server: %q is no address", f.Server), "write http://host:port")
	}
	if f.Token != "" {
		token, err := readSecret("token", f.Token)
		b.token = token
		return b, err
	}
	if f.Server != "" && f.Token == "" {
		return nil, hint(errors.New("--server needs --token"), "the operator's token stands in DATA/operator.token of that box; --token @FILE reads it")
	}
	token, err := os.ReadFile(filepath.Join(f.Data, operatorTokenFile))
	if err != nil {
		return nil, hint(err, "run this as the box's user, or give --server and --token")
	}
	b.token = strings.TrimSpace(string(token))
	return b, nil
}

// pinned trusts exactly the certificate whose SHA-256 is given in hex: the one that the box itself wrote
// beside its address. Its names are those of the box's clients, not this machine's loopback.
func pinned(fingerprint string) http.RoundTripper {
	return &http.Transport{TLSClientConfig: &tls.Config{
		InsecureSkipVerify: true, // replaced by the comparison below
		VerifyConnection: func(state tls.ConnectionState) error {
			if len(state.PeerCertificates) == 0 || certificateFingerprint(state.PeerCertificates[0].Raw) != fingerprint {
				return errors.New("the box's certificate is not the one that it wrote into its data folder")
			}
			return nil
		},
	}}
}

func certificateFingerprint(der []byte) string {
	sum := sha256.Sum256(der)
	return hex.EncodeToString(sum[:])
}

// problem is the part of an RFC 9457 answer that a person needs.
type problem struct {
	Code   string `json:"code"`
	Title  string `json:"title"`
	Detail string `json:"detail"`
}

// do sends one request and decodes the answer into out, if out is not nil.
func (b *box) do(ctx context.Context, method, path string, in, out any) error {
	return b.send(ctx, method, path, http.Header{}, in, out)
}

// send is do with headers of the caller's.
func (b *box) send(ctx context.Context, method, path string, header http.Header, in, out any) error {
	var body io.Reader
	if in != nil {
		encoded, err := json.Marshal(in)
		if err != nil {
			return err
		}
		body = bytes.NewReader(encoded)
	}
	request, err := http.NewRequestWithContext(ctx, method, b.url+path, body)
	if err != nil {
		return err
	}
	request.Header = header
	request.Header.Set("Authorization", "Bearer "+b.token)
	if in != nil {
		request.Header.Set("Content-Type", "application/json")
	}
	answer, err := b.client.Do(request)
	if errors.Is(err, syscall.ECONNREFUSED) {
		return hint(fmt.Errorf("no box answers at %s", b.url), "start it with `tenderbox serve`, or name another with --data or --server")
	}
	if err != nil {
		return hint(err, "is the box running, and is the address right?")
	}
	defer answer.Body.Close()
	content, err := io.ReadAll(io.LimitReader(answer.Body, answerBytesMax))
	if err != nil {
		return err
	}
	if answer.StatusCode/100 != 2 {
		return refused(b.url, answer.StatusCode, content)
	}
	if out == nil {
		return nil
	}
	if err := json.Unmarshal(content, out); err != nil {
		return hint(fmt.Errorf("%s did not answer as a box does: %w", b.url, err), "is it a Tenderbox of this version?")
	}
	return nil
}

// pages reads a list of the box's to its end, a page at a time, and shows each of its records. get asks for a path.
func pages[T any](path string, get func(path string, out any) error, show func(*T)) error {
	for cursor := ""; ; {
		var page struct {
			Data       []T    `json:"data"`
			HasMore    bool   `json:"has_more"`
			NextCursor string `json:"next_cursor"`
		}
		if err := get(path+"?limit=100"+cursor, &page); err != nil {
			return err
		}
		for i := range page.Data {
			show(&page.Data[i])
		}
		if !page.HasMore || page.NextCursor == "" {
			return nil
		}
		cursor = "&cursor=" + url.QueryEscape(page.NextCursor)
	}
}

// refused turns an error answer into one line.
func refused(server string, status int, content []byte) error {
	var p problem
	_ = json.Unmarshal(content, &p) // an answer of another form leaves it empty
	said := p.Detail
	if said == "" {
		said = p.Title
	}
	if said == "" {
		said = fmt.Sprintf("%s answered %d %s", server, status, http.StatusText(status))
	}
	if p.Code != "" {
		said += " [" + p.Code + "]"
	}
	err := errors.New(said)
	if strings.HasPrefix(p.Code, "queue_") {
		return hint(err, "`tenderbox queue list` shows the queues")
	}
	switch status {
	case http.StatusUnauthorized, http.StatusForbidden:
		return hint(err, "the operator's token is in DATA/operator.token")
	case http.StatusNotFound, http.StatusConflict:
		return hint(err, "`tenderbox tenant list` shows the tenants")
	case http.StatusServiceUnavailable:
		return hint(err, "`tenderbox status` says more; try again in a moment")
	}
	return err
}
