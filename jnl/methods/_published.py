"""The settings that methods and losses were published with.

Those of a method are `SETTINGS` in its own file (`PLUS_SETTINGS` and the like
where a file has several methods of the same cases); those of losses, which
`supervised` trains with, are here, since their papers compare them all in one
and the same setting.
"""

from collections.abc import Mapping
import dataclasses
import sys
from typing import Any

import jax.numpy as jnp
import optax

Case = tuple[str, str, float | None]
"""Data set; noise, as its function in `jnl.noise`, or 'missing' where labels
are; and rate, None for all."""


@dataclasses.dataclass(frozen=True)
class Settings:
  """How a method was trained.

  Attributes:
    source: who says so.
    method: whose they are, a name of `jnl.methods` or `jnl.losses`.
    net: the network, as `nets.build` names it.
    epochs: passes over the training set.
    batch_size: examples in a step.
    labeled: those beside them, from a stream of labeled ones; 0 without it.
    learning_rate: at first.
    momentum: of SGD.
    weight_decay: L2, added to the gradient.
    l1: weight of the absolute values of all parameters in the loss.
    max_norm: to which the gradient is shortened, None for never.
    drops: epochs after which the rate is multiplied by `drop`.
    drop: by what.
    cosine_to: the last rate of a cosine over all steps, None for none.
    cosine_turn: the rate falls as cos(pi t), t from 0 to this in all steps: in
      FixMatch 7/16; None for never.
    falls_from: the epoch from which the rate falls on a line, to 0 after the
      last one; None for never.
    adam: Adam in the place of SGD; `momentum` is its first decay.
    nesterov: SGD with Nesterov's momentum.
    views: what was done to images, as `train.script` names it; '' if the source
      does not say.
    arguments: hyperparameters of the method or the loss, by name.
  """

  source: str
  method: str
  net: str
  epochs: int
  batch_size: int
  learning_rate: float
  momentum: float = 0.9
  weight_decay: float = 0.0
  l1: float = 0.0
  max_norm: float | None = None
  drops: tuple[int, ...] = ()
  drop: float = 0.1
  cosine_to: float | None = None
  cosine_turn: float | None = None
  falls_from: int | None = None
  adam: bool = False
  nesterov: bool = False
  views: str = ''
  labeled: int = 0
  arguments: Mapping[str, Any] = dataclasses.field(default_factory=dict)

  def optimizer(self, steps: int) -> optax.GradientTransformation:
    """The optimizer as it was.

    Args:
      steps: of an epoch, n // batch_size.

    Returns:
      The transformation.

    >>> import jax.numpy as jnp
    >>> setting = Settings('', 'ce', 'mlp', 3, 4, 1.0, drops=(1, 2))
    >>> tx = setting.optimizer(steps=1)
    >>> w, state = jnp.zeros(1), tx.init(jnp.zeros(1))
    >>> for _ in range(3):
    ...   update, state = tx.update(jnp.array([1.0]), state, w)
    ...   print(round(float(update[0]), 4))
    -1.0
    -0.19
    -0.0271
    """
    rate: optax.ScalarOrSchedule = self.learning_rate
    if self.drops:
      at = {epoch * steps: self.drop for epoch in self.drops}
      rate = optax.piecewise_constant_schedule(self.learning_rate, at)
    if self.cosine_to is not None:
      rate = optax.cosine_decay_schedule(
        self.learning_rate,
        self.epochs * steps,
        alpha=self.cosine_to / self.learning_rate,
      )
    if self.cosine_turn is not None:
      turn = optax.linear_schedule(0, self.cosine_turn, self.epochs * steps)
      rate = lambda step: self.learning_rate * jnp.cos(jnp.pi * turn(step))
    if self.falls_from is not None:
      rate = optax.linear_schedule(
        self.learning_rate,
        0.0,
        (self.epochs - self.falls_from) * steps,
        self.falls_from * steps,
      )
    parts = []
    if self.l1:
      add = lambda gradient, w: gradient + self.l1 * jnp.sign(w)
      parts.append(optax.stateless_with_tree_map(add))
    # What is shortened is the gradient of the loss, with L1 and without L2.
    if self.max_norm is not None:
      parts.append(optax.clip_by_global_norm(self.max_norm))
    parts.append(optax.add_decayed_weights(self.weight_decay))
    if self.adam:
      parts.append(optax.adam(rate, b1=self.momentum))
    else:
      own = {'momentum': self.momentum, 'nesterov': self.nesterov}
      parts.append(optax.sgd(rate, **own))
    return optax.chain(*parts)


