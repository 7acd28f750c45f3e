package shards_test

import (
	"context"
	"fmt"
	"os"

	"tenderbox/shards"
)

func Example() {
	dir, err := os.MkdirTemp("", "shards")
	if err != nil {
		fmt.Println(err)
		return
	}
	defer os.RemoveAll(dir)
	ctx := context.Background()
	set, err := shards.Open(ctx, dir, shards.Options{
		Migrations: []shards.Migration{{Version: 1, Name: "users", SQL: `
			CREATE TABLE users (tenant TEXT, id TEXT, email TEXT NOT NULL, PRIMARY KEY (tenant, id)) STRICT, WITHOUT ROWID`}},
		// Runs once for all closures that share a commit.
		AfterCommit: func(sh *shards.Shard, attached []any) { fmt.Println("committed:", attached) },
	})
	if err != nil {
		fmt.Println(err)
		return
	}
	defer set.Close()

	sh := set.Shard(shards.SlotOf("default", "user_1"))
	err = sh.Update(ctx, func(tx *shards.Tx) error {
		tx.Attach("user.created")
		_, err := tx.Exec("INSERT INTO users VALUES (?, ?, ?)", "default", "user_1", "ada@example.com")
		return err
	})
	fmt.Println("update:", err)

	var email string
	err = sh.View(ctx, func(tx *shards.Tx) error {
		return tx.QueryRow("SELECT email FROM users WHERE tenant = ? AND id = ?", "default", "user_1").Scan(&email)
	})
	fmt.Println("view:", email, err)
	// Output:
	// committed: [user.created]
	// update: <nil>
	// view: ada@example.com <nil>
}
