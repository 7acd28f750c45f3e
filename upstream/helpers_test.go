package upstream_test

import (
	"io"
	"log"
)

// quiet takes what test servers complain about on purpose.
var quiet = log.New(io.Discard, "", 0)
