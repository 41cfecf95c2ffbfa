"""What the experiments stand on."""

from lib import terminal

terminal.end_scripts_when_interrupted()
