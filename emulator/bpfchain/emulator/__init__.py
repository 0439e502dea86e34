"""Running programs in user space: what libbpf links, and the real uBPF that runs it."""
