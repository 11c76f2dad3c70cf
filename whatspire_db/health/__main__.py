"""python -m whatspire_db.health: see cli/health.py."""

from whatspire_db import signals
from whatspire_db.cli.health import main

if __name__ == "__main__":
    signals.end(main())
