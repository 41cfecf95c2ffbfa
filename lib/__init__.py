"""What the experiments stand on."""

import logging

from lib.run import terminal

logging.getLogger("matplotlib").setLevel(logging.ERROR)  # without a home it tells at length where its cache is
terminal.end_scripts_when_interrupted()
