// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/* Feature: verdict by map at a cgroup's socket addresses (bind has bit 1 too;
 * the calls that only rewrite an address must return 1).
 */
#include "verdict.h"

#define ADDR(name, section, code)			\
	SEC(section) int name(struct bpf_sock_addr *ctx)\
	{						\
		int got = count_and_decide(1);		\
							\
		(void)got;				\
		return code;				\
	}

ADDR(verdict_bind4, "cgroup/bind4", got & 3)
ADDR(verdict_bind6, "cgroup/bind6", got & 3)
ADDR(verdict_connect4, "cgroup/connect4", got & 1)
ADDR(verdict_connect6, "cgroup/connect6", got & 1)
ADDR(verdict_sendmsg4, "cgroup/sendmsg4", got & 1)
ADDR(verdict_sendmsg6, "cgroup/sendmsg6", got & 1)
ADDR(verdict_recvmsg4, "cgroup/recvmsg4", 1)
ADDR(verdict_recvmsg6, "cgroup/recvmsg6", 1)
ADDR(verdict_getpeername4, "cgroup/getpeername4", 1)
ADDR(verdict_getpeername6, "cgroup/getpeername6", 1)
ADDR(verdict_getsockname4, "cgroup/getsockname4", 1)
ADDR(verdict_getsockname6, "cgroup/getsockname6", 1)

char _license[] SEC("license") = "GPL";
