package bus_test

import (
	"context"
	"fmt"
	"os"
	"time"

	"tenderbox/bus"
)

// A relay publishes what its journal has gathered, and after any error asks the tail
// where to go on.
func ExampleBus_Publish() {
	dir, err := os.MkdirTemp("", "bus")
	if err != nil {
		panic(err)
	}
	defer os.RemoveAll(dir)
	ctx := context.Background()
	b, err := bus.Open(ctx, bus.Options{Dir: dir, Source: "/tenderbox/box-1"})
	if err != nil {
		panic(err)
	}
	defer b.Close()

	event := bus.Event{ID: "evt_1", Tenant: "default", Type: "payment.created", Time: time.Unix(0, 0), Data: []byte(`{"amount":1999}`)}
	seq, err := b.Publish(ctx, []bus.Message{{Event: event, Origin: "1/0", Seq: 7}})
	fmt.Println(seq, err)
	_, err = b.Publish(ctx, []bus.Message{{Event: event, Origin: "1/0", Seq: 7}})
	fmt.Println(err)
	last, seq, err := b.Tail(ctx, 0)
	fmt.Println(last, seq, err)
	// Output:
	// 1 <nil>
	// bus: duplicate event in batch
	// map[1/0:7] 1 <nil>
}
