"""Starts the embedded directory: ``python -m embedded_directory``."""

import os
import sys

from embedded_directory.server import serve
from embedded_directory.settings import SettingsError, read_settings


def main() -> None:
    """Run until a signal; a wrong setting or a taken port ends it with a sentence and status 1."""
    try:
        settings = read_settings(os.environ)
        serve(settings)
    except SettingsError as error:
        sys.exit(str(error))
    except OSError as error:
        sys.exit(f"Cannot listen on {settings.host}:{settings.port}: {error.strerror}.")


if __name__ == "__main__":
    main()
