"""Runs the demo; exits 0 only if every step did what it says."""

import sys

from demo.play import play

sys.exit(play())
