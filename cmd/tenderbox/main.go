// Command tenderbox is the box: one static program that takes payments on site whether or not the
// line is there, and settles each of them upstream exactly once.
//
// The program is a value: [Config] says what to run, [OpenApp] builds it on a data folder, [App.Run]
// works until it is told to stop, [App.Close] releases what was opened. main parses, runs, prints and
// exits; everything else returns errors. Each subcommand stands in a file of its own.
//
// After a crash, start it again: every step of opening repairs what the last run left. What the
// operator sees at the terminal is one line an error, with what to do next; exit status 1, or 2 for a
// wrong command line.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"github.com/alecthomas/kong"
)

// Set by the linker (see the Makefile); a plain `go build` leaves these.
var (
	version = "v0.0.0-dev"
	commit  = "unknown"
)

// Exit statuses.
const (
	exitOK     = 0
	exitFailed = 1
	exitUsage  = 2
)

// commands is the command line: one field a subcommand.
type commands struct {
	Serve     serveCommand     `cmd:"" help:"Runs the box."`
	Demo      demoCommand      `cmd:"" help:"Shows it: cuts the line, takes payments, restores it, counts."`
	Simulator simulatorCommand `cmd:"" help:"A Stripe-like processor for trying and testing."`
	Tenant    tenantCommand    `cmd:"" help:"Tenants of a running box."`
	Queue     queueCommand     `cmd:"" help:"Queues of a running box."`
	Reconcile reconcileCommand `cmd:"" help:"Compares the ledger of a running box with the processor's lists."`
	Link      linkCommand      `cmd:"" help:"Takes the line away by word, for drills, and gives it back."`
	Breaker   breakerCommand   `cmd:"" help:"Opens and closes the breaker by word."`
	Analytics analyticsCommand `cmd:"" help:"Sums by time, kept beside the books."`
	Status    statusCommand    `cmd:"" help:"Connectivity, backlog, queues and alarms of a running box."`
	Check     checkCommand     `cmd:"" help:"Audits the files of a stopped box, changing nothing."`
	Rekey     rekeyCommand     `cmd:"" help:"Seals a stopped box anew under a new key."`
	NewEpoch  newEpochCommand  `cmd:"" help:"Tells a stopped box that its folder was restored or is a copy."`
	Version   versionCommand   `cmd:"" help:"Version, commit, Go and libraries."`
}

// terminal is what a subcommand may touch of the outside: when to stop and where to print.
type terminal struct {
	ctx    context.Context
	stdout io.Writer
	stderr io.Writer
}

func main() {
	// The first signal asks for an orderly stop; the handler is then gone, so that a second one kills.
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop)
	os.Exit(run(ctx, os.Args[1:], os.Stdout, os.Stderr))
}

// newParser knows the command line. exit is called by --help, after it has printed.
func newParser(c *commands, stdout, stderr io.Writer, exit func(int)) (*kong.Kong, error) {
	return kong.New(c,
		kong.Name("tenderbox"),
		kong.Description("Takes payments with the line down and settles each of them exactly once.\n\nTry it: tenderbox demo"),
		kong.DefaultEnvars("TENDERBOX"),
		kong.Writers(stdout, stderr),
		kong.Exit(exit),
		kong.ConfigureHelp(kong.HelpOptions{NoExpandSubcommands: true, WrapUpperBound: 100}),
	)
}

// run is main without the process: it parses args, runs the command and answers the exit status.
func run(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	helped := false
	parser, err := newParser(&commands{}, stdout, stderr, func(int) { helped = true })
	if err != nil {
		return report(stderr, err, exitFailed)
	}
	if len(args) == 0 {
		args = []string{"--help"}
	}
	parsed, err := parser.Parse(args)
	if helped {
		return exitOK
	}
	if err != nil {
		return reportParse(stderr, err)
	}
	if err := parsed.Run(&terminal{ctx, stdout, stderr}); err != nil {
		return report(stderr, err, exitFailed)
	}
	return exitOK
}

// reportParse tells a wrong command line (2) from a wrong setting in the environment or in a file (1).
func reportParse(stderr io.Writer, err error) int {
	var parse *kong.ParseError
	if errors.As(err, &parse) && parse.ExitCode() != exitFailed {
		command := "tenderbox"
		if parse.Context != nil && parse.Context.Command() != "" {
			command, _, _ = strings.Cut(command+" "+parse.Context.Command(), " <") // without its arguments
		}
		return report(stderr, hint(err, fmt.Sprintf("%s --help shows how", command)), exitUsage)
	}
	return report(stderr, err, exitFailed)
}
