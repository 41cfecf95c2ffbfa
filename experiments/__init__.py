"""What is measured: a folder an experiment, with measure.py, judge.py, text.py and figures.py."""

import lib  # noqa: F401  first of all: Ctrl-C ends a script in one line, also while it imports the rest
