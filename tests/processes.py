"""The environment of processes that tests start."""

import os


def users():
  """As a user has it, without the devices that the tests force."""
  flags = os.environ['XLA_FLAGS'].split()
  flags = [flag for flag in flags if 'device_count' not in flag]
  return {**os.environ, 'XLA_FLAGS': ' '.join(flags)}
