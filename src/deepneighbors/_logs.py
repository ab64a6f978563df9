"""Where the library's log goes."""

import logging


def log_to(handler: logging.Handler) -> None:
    """Send the library's log to this handler alone, with the time of day; those before are closed."""
    logger = logging.getLogger("deepneighbors")
    for before in list(logger.handlers):
        logger.removeHandler(before)
        before.close()
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False  # foolbox gives the root logger a handler
