"""Losses for bags of which the counts of the classes are known: [...] per bag.

A bag is a row of instances, logits [..., m, c], of which only the counts are
seen. The likelihoods are exact; posteriors of the instances are in
`jnl.automata`. A bag whose count is impossible (inside jit; outside it raises)
has the loss 0 and no gradient: `automata.count(...).feasible` says which.
"""

import jax
import jax.numpy as jnp

from jnl import automata
from jnl.automata import Inference
from jnl.automata._inputs import read_bags
from jnl.base import LOG_ZERO, Array, check


def count_nll(logits: Array, counts: Array, mask: Array | None = None) -> Array:
  r"""Negative log-likelihood of the number of positives in a bag.

  .. math:: \ell = -\log P\Big(\sum_i y_i = n\Big),\qquad
    \partial \ell / \partial z_i = p_i - P(y_i \mid N = n)

  Args:
    logits: [..., m, 2]; class 1 is the positive one.
    counts: [...] int, n in [0, number of instances].
    mask: [..., m] bool, true where there is an instance; None for everywhere.

  Returns:
    [...], at least float32, >= 0 up to rounding.

  Raises:
    TypeError, ValueError: if an array is malformed or, outside jit, a bag empty
      or a count out of range.

  >>> round(float(jnp.exp(-count_nll(jnp.zeros((2, 2)), jnp.array(1)))), 3)
  0.5

  Reference: Shukla, Zeng, Ahmed, Van den Broeck, "A Unified Approach to
  Count-Based Weakly-Supervised Learning", NeurIPS 2023, arXiv 2311.13718.
  """
  return _nll(automata.count(logits, counts, mask))


def count_nll_one_versus_rest(
  logits: Array, counts: Array, mask: Array | None = None
) -> Array:
  r"""Negative log-likelihoods of the count of each class, added up.

  .. math:: \ell = -\sum_k \log P\Big(\sum_i 1[y_i = k] = n_k\Big)

  Each term is exact; their sum takes the counts of the classes as independent,
  which they are not: see `count_nll_joint`. For two classes it is twice
  `count_nll`.

  Args:
    logits: [..., m, c].
    counts: [..., c] int, n_k in [0, number of instances].
    mask: [..., m] bool, or None.

  Returns:
    [...], at least float32.

  Raises:
    TypeError, ValueError: as `count_nll`.

  Reference: Chen et al., "A General Framework for Learning from Weak
  Supervision", ICML 2024, arXiv 2402.01922.
  """
  return _nll(automata.count_one_versus_rest(logits, counts, mask))


def count_nll_joint(
  logits: Array,
  counts: Array,
  mask: Array | None = None,
  *,
  states: int | None = None,
) -> Array:
  r"""Negative log-likelihood of all counts of a bag at once.

  .. math:: \ell = -\log P(N_1 = n_1, \dots, N_c = n_c)

  Args:
    logits: [..., m, c].
    counts: [..., c] int, which add up to the number of instances.
    mask: [..., m] bool, or None.
    states: as for `automata.joint_count`, at least the product of n_k + 1.

  Returns:
    [...], at least float32.

  Raises:
    TypeError, ValueError: as `automata.joint_count`.

  >>> loss = count_nll_joint(jnp.zeros((3, 3)), jnp.array([1, 1, 1]))
  >>> round(float(jnp.exp(-loss)) * 27, 3)  # of 27 strings, 6 have these counts
  6.0
  """
  return _nll(automata.joint_count(logits, counts, mask, states=states))


def dllp(logits: Array, proportions: Array, mask: Array | None = None) -> Array:
  r"""Cross-entropy of the mean prediction of a bag: proportions matched.

  .. math:: \ell = -\sum_k \pi_k \log \frac1m \sum_i p_{ik}

  The usual baseline. It is no likelihood of the counts: it is as content with
  m undecided instances as with m/2 sure ones of each class.

  Args:
    logits: [..., m, c].
    proportions: pi, [..., c] on the simplex.
    mask: [..., m] bool, true where there is an instance; None for everywhere.

  Returns:
    [...], at least float32.

  Raises:
    TypeError, ValueError: if an array is malformed.

  >>> loss = dllp(jnp.array([[9., 0.], [0., 9.]]), jnp.array([.5, .5]))
  >>> round(float(loss), 3)
  0.693

  Reference: Ardehaly, Culotta, "Co-training for Demographic Classification
  Using Deep Learning from Label Proportions", ICDM Workshops 2017, arXiv
  1709.04108.
  """
  log_probs, mask = read_bags(logits, mask)
  proportions = jnp.asarray(proportions, log_probs.dtype)
  expected = (*mask.shape[:-1], log_probs.shape[-1])
  check(
    proportions.shape == expected,
    f'proportions must be [..., c], {expected}, got {proportions.shape}',
  )
  there = mask[..., None]
  total = jax.nn.logsumexp(jnp.where(there, log_probs, LOG_ZERO), axis=-2)
  log_mean = total - jnp.log(jnp.maximum(jnp.sum(there, axis=-2), 1))
  return -jnp.sum(proportions * log_mean, axis=-1)


def _nll(found: Inference) -> Array:
  return jnp.where(found.feasible, -found.log_likelihood, 0)
