package main

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"slices"
	"sort"
	"strings"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
)

var errNoProgram = errors.New("no program was loaded: the object holds none that the loader sees")

// longestText is how much of an error is kept: its head and the last lines of the verifier's log.
const longestText = 8000

type loader struct {
	opts         options
	pins         string
	objects      int
	replacements map[string]*ebpf.Map
}

type loadResult struct {
	Loader   string   `json:"loader"`
	Object   string   `json:"object"`
	Programs []string `json:"programs"`
	Error    *string  `json:"error"`
}

// loadObject loads one object alone and prints what came of it.
func (l *loader) loadObject(path string) error {
	raw, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	result := loadResult{Loader: loaderName(), Object: path, Programs: []string{}}
	coll, err := l.collection(raw, nil, l.replacements)
	if coll != nil {
		defer coll.Close()
		result.Programs = sortedKeys(coll.Programs)
	}
	result.Error = textOrNil(err)
	return printJSON(result)
}

// collection parses and loads an object. keep, if not nil, names the programs to load. The library
// says nothing of a program whose section it does not know, it leaves it out: that is an error here,
// returned beside the collection of those that were loaded.
func (l *loader) collection(raw []byte, keep []string, shared map[string]*ebpf.Map) (*ebpf.Collection, error) {
	spec, err := ebpf.LoadCollectionSpecFromReader(bytes.NewReader(raw))
	if err != nil {
		return nil, fmt.Errorf("parse: %w", err)
	}
	for _, name := range keep {
		if spec.Programs[name] == nil {
			return nil, fmt.Errorf("no program %s in the object, it holds: %s",
				name, strings.Join(sortedKeys(spec.Programs), ", "))
		}
	}
	if keep != nil {
		for name := range spec.Programs {
			if !slices.Contains(keep, name) {
				delete(spec.Programs, name)
			}
		}
	}
	if len(spec.Programs) == 0 {
		return nil, errNoProgram
	}
	if m := spec.Maps[l.opts.slotMap]; m != nil {
		m.MaxEntries = l.opts.maxEntries
	}
	l.objects++
	pins, err := pinDir(l.pins, l.objects)
	if err != nil {
		return nil, err
	}
	opts := ebpf.CollectionOptions{Maps: ebpf.MapOptions{PinPath: pins}, MapReplacements: map[string]*ebpf.Map{}}
	for name, m := range shared {
		if spec.Maps[name] != nil { // the library refuses replacements that an object does not name
			opts.MapReplacements[name] = m
		}
	}
	coll, err := ebpf.NewCollectionWithOptions(spec, opts)
	if err != nil {
		return nil, err
	}
	var missing []string
	for _, name := range sortedKeys(spec.Programs) {
		if coll.Programs[name] == nil {
			missing = append(missing, fmt.Sprintf("%s (section %s)", name, spec.Programs[name].SectionName))
		}
	}
	if len(missing) == 0 {
		return coll, nil
	}
	text := "left out by the library, which knows no type for them: " + strings.Join(missing, ", ")
	if len(coll.Programs) == 0 {
		text = "no program was loaded: " + text
	}
	return coll, errors.New(text)
}

type programInfo struct {
	Name         string `json:"name"`
	Section      string `json:"section"`
	Type         string `json:"type"`
	AttachType   string `json:"attach_type"`
	AttachTo     string `json:"attach_to"`
	Instructions uint64 `json:"instructions"`
}

type mapInfo struct {
	Name       string `json:"name"`
	Type       string `json:"type"`
	KeySize    uint32 `json:"key_size"`
	ValueSize  uint32 `json:"value_size"`
	MaxEntries uint32 `json:"max_entries"`
	Flags      uint32 `json:"flags"`
	Pinned     bool   `json:"pinned"`
}

type infoResult struct {
	Loader   string        `json:"loader"`
	Object   string        `json:"object"`
	Programs []programInfo `json:"programs"`
	Maps     []mapInfo     `json:"maps"`
	Error    *string       `json:"error"`
}

// infoObject prints what the library reads in an object; nothing is loaded.
func infoObject(path string) error {
	raw, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	result := infoResult{Loader: loaderName(), Object: path, Programs: []programInfo{}, Maps: []mapInfo{}}
	spec, err := ebpf.LoadCollectionSpecFromReader(bytes.NewReader(raw))
	if err != nil {
		result.Error = textOrNil(fmt.Errorf("parse: %w", err))
		return printJSON(result)
	}
	for _, name := range sortedKeys(spec.Programs) {
		p := spec.Programs[name]
		result.Programs = append(result.Programs, programInfo{name, p.SectionName, p.Type.String(),
			p.AttachType.String(), p.AttachTo, p.Instructions.Size() / asm.InstructionSize})
	}
	for _, name := range sortedKeys(spec.Maps) {
		m := spec.Maps[name]
		result.Maps = append(result.Maps, mapInfo{name, m.Type.String(), m.KeySize, m.ValueSize,
			m.MaxEntries, m.Flags, m.Pinning == ebpf.PinByName})
	}
	return printJSON(result)
}

func sortedKeys[T any](m map[string]T) []string {
	keys := make([]string, 0, len(m))
	for key := range m {
		keys = append(keys, key)
	}
	sort.Strings(keys)
	return keys
}

// fullText is the error with the verifier's log, shortened in the middle.
func fullText(err error) string {
	text := err.Error()
	var verifier *ebpf.VerifierError
	if errors.As(err, &verifier) {
		text += "\n" + strings.Join(verifier.Log, "\n")
	}
	if len(text) > longestText {
		half := longestText / 2
		text = text[:half] + "\n[...]\n" + text[len(text)-half:]
	}
	return text
}
