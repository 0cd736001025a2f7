"""The index of the losses, and what the rooms show."""

import re

import pytest

import jnl
from jnl import automata, belief, em, losses, nets
from jnl.data import augment

ROOMS = (automata, augment, belief, em, losses, nets)


def listed(doc):
  """The names of an index: lines of two spaces, a name, two spaces, a text."""
  return re.findall(r'^  (\w+) {2,}\S', doc, re.MULTILINE)


@pytest.mark.parametrize('room', ROOMS, ids=lambda room: room.__name__)
def test_index_has_every_public_name_once_and_nothing_else(room):
  assert sorted(listed(room.__doc__)) == sorted(room.__all__)


def test_lines_of_the_index_begin_with_a_name():
  """No line of a family escapes `listed`."""
  lines = [x for x in losses.__doc__.splitlines() if x.startswith('  ')]
  assert len(lines) == len(losses.__all__)


@pytest.mark.parametrize('room', [*ROOMS, jnl.noise, jnl.meta])
def test_dir_shows_what_is_public_and_no_modules(room):
  assert dir(room) == sorted(room.__all__)
  modules = [x for x in dir(room) if isinstance(getattr(room, x), type(jnl))]
  assert not modules
