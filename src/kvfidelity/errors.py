"""Errors that a user can act on."""


class UserError(Exception):
    """A mistake in an input, not in the code: the message names what is wrong and the remedy.

    Scripts print the message on one line and exit with status 2, without a traceback.
    """


class OutOfSpaceError(UserError):
    """The disk is full; no file was left half written, and the message names the folder."""


class ModelOverflowError(UserError):
    """A model computes NaN or infinity; the message names its dtype. What it gives is no result."""


class NotFiniteError(UserError):
    """A computed number is NaN or infinite: a fault of the code, named so that it can be reported.

    One line is enough: it says where the number was to be written.
    """