def published(
  method: str, dataset: str, noise: str, rate: float | None = None
) -> Settings:
  """The settings that a method was published with.

  Args:
    method: a name of `jnl.methods`, or of a loss that `supervised` trains with.
    dataset: such as 'cifar10'.
    noise: such as 'symmetric', a function of `jnl.noise`; 'missing' for few
      labels.
    rate: its rate.

  Returns:
    The settings.

  Raises:
    ValueError: if none are known; it says which are.

  >>> published('elr', 'cifar10', 'symmetric_inclusive', 0.4).arguments
  {'beta': 0.7, 'lam': 3.0}
  """
  known = known_settings(method)
  found = known.get((dataset, noise, rate), known.get((dataset, noise, None)))
  if found is not None:
    return found
  cases = [
    ', '.join((*case[:2], 'any rate' if case[2] is None else str(case[2])))
    for case in known
  ]
  raise ValueError(
    f'no published settings of {method} are known for {dataset}, {noise}, '
    f'{rate}; there are {"; ".join(cases) or "none at all"}'
  )


def known_settings(method: str) -> dict[Case, Settings]:
  """All that are known of a method.

  Args:
    method: as for `published`.

  Returns:
    By data set, noise and rate; empty if there are none.

  >>> len(known_settings('elr')), len(known_settings('cc'))
  (16, 0)
  """
  from jnl import methods

  if method in LOSSES:
    return LOSSES[method]
  if method not in dir(methods):
    return {}
  home = vars(sys.modules[getattr(methods, method).__module__])
  of_file = [
    value
    for name, value in home.items()
    if name.endswith('SETTINGS') and isinstance(value, dict)
  ]
  return {
    case: settings
    for cases in of_file
    for case, settings in cases.items()
    if settings.method == method
  }


# --- few labels ---------------------------------------------------------------

_STEPS = 2**20
"""That all of these papers train for."""


