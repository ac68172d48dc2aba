"""Serving models over HTTP: llama.cpp's own server of the same build, placed as a plan says, and watched over."""

from __future__ import annotations

from moebind.server.placed import ServedModel
from moebind.server.server import Server

__all__ = ["ServedModel", "Server"]
