"""Neighbors: the five nearest of all points, against scikit-learn's search.

n points in 16 dimensions; scikit-learn searches by brute force.
"""

from collections.abc import Iterator
import dataclasses
import functools
import importlib.util

import jax.numpy as jnp
import numpy as np

from benchmarks import clock
from benchmarks.clock import Timed, in_turns
from jnl import neighbors
from jnl.base import check
from jnl.train import option

UNIT = "times scikit-learn's"
SMOKE = {'points': ('100',)}


@dataclasses.dataclass(frozen=True)
class Options(clock.Options):
  """What this section reads."""

  points: tuple[str, ...] = option(
    ('20000', '100000'), 'neighbors: numbers of points'
  )


def check_options(options: Options) -> None:
  """Raises for an option that cannot be, before any work."""
  for points in options.points:
    good = points.isdecimal() and int(points) > 5
    check(good, f'points must be numbers above 5, got {points!r}')


def measure(options: Options) -> Iterator[dict]:
  """All neighbors of all points; both are given the same array."""
  from sklearn.neighbors import NearestNeighbors

  searches: list[neighbors.Search] = ['exact']
  if importlib.util.find_spec('faiss') is not None:
    searches.append('faiss')
  for points in map(int, options.points):
    x = np.random.default_rng(0).standard_normal([points, 16], np.float32)
    fitted = NearestNeighbors(n_neighbors=5, algorithm='brute').fit(x)
    items = [
      Timed(
        f'{search} {points}',
        functools.partial(neighbors.knn, jnp.asarray(x), 5, search=search),
        about={'shape': [points, 16], 'kind': search},
      )
      for search in searches
    ]
    yield from in_turns(fitted.kneighbors, items, 1)  # seconds long each
