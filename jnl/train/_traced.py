"""What can be read off a step that was traced, before it is compiled.

Works on the jaxprs of `jax.make_jaxpr`, and on those inside them.
"""

from collections.abc import Iterator, Sequence
import hashlib
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

Jaxpr = Any
"""A `ClosedJaxpr`, or what newer versions of jax make of it."""

PASSED_ON = frozenset((
  'broadcast_in_dim', 'concatenate', 'convert_element_type', 'copy',
  'dynamic_slice', 'expand_dims', 'gather', 'optimization_barrier', 'pad',
  'reshape', 'rev', 'select_n', 'sharding_constraint', 'slice', 'split',
  'squeeze', 'transpose',
))  # fmt: skip
"""What moves numbers and leaves them as they are."""
MULTIPLIED = ('dot_general', 'conv_general_dilated')
"""What weights are multiplied by."""


def _inner(eqn: Any) -> Iterator[Jaxpr]:
  """The jaxprs that an equation calls."""
  for value in eqn.params.values():
    for v in value if isinstance(value, tuple | list) else (value,):
      if hasattr(v, 'eqns'):
        yield v


def _opened(jaxpr: Jaxpr) -> Any:
  """Newer versions of jax do not wrap it."""
  return getattr(jaxpr, 'jaxpr', jaxpr)


def equations(jaxpr: Jaxpr) -> Iterator[Any]:
  """All equations, those of inner jaxprs as well.

  >>> doubled = jax.make_jaxpr(jax.jit(lambda x: 2 * x))(1.0)
  >>> [eqn.primitive.name for eqn in equations(doubled)]
  ['jit', 'mul']
  """
  for eqn in jaxpr.eqns:
    yield eqn
    for inner in _inner(eqn):
      yield from equations(inner)


def convolves(jaxpr: Jaxpr) -> bool:
  """Whether there are convolutions."""
  return any(
    eqn.primitive.name == 'conv_general_dilated' for eqn in equations(jaxpr)
  )


def tracer() -> str:
  """What traces here, as text: fingerprints of another one say nothing."""
  return f'jax {jax.__version__}, {jax.default_backend()}'


def fingerprint(*jaxprs: Jaxpr) -> str:
  """A short name of what is computed: of the equations and their constants.

  The same in every process; another one for other hyperparameters, networks or
  optimizers, and for other versions of jax.

  >>> one, two = (jax.make_jaxpr(lambda x, r=r: r * x)(1.0) for r in (0.1, 0.2))
  >>> fingerprint(one) == fingerprint(one), fingerprint(one) == fingerprint(two)
  (True, False)
  """
  digest = hashlib.sha256()
  for jaxpr in jaxprs:
    # Functions among the parameters print their address.
    digest.update(re.sub(r'0x[0-9a-f]+', '', str(jaxpr)).encode())
    for value in _constants(jaxpr):
      digest.update(_bytes(value))
  return digest.hexdigest()[:16]


def _constants(jaxpr: Jaxpr) -> Iterator[Any]:
  """Arrays that the text does not show in full."""
  yield from getattr(jaxpr, 'consts', ())
  for eqn in jaxpr.eqns:
    for v in eqn.invars:
      if hasattr(v, 'val'):  # a literal
        yield v.val
    for inner in _inner(eqn):
      yield from _constants(inner)


def _bytes(value: Any) -> bytes:
  if jnp.issubdtype(getattr(value, 'dtype', float), jax.dtypes.prng_key):
    value = jax.random.key_data(value)
  return np.asarray(value).tobytes()


def multiplied_raw(jaxpr: Jaxpr, raw: Sequence[bool]) -> bool:
  """Whether whole numbers are multiplied by weights as they are.

  So are pixels from 0 to 255 that nobody divides, and tokens that are read as
  numbers; not those that are scaled, normalized, compared, or looked up.

  Args:
    jaxpr: of a step or a score.
    raw: for each of its inputs, whether it is an integer array to follow.
  """
  return _follow(jaxpr, raw)[0]


def _follow(jaxpr: Jaxpr, raw: Sequence[bool]) -> tuple[bool, list[bool]]:
  """Whether it is multiplied in there, and which outputs are still raw."""
  jaxpr = _opened(jaxpr)
  marked = {v for v, r in zip(jaxpr.invars, raw, strict=True) if r}
  is_raw = lambda v: not hasattr(v, 'val') and v in marked
  found = False
  for eqn in jaxpr.eqns:
    ins = [is_raw(v) for v in eqn.invars]
    if not any(ins):
      continue
    name = eqn.primitive.name
    outs = [False] * len(eqn.outvars)
    if name in MULTIPLIED:
      found = True
    elif name in PASSED_ON:
      # What is moved comes first (a choice has cases after); then come indices.
      outs = [any(ins if name in ('concatenate', 'select_n') else ins[:1])]
      outs *= len(eqn.outvars)
    for inner in _inner(eqn):
      count = len(_opened(inner).invars)
      if count <= len(ins):  # a condition or its constants come first
        here, inner_outs = _follow(inner, ins[len(ins) - count :])
        found |= here
        if len(inner_outs) == len(outs):
          outs = [a or b for a, b in zip(outs, inner_outs, strict=True)]
    marked |= {v for v, r in zip(eqn.outvars, outs, strict=True) if r}
    if found:
      break
  return found, [is_raw(v) for v in jaxpr.outvars]
