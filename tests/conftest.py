"""What all tests share."""

import signal

from hypothesis import settings

# How long an example takes says how busy the machine is, and nothing of what is tested.
settings.register_profile("glinthawk", deadline=None)
settings.load_profile("glinthawk")

# A shell's background job ignores Ctrl-C, and so would the processes that are tested.
signal.signal(signal.SIGINT, signal.default_int_handler)
