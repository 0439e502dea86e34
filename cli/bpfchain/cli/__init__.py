"""The command line: what a person types, reads and gets as exit codes (click is used only here)."""
