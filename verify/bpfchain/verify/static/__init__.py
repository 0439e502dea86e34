"""The static half of a link's proof: it shows that out.o is in.o and the patch, and nothing else.

Shares no code with the patcher: of ``bpfchain.transform`` only the policy, code sets, errors and the
version are used, which ``make test`` checks.
"""