def few_labels(
  method: str,
  ten: Mapping[str, Any],
  hundred: Mapping[str, Any] | None = None,
  *,
  unlabeled: int = 448,
  source: str = 'official configs of USB, arXiv 2208.07204, config/classic_cv '
  '(CIFAR-100: many papers have WRN-28-8)',
  net: str = 'wide_resnet28_2',
) -> dict[Case, Settings]:
  """Settings in which such methods are compared, for any number of labels.

  Weights are averaged, .999 of the old ones in a step, to be evaluated.

  Args:
    method: a name of `jnl.methods`.
    ten: its arguments on CIFAR-10.
    hundred: those on CIFAR-100; None for the same.
    unlabeled: in a step, beside 64 labeled ones. The unlabeled set is the whole
      training set.
    source: who says so.
    net: on CIFAR-100.

  Returns:
    By data set, noise and rate.

  >>> sorted(few_labels('fixmatch', {}))
  [('cifar10', 'missing', None), ('cifar100', 'missing', None)]
  """
  of_set = {
    'cifar10': ('wide_resnet28_2', 5e-4, ten),
    'cifar100': (net, 1e-3, ten if hundred is None else hundred),
  }
  return {
    (dataset, 'missing', None): Settings(
      source=source,
      method=method,
      net=net,
      epochs=round(_STEPS / (50_000 // unlabeled)),
      batch_size=unlabeled,
      labeled=64,
      learning_rate=0.03,
      nesterov=True,
      weight_decay=decay,
      cosine_turn=7 / 16,
      views='crop_flip',
      arguments=arguments,
    )
    for dataset, (net, decay, arguments) in of_set.items()
  }


# --- losses ------------------------------------------------------------------

_APL = 'code of Ma et al. 2020, arXiv 2006.13554'
_ALF = 'code of Zhou et al. 2021, arXiv 2106.03110'
_ANL = 'code of Ye et al., Active Negative Loss Functions, NeurIPS 2023'
_ARGUMENTS: tuple[tuple[str, str, dict | None, dict | None], ...] = (
  # loss, source, on CIFAR-10, on CIFAR-100
  ('ce', _APL, {}, {}),
  ('focal', _APL, {'gamma': 0.5}, {'gamma': 0.5}),
  ('gce', _APL, {'q': 0.7}, {'q': 0.7}),
  ('sce', _APL, {'alpha': 0.1, 'beta': 1}, {'alpha': 6, 'beta': 0.1}),
  ('nce_rce', _APL, {'alpha': 1, 'beta': 1}, {'alpha': 10, 'beta': 0.1}),
  ('nfl_rce', _APL, {'alpha': 1, 'beta': 1}, {'alpha': 10, 'beta': 0.1}),
  # On CIFAR-100 the code has ngce_mae in the place of ngce_rce.
  ('ngce_rce', _APL, {'alpha': 1, 'beta': 1}, None),
  ('nce_mae', _APL, {'alpha': 1, 'beta': 1}, {'alpha': 10, 'beta': 1}),
  ('nfl_mae', _APL, {'alpha': 1, 'beta': 1}, {'alpha': 10, 'beta': 1}),
  ('ngce_mae', _APL, {'alpha': 1, 'beta': 1}, {'alpha': 10, 'beta': 1}),
  ('agce', _ALF, {'a': 0.6, 'q': 0.6}, None),
  ('aul', _ALF, {'a': 5.5, 'q': 3}, None),
  ('ael', _ALF, {'a': 2.5}, None),
  ('nce_agce', _ALF, {'alpha': 1, 'beta': 4, 'a': 6, 'q': 1.5},
   {'alpha': 10, 'beta': 0.1, 'a': 1.8, 'q': 3}),
  ('nce_aul', _ALF, {'alpha': 1, 'beta': 4, 'a': 6.3, 'q': 1.5},
   {'alpha': 10, 'beta': 0.015, 'a': 6, 'q': 3}),
  ('nce_ael', _ALF, {'alpha': 1, 'beta': 4, 'a': 5},
   {'alpha': 10, 'beta': 0.1, 'a': 1.5}),
  ('anl_ce', _ANL, {'alpha': 5, 'beta': 5}, {'alpha': 10, 'beta': 1}),
  ('anl_fl', _ANL, {'alpha': 5, 'beta': 5}, {'alpha': 10, 'beta': 1}),
)  # fmt: skip


def _of_loss(
  method: str, source: str, ten: dict | None, hundred: dict | None
) -> dict[Case, Settings]:
  """All three papers train alike, whatever the rate, but ANL has no L2."""
  anl = source == _ANL
  share: dict[str, Any] = {
    'method': method, 'batch_size': 128, 'cosine_to': 0.0, 'max_norm': 5.0,
  }  # fmt: skip
  found: dict[Case, Settings] = {}
  if ten is not None:
    for noise in ('symmetric', 'cifar10_asymmetric_in_place'):
      found['cifar10', noise, None] = Settings(
        source=source,
        net='cnn8',
        epochs=120,
        learning_rate=0.01,
        weight_decay=0.0 if anl else 1e-4,
        l1=5e-5 if anl else 0.0,
        arguments=ten,
        **share,
      )
  if hundred is not None:
    apl = source == _APL
    for noise in ('symmetric', 'cifar100_index_blocks'):
      found['cifar100', noise, None] = Settings(
        source=source + ' (it has ResNet-50; the later two this)' * apl,
        net='resnet34',
        epochs=200,
        learning_rate=0.1,
        weight_decay=0.0 if anl else 1e-5,
        l1=5e-7 if anl else 0.0,
        arguments=hundred,
        **share,
      )
  return found


LOSSES = {row[0]: _of_loss(*row) for row in _ARGUMENTS}
"""By the name of the loss; symmetric noise was drawn in fixed counts."""
