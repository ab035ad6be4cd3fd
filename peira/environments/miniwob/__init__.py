"""MiniWoB++ in Debian's Chromium: many pages side by side in one browser, moved by one call."""

from peira.environments.miniwob.pages import Element, Snapshot, quoted
from peira.environments.miniwob.world import MiniWoBEnvs

__all__ = ["Element", "MiniWoBEnvs", "Snapshot", "quoted"]
