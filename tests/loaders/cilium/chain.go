package main

import (
	"encoding/hex"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"

	"github.com/cilium/ebpf"
)

type entry struct {
	Program string `json:"program"`
	Slot    uint32 `json:"slot"`
}

type link struct {
	Object  string  `json:"object"`
	Entries []entry `json:"entries"`
	Only    bool    `json:"only"`
}

// chainSpec is SPEC.json. Objects are relative to its folder, packets are hexadecimal.
type chainSpec struct {
	SlotsMap   string   `json:"slots_map"`
	MaxEntries uint32   `json:"max_entries"`
	Links      []link   `json:"links"`
	Packets    []string `json:"packets"`

	objects [][]byte
	packets [][]byte
}

// chainResult is what chain prints. Verdicts are signed, as the hooks' codes are.
type chainResult struct {
	Loader         string  `json:"loader"`
	ProgramsLoaded int     `json:"programs_loaded"`
	Verdicts       []int32 `json:"verdicts"`
	Error          *string `json:"error"`
}

func readSpec(path string) (*chainSpec, error) {
	raw, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	spec := &chainSpec{}
	if err := json.Unmarshal(raw, spec); err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	seen := map[uint32]bool{}
	for i, link := range spec.Links {
		object := link.Object
		if !filepath.IsAbs(object) {
			object = filepath.Join(filepath.Dir(path), object)
		}
		data, err := os.ReadFile(object)
		if err != nil {
			return nil, fmt.Errorf("%s: links[%d]: %w", path, i, err)
		}
		spec.objects = append(spec.objects, data)
		for _, e := range link.Entries {
			if seen[e.Slot] {
				return nil, fmt.Errorf("%s: links[%d]: slot %d is given twice", path, i, e.Slot)
			}
			seen[e.Slot] = true
		}
	}
	if !seen[0] {
		return nil, fmt.Errorf("%s: no entry has slot 0, so the chain has no head", path)
	}
	for i, packet := range spec.Packets {
		data, err := hex.DecodeString(packet)
		if err != nil {
			return nil, fmt.Errorf("%s: packets[%d]: %w", path, i, err)
		}
		spec.packets = append(spec.packets, data)
	}
	return spec, nil
}

func (l *loader) runChain(path string) error {
	spec, err := readSpec(path)
	if err != nil {
		return err
	}
	result := chainResult{Loader: loaderName(), Verdicts: []int32{}}
	result.Error = textOrNil(l.chain(spec, &result))
	return printJSON(result)
}

// chain loads the links, fills the slots and runs the packets.
func (l *loader) chain(spec *chainSpec, result *chainResult) error {
	slots := l.replacements[spec.SlotsMap]
	if slots == nil {
		var err error
		slots, err = ebpf.NewMap(&ebpf.MapSpec{Name: spec.SlotsMap, Type: ebpf.ProgramArray,
			KeySize: 4, ValueSize: 4, MaxEntries: spec.MaxEntries})
		if err != nil {
			return fmt.Errorf("map %s: %w", spec.SlotsMap, err)
		}
		l.replacements[spec.SlotsMap] = slots
	}
	defer slots.Close()
	collections := make([]*ebpf.Collection, len(spec.Links))
	for i, link := range spec.Links {
		var keep []string
		if link.Only {
			keep = []string{}
			for _, e := range link.Entries {
				keep = append(keep, e.Program)
			}
		}
		coll, err := l.collection(spec.objects[i], keep, l.replacements)
		if coll != nil {
			defer coll.Close()
			collections[i] = coll
			result.ProgramsLoaded += len(coll.Programs)
		}
		if err != nil {
			return fmt.Errorf("links[%d] %s: %w", i, link.Object, err)
		}
	}
	var head *ebpf.Program
	for i := len(spec.Links) - 1; i >= 0; i-- {
		entries := spec.Links[i].Entries
		for j := len(entries) - 1; j >= 0; j-- {
			program := collections[i].Programs[entries[j].Program]
			if program == nil {
				return fmt.Errorf("links[%d] %s: no program %s", i, spec.Links[i].Object, entries[j].Program)
			}
			if err := slots.Put(entries[j].Slot, program); err != nil {
				return fmt.Errorf("links[%d] %s: slot %d: %w", i, spec.Links[i].Object, entries[j].Slot, err)
			}
			if entries[j].Slot == 0 {
				head = program
			}
		}
	}
	for i, packet := range spec.packets {
		verdict, err := head.Run(&ebpf.RunOptions{Data: packet})
		if err != nil {
			return fmt.Errorf("packets[%d]: %w", i, err)
		}
		result.Verdicts = append(result.Verdicts, int32(verdict))
	}
	return nil
}
