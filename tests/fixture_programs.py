"""Programs of tests: compiling takes their time, so each makes few."""

import jax
import numpy as np


def compiled(f):
  """`f` as one program whose results are numpy arrays.

  Anything that is done to a `jax.Array` would be a program of its own.
  """
  run = jax.jit(f)
  return lambda *args: jax.tree.map(np.asarray, run(*args))
