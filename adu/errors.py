"""The one exception for mistakes that a user can mend."""

from __future__ import annotations


class UserError(Exception):
    """A mistake in what the user gave, told in one line.

    The message names the thing, the value given and what is allowed. Commands print it without
    a traceback and exit with code 2; everything else that is raised is a bug of ours.
    """
