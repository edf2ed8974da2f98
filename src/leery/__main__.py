"""Entry point of the ``leery`` command and of ``python -m leery``.

The Ctrl-C handler is installed before the slow imports, so that an interrupt prints one sentence
and never a traceback. A command whose work would be lost or can be resumed prints its own message.
"""

import os
import signal
from typing import NoReturn

__all__ = ["main"]


def _stop(*_signal: object) -> NoReturn:
    os.write(2, b"leery: stopped; nothing was changed\n")
    os._exit(130)


def main() -> NoReturn:
    """Run the command-line interface."""
    # A shell that starts this in the background may have set SIGINT to be ignored; keep that.
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        signal.signal(signal.SIGINT, _stop)
    from leery import cli  # noqa: PLC0415 - see above

    cli.main()


if __name__ == "__main__":
    main()
