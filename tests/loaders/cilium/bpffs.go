package main

import (
	"fmt"
	"os"
	"path/filepath"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

// privateBPFFS mounts a bpffs that only this process sees, for maps that an object pins by name.
// Existing pins stay reachable under their own paths. The function returned unmounts it; should the
// process be killed, the mount goes with its namespace.
func privateBPFFS() (string, func(), error) {
	if err := unix.Unshare(unix.CLONE_NEWNS); err != nil {
		return "", nil, fmt.Errorf("unshare: %w (root is needed)", err)
	}
	if err := unix.Mount("none", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return "", nil, fmt.Errorf("make mounts private: %w", err)
	}
	dir, err := os.MkdirTemp("", "ciltest-bpffs-")
	if err != nil {
		return "", nil, err
	}
	if err := unix.Mount("bpf", dir, "bpf", 0, "mode=0700"); err != nil {
		os.Remove(dir)
		return "", nil, fmt.Errorf("mount bpf: %w", err)
	}
	release := func() {
		unix.Unmount(dir, unix.MNT_DETACH)
		os.Remove(dir)
	}
	return dir, release, nil
}

// openPins opens the maps given by --map.
func openPins(pins map[string]string) (map[string]*ebpf.Map, error) {
	maps := make(map[string]*ebpf.Map, len(pins))
	for name, path := range pins {
		m, err := ebpf.LoadPinnedMap(path, nil)
		if err != nil {
			return nil, fmt.Errorf("--map %s=%s: %w", name, path, err)
		}
		maps[name] = m
	}
	return maps, nil
}

// pinDir makes a fresh folder of pins, so that objects loaded alone share nothing.
func pinDir(root string, number int) (string, error) {
	if root == "" {
		return "", nil
	}
	dir := filepath.Join(root, fmt.Sprintf("o%d", number))
	return dir, os.Mkdir(dir, 0o700)
}
