"""The command `prefect-mipro`: serve a backend, look after its sessions, find out what is wrong."""

from __future__ import annotations

from prefect_mipro.cli.entry import main

__all__ = ["main"]
