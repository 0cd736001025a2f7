"""Wrong labels, made to measure: transition matrices and draws from them."""

import jax
import jax.numpy as jnp
import numpy as np

from jnl.base import Array, Key, Scalar, check, is_concrete


def _check_classes_and_rate(num_classes: int, rate: Scalar) -> None:
  check(num_classes >= 2, f'num_classes must be at least 2, got {num_classes}')
  check((rate >= 0) & (rate <= 1), f'rate must lie in [0, 1], got {rate}')


def symmetric(num_classes: int, rate: Scalar) -> Array:
  r"""Symmetric noise that excludes the true class.

  .. math:: T = (1 - r) I + \frac{r}{c - 1} (1 - I)

  Args:
    num_classes: c >= 2.
    rate: r in [0, 1], the share of wrong labels.

  Returns:
    [c, c], `T[i, j] = P(noisy = j | clean = i)`.

  Raises:
    ValueError: if `num_classes` or `rate` is out of range.

  Some papers (ELR, DivideMix, SOP) draw the new label from all classes, the
  true one included: their rate r is that of `symmetric_inclusive`, and
  r (c - 1) / c here.

  >>> symmetric(3, 0.5).tolist()
  [[0.5, 0.25, 0.25], [0.25, 0.5, 0.25], [0.25, 0.25, 0.5]]
  """
  _check_classes_and_rate(num_classes, rate)
  eye = jnp.eye(num_classes)
  return (1 - rate) * eye + rate / (num_classes - 1) * (1 - eye)


def symmetric_inclusive(num_classes: int, rate: Scalar) -> Array:
  r"""Symmetric noise that draws from all classes, the true one included.

  .. math:: T = (1 - r) I + \frac{r}{c} 1

  Args:
    num_classes: c >= 2.
    rate: r in [0, 1]; the share of wrong labels is r (c - 1) / c.

  Returns:
    [c, c], `T[i, j] = P(noisy = j | clean = i)`.

  Raises:
    ValueError: if `num_classes` or `rate` is out of range.
  """
  _check_classes_and_rate(num_classes, rate)
  return (1 - rate) * jnp.eye(num_classes) + rate / num_classes


def pair_flip(num_classes: int, rate: Scalar) -> Array:
  """Noise that turns class i into class (i + 1) mod c.

  Args:
    num_classes: c >= 2.
    rate: r in [0, 1], the share of wrong labels; from .5 on the clean class is
      no longer the most frequent one.

  Returns:
    [c, c], `T[i, j] = P(noisy = j | clean = i)`.

  Raises:
    ValueError: if `num_classes` or `rate` is out of range.
  """
  _check_classes_and_rate(num_classes, rate)
  eye = jnp.eye(num_classes)
  return (1 - rate) * eye + rate * jnp.roll(eye, 1, axis=1)


def corrupt(key: Key, labels: Array, transition: Array) -> Array:
  """Draws a noisy label for each clean one.

  Args:
    key: PRNG key.
    labels: [...] int, clean, in [0, c).
    transition: [c, c], rows summing to one.

  Returns:
    [...] int32, noisy ~ transition[clean].

  Raises:
    ValueError: if `transition` is not square, has a negative entry or a row
      that does not sum to one, or if a label is out of range (outside jit).
    TypeError: if `labels` are not integers.
  """
  labels, transition = jnp.asarray(labels), jnp.asarray(transition)
  c = transition.shape[0]
  check(
    transition.shape == (c, c) and c >= 2,
    f'transition must be [c, c] with c >= 2, got shape {transition.shape}',
  )
  check(
    jnp.issubdtype(labels.dtype, jnp.integer),
    f'labels must be integers, got {labels.dtype}',
    TypeError,
  )
  if is_concrete(transition):
    sums = np.asarray(transition).sum(1)
    check(
      np.all(np.asarray(transition) >= 0) and np.allclose(sums, 1, atol=1e-5),
      f'the rows of transition must be probabilities, they sum to {sums}',
    )
  if is_concrete(labels):
    check(jnp.all((labels >= 0) & (labels < c)), f'labels must lie in [0, {c})')
  noisy = jax.random.categorical(key, jnp.log(transition)[labels], axis=-1)
  return noisy.astype(jnp.int32)
