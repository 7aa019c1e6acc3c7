"""Artifacts: what every stage reads and writes, and how a finished one is told from a broken one."""
