"""What a user can mend."""


class InputError(ValueError):
    """An argument, a config field or a batch that does not fit.

    The message names it, what was found, what was expected and what to do;
    the tools print it without a traceback.
    """
