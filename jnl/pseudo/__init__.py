"""Pseudo-labels: targets made of predictions, and of labels that are doubted.

  one_hot        labels as distributions
  sharpen        distributions with more of their mass at the largest class
  co_refine      a label mixed with predictions as it is trusted (DivideMix)
  co_guess       the mean of several predictions, sharpened (DivideMix)

`select` says which labels are trusted, `steps.mix` mixes examples.
"""

from jnl.pseudo._targets import co_guess, co_refine, one_hot, sharpen

__all__ = ['co_guess', 'co_refine', 'one_hot', 'sharpen']


def __dir__() -> list[str]:
  return __all__
