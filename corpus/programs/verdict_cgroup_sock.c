// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/* Feature: verdict by map where a cgroup's sockets are made, bound and released. */
#include "verdict.h"

SEC("cgroup/sock_create")
int verdict_sock_create(struct bpf_sock *ctx)
{
	return count_and_decide(1) & 1;
}

SEC("cgroup/sock_release")
int verdict_sock_release(struct bpf_sock *ctx)
{
	return count_and_decide(1) & 1;
}

SEC("cgroup/post_bind4")
int verdict_post_bind4(struct bpf_sock *ctx)
{
	return count_and_decide(1) & 1;
}

SEC("cgroup/post_bind6")
int verdict_post_bind6(struct bpf_sock *ctx)
{
	return count_and_decide(1) & 1;
}

char _license[] SEC("license") = "GPL";
