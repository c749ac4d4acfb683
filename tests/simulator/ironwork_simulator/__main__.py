"""`python -m ironwork_simulator`: the same as `ironwork-simulator`."""

from ironwork_simulator.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
