"""python -m whatspire_db: see cli/front.py."""

from whatspire_db import signals
from whatspire_db.cli.front import main

if __name__ == "__main__":
    signals.end(main())
