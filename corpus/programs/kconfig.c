// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/* Feature: .kconfig externs (number, tristate, bool, string, kernel version; one
 * of them weak).
 */
#include <stdbool.h>
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

extern int LINUX_KERNEL_VERSION __kconfig;
extern unsigned int CONFIG_HZ __kconfig __weak;
extern bool CONFIG_BPF_SYSCALL __kconfig __weak;
extern enum libbpf_tristate CONFIG_VETH __kconfig __weak;

__u64 version, hz, tristate;

SEC("xdp")
int kconfig(struct xdp_md *ctx)
{
	version = LINUX_KERNEL_VERSION;
	hz = CONFIG_HZ;
	tristate = CONFIG_VETH;
	return CONFIG_BPF_SYSCALL ? XDP_PASS : XDP_DROP;
}

char _license[] SEC("license") = "GPL";
