"""Proof that a patched program does what the original does, alone and in its chain."""
