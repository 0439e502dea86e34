"""Entry point of ``bpfchain-transform``: nothing is imported here that its work does not need."""

from __future__ import annotations

__all__ = ["main"]


def main() -> None:
    """Run ``bpfchain-transform`` with the process's arguments."""
    import gc

    gc.disable()  # one object in, one out: there is no garbage worth looking for
    from .transform import command

    command.main(prog_name="bpfchain-transform")


if __name__ == "__main__":
    main()
