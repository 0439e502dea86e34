// Command ciltest loads BPF objects with cilium/ebpf, so that tests meet a loader nobody here wrote.
//
// It prints one JSON line for each object (load, info) or each chain (chain). Exit code 0 means
// that the tool did its work; an object that the loader or the kernel refused is a result, and its
// text is in "error". Exit code 1 means that the tool could not do its work (usage, unreadable file).
package main

import (
	"encoding/json"
	"fmt"
	"os"
	"runtime"
	"runtime/debug"
	"strconv"
	"strings"

	"github.com/cilium/ebpf/rlimit"
)

const usage = `usage: ciltest chain [options] SPEC.json
       ciltest load [options] OBJ...
       ciltest info OBJ...
options:
  --map NAME=PINPATH           use the map pinned at PINPATH for the object's map NAME
  --slot-map NAME              with --max-entries: the map whose max_entries is set before the load
  --max-entries N              (default: what the object says)
  --no-pin-path                give the loader no pin path (it then refuses maps pinned by name)
  --attach-type-from-section   accepted and without effect: the loader always does so
`

// options are the command line's, the same for every object of a call.
type options struct {
	mapPins    map[string]string
	slotMap    string
	maxEntries uint32
	noPinPath  bool
}

// The private mount namespace belongs to one thread, so main must never leave its thread.
func init() { runtime.LockOSThread() }

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintf(os.Stderr, "ciltest: %v\n", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	if len(args) == 0 || args[0] == "-h" || args[0] == "--help" {
		fmt.Print(usage)
		if len(args) == 0 {
			return fmt.Errorf("a command is needed: chain, load or info")
		}
		return nil
	}
	opts, paths, err := parseOptions(args[1:])
	if err != nil {
		return err
	}
	if len(paths) == 0 {
		return fmt.Errorf("%s: a file is needed", args[0])
	}
	if args[0] == "info" {
		return eachObject(paths, infoObject)
	}
	if args[0] != "chain" && args[0] != "load" {
		return fmt.Errorf("no command %q: chain, load or info", args[0])
	}
	if err := rlimit.RemoveMemlock(); err != nil {
		return fmt.Errorf("host: %w", err)
	}
	pins := ""
	if !opts.noPinPath {
		var release func()
		if pins, release, err = privateBPFFS(); err != nil {
			return fmt.Errorf("host: private bpffs: %w", err)
		}
		defer release()
	}
	replacements, err := openPins(opts.mapPins)
	if err != nil {
		return err
	}
	loader := &loader{opts: opts, pins: pins, replacements: replacements}
	if args[0] == "load" {
		return eachObject(paths, loader.loadObject)
	}
	if len(paths) != 1 {
		return fmt.Errorf("chain: one SPEC.json is needed, %d files given", len(paths))
	}
	return loader.runChain(paths[0])
}

func parseOptions(args []string) (options, []string, error) {
	opts := options{mapPins: map[string]string{}}
	var paths []string
	for i := 0; i < len(args); i++ {
		arg := args[i]
		if !strings.HasPrefix(arg, "--") {
			paths = append(paths, arg)
			continue
		}
		switch arg {
		case "--attach-type-from-section":
			continue
		case "--no-pin-path":
			opts.noPinPath = true
			continue
		case "--map", "--slot-map", "--max-entries":
		default:
			return opts, nil, fmt.Errorf("no option %s", arg)
		}
		if i++; i == len(args) {
			return opts, nil, fmt.Errorf("%s needs a value", arg)
		}
		switch arg {
		case "--map":
			name, path, ok := strings.Cut(args[i], "=")
			if !ok {
				return opts, nil, fmt.Errorf("--map %s: NAME=PINPATH is needed", args[i])
			}
			opts.mapPins[name] = path
		case "--slot-map":
			opts.slotMap = args[i]
		case "--max-entries":
			n, err := strconv.ParseUint(args[i], 0, 32)
			if err != nil {
				return opts, nil, fmt.Errorf("--max-entries %s: not a 32-bit number", args[i])
			}
			opts.maxEntries = uint32(n)
		}
	}
	if (opts.slotMap != "") != (opts.maxEntries != 0) {
		return opts, nil, fmt.Errorf("--slot-map and --max-entries belong together")
	}
	return opts, paths, nil
}

func eachObject(paths []string, do func(string) error) error {
	for _, path := range paths {
		if err := do(path); err != nil {
			return err
		}
	}
	return nil
}

// printJSON writes one line to stdout.
func printJSON(value any) error { return json.NewEncoder(os.Stdout).Encode(value) }

// loaderName is the library and its version as the linker recorded them.
func loaderName() string {
	if info, ok := debug.ReadBuildInfo(); ok {
		for _, dep := range info.Deps {
			if dep.Path == "github.com/cilium/ebpf" {
				return "cilium/ebpf " + dep.Version
			}
		}
	}
	return "cilium/ebpf (unknown version)"
}

// textOrNil turns an error into JSON: its text, or null.
func textOrNil(err error) *string {
	if err == nil {
		return nil
	}
	text := fullText(err)
	return &text
}
