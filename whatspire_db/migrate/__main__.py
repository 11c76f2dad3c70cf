"""python -m whatspire_db.migrate: see cli/migrate.py."""

from whatspire_db import signals
from whatspire_db.cli.migrate import main

if __name__ == "__main__":
    signals.end(main())
