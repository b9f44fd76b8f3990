"""Draw the figures of docs/theory.md anew."""

from __future__ import annotations

from tools.theory import figures

if __name__ == "__main__":
    figures.draw()
