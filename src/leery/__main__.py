"""``python -m leery`` is the ``leery`` command."""

from leery.cli import main

if __name__ == "__main__":
    main()
