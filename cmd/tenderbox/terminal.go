package main

import (
	"errors"
	"fmt"
	"io"
	"strings"
)

// A hinted error knows what the person at the terminal can do about it.
type hinted struct {
	err  error
	hint string
}

// hint adds to err what to do next; nil stays nil, and an error that already has a hint keeps its own,
// which was given where more was known.
func hint(err error, next string) error {
	var already *hinted
	if err == nil || errors.As(err, &already) {
		return err
	}
	return &hinted{err, next}
}

func (h *hinted) Error() string { return h.err.Error() + " (" + h.hint + ")" }
func (h *hinted) Unwrap() error { return h.err }

// report prints an error as one line, whatever it carries, and passes the exit status on.
func report(stderr io.Writer, err error, status int) int {
	var exit *exitError
	if errors.As(err, &exit) {
		return exit.status // its command has said everything already
	}
	fmt.Fprintf(stderr, "tenderbox: %s\n", oneLine(err.Error()))
	return status
}

// exitError ends the program with a status after the command printed its own verdict.
type exitError struct{ status int }

func (e *exitError) Error() string { return fmt.Sprintf("exit status %d", e.status) }

// oneLine joins the lines of s and drops control characters, so that a message keeps to its line and
// cannot move the cursor.
func oneLine(s string) string {
	return strings.Join(strings.FieldsFunc(s, func(r rune) bool { return r < ' ' || r == 0x7f }), "; ")
}
