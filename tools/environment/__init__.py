"""Setting up the pinned environment, with the standard library alone.

``plan`` says what goes where, ``checks`` looks before anything starts,
``commands`` runs pip under watch, ``wheels`` keeps built mmcv wheels,
``state`` remembers which steps are finished, ``setup`` holds the steps.
"""


class SetupError(Exception):
    """The set-up cannot go on; the message is one sentence for the user."""
