package main

import (
	"context"
	"fmt"
)

func openBox(binary string) func(context.Context, folders) (peer, error) {
	return func(context.Context, folders) (peer, error) {
		return nil, fmt.Errorf("%w: no binary", errMissing)
	}
}
