"""The ``leery`` command, which is also ``python -m leery``.

Nothing is imported before Ctrl-C has its meaning: one sentence, at any moment. Where work would be
lost or can be resumed, the command says so itself.
"""

import os
import signal
from typing import NoReturn

__all__ = ["main"]


def _stop(*_signal: object) -> NoReturn:
    os.write(2, b"leery: stopped; nothing was changed\n")
    os._exit(130)


def main() -> NoReturn:
    """Run the command line."""
    # Who started this in the background may have it ignore Ctrl-C.
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        signal.signal(signal.SIGINT, _stop)
    from leery.cli import run  # noqa: PLC0415 - see above

    run()


if __name__ == "__main__":
    main()
