"""Tests of packages that `pip install -e '.[test]'` leaves out."""

import importlib.util

import pytest


def marks(name):
  """Of a test with a package: in the second stage, where it is installed."""
  missing = importlib.util.find_spec(name) is None
  reason = f"no {name}; pip install -e '.[test-slow]' has it"
  return [pytest.mark.slow, pytest.mark.skipif(missing, reason=reason)]


def needs(name):
  """The same as a decorator."""

  def marked(test):
    for mark in marks(name):
      test = mark(test)
    return test

  return marked
