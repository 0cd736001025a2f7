"""Dynamic bootstrapping with mixup (M-DYR-H): a mixture weighs each label."""

import functools

import jax
import jax.numpy as jnp
import optax

from jnl import losses
from jnl.base import (
  Array,
  Aux,
  Batch,
  Key,
  Method,
  Model,
  Params,
  PyTree,
  Refit,
  Scalar,
  State,
  check,
  check_batch,
  global_mean,
  shuffle_within,
)
from jnl.inputs import check_range
from jnl.methods._published import Case, Settings
from jnl.select import BetaMixture, beta_mixture, clean_probability
from jnl.steps import (
  check_losses,
  check_model,
  from_loss,
  labels_of,
  mix,
  mixup_ratio,
  model_keys,
  predict_with,
  training_pass,
)

MIX_TAG = 2
"""Tag of the key that draws ratio and partners."""
CLIP = 1e-4
"""P(noisy) is held within [CLIP, 1 - CLIP]."""


def dynamic_bootstrap(
  model: Model,
  tx: optax.GradientTransformation,
  *,
  warmup: int = 105,
  alpha: Scalar = 32.0,
  reg: Scalar = 1.0,
) -> Method:
  r"""Dynamic hard bootstrapping with mixup (M-DYR-H).

  Before each epoch two beta distributions are fitted to the losses of all
  training examples. What they say of an example's loss, w = P(the label is
  wrong), decides how far its label counts, and how far the network's own guess
  g for the unmixed input does:

  .. math::
    \ell(z, i) = -(1 - w_i) \log p_{y_i} - w_i \log p_{g_i}, \qquad
    L = \operatorname{mean}_i \left[ r\, \ell(z_i, i)
      + (1 - r)\, \ell(z_i, j_i) \right]
      + \lambda \sum_k \frac{1}{c} \log \frac{1}{c\, m_k}

  where z are the logits, p their softmax and m its mean over the batch, for
  mixed inputs r x_i + (1 - r) x_j; r is drawn from Beta(alpha, alpha) and is
  near 1/2, and j is a random partner. In the first `warmup` epochs, and where
  the mixture has collapsed, w = 0 and lambda = 0: that is plain mixup. See
  `losses.dynamic_bootstrap`, `select.beta_mixture` and `losses.prior_mean_kl`.

  As in the official code, w is of the present loss under the mixture of the
  epoch, not of that which was fitted; one more pass in evaluation mode, without
  gradient, gives it. The same pass gives g here, where the official code has a
  third one in training mode, which moves the batch statistics; and w is the
  posterior itself, not a table of its values in 100 bins.

  Args:
    model: the network.
    tx: the optimizer.
    warmup: epochs of plain mixup, >= 0, which keeps the network from learning
      labels by heart while its losses come to tell right ones from wrong ones.
      In the official code they end soon after the first drop of the rate.
    alpha: > 0, of the beta distribution of mixup.
    reg: lambda >= 0.

  Returns:
    A method over batches of `x` (floating-point), `labels`, `weight` and
    `index`. `state.extra` is the `select.BetaMixture`, so that `1 -
    clean_probability(state.extra, losses.ce(logits, labels))` is w for any
    examples. Metrics: `loss`; `bootstrap` and `balance`, its two terms;
    `noisy`, the mean of w; `collapsed`, 1 where no mixture tells losses apart,
    and before the first. Inside jit a label that is out of range (-1, or c)
    makes the loss NaN, and all that follow, unless its weight is 0.

  Raises:
    TypeError: if `model` is no `Model`, or at trace time if `x` is not
      floating-point.
    ValueError: if a number is out of range, or a batch lacks an array.

  >>> from jnl.steps import linear
  >>> model = linear(2, 2)  # see `jnl.nets` for networks
  >>> method = dynamic_bootstrap(model, optax.sgd(0.1), warmup=10)
  >>> batch = {'x': jnp.eye(2), 'labels': jnp.array([0, 1]),
  ...   'index': jnp.array([0, 3]), 'weight': jnp.ones(2)}
  >>> state = method.init(jax.random.key(0))
  >>> state, metrics = jax.jit(method.step)(state, batch, jax.random.key(1))
  >>> float(metrics['noisy']), float(metrics['collapsed'])  # no mixture yet
  (0.0, 1.0)

  Reference: Arazo, Ortego, Albert, O'Connor, McGuinness, "Unsupervised Label
  Noise Modeling and Loss Correction", ICML 2019, arXiv 1904.11238.
  """
  check_model(model)
  check(warmup >= 0, f'warmup must be at least 0, got {warmup}')
  check_range('alpha', alpha, 0, open_low=True)
  check_range('reg', reg, 0)
  return from_loss(
    functools.partial(_loss, model, alpha, reg),
    model,
    tx,
    init_extra=_no_mixture,
    refit=Refit(
      functools.partial(_collect, model), _update, lambda epoch: epoch >= warmup
    ),
  )


def _unmixed(model: Model, state: State, batch: Batch) -> tuple[Array, Array]:
  """Guesses and losses [b] of the inputs as they are, without gradient."""
  logits = predict_with(model)(state, batch['x']).logits
  return jnp.argmax(logits, axis=-1), losses.ce(logits, labels_of(batch))


def _loss(
  model: Model,
  alpha: Scalar,
  reg: Scalar,
  params: Params,
  state: State,
  batch: Batch,
  key: Key,
) -> tuple[Array, Aux]:
  check_batch(batch, 'x', 'labels', 'weight', 'index')
  weight = jnp.asarray(batch['weight'])
  guesses, values = _unmixed(model, state, batch)
  check_losses(values, weight)
  noisy = _noisy_probability(state.extra, values, weight > 0)
  key_ratio, key_pairs = jax.random.split(jax.random.fold_in(key, MIX_TAG))
  own = labels_of(batch), guesses, noisy
  x, other = shuffle_within(
    key_pairs, batch['index'], (batch['x'], own), where=weight > 0
  )
  ratio = mixup_ratio(key_ratio, alpha)
  mixed = mix(ratio, batch['x'], x)
  outputs, stats = training_pass(
    model, params, state.stats, mixed, model_keys(key, batch), weight
  )
  logits, collapsed = outputs.logits, state.extra.collapsed
  values = ratio * losses.dynamic_bootstrap(logits, *own)
  values += (1 - ratio) * losses.dynamic_bootstrap(logits, *other)
  metrics = {
    'bootstrap': global_mean(values, weight),
    'balance': losses.prior_mean_kl(logits, weight),
    'noisy': global_mean(noisy, weight),
    'collapsed': collapsed.astype(jnp.float32),
  }
  balance = jnp.where(collapsed, 0, reg * metrics['balance'])
  return metrics['bootstrap'] + balance, Aux(stats, state.extra, metrics)


def _collect(
  model: Model, state: State, batch: Batch, key: Key
) -> tuple[Array, Array]:
  del key
  _, values = _unmixed(model, state, batch)
  return values, jnp.asarray(batch['weight']) > 0


def _no_mixture(key: Key) -> BetaMixture:
  """One that has collapsed, so that everybody counts as clean."""
  del key
  no, half = jnp.array(False), jnp.array([0.5, 0.5])
  rising, low, high = jnp.array([1.0, 2.0]), jnp.zeros(()), jnp.ones(())
  return BetaMixture(
    rising, rising[::-1], half, low, high, no, collapsed=~no, fallback=no
  )


def _update(state: State, tables: PyTree, key: Key) -> State:
  del key
  values, there = (table.rows.reshape(-1) for table in tables)
  # All rounds of it: where it stops by itself a rounding decides, and another
  # number of devices would go another way.
  mixture = beta_mixture(values, mask=there, num_iter=10, tol=0.0)
  return state._replace(extra=mixture)


def _noisy_probability(
  mixture: BetaMixture, values: Array, there: Array
) -> Array:
  """P(the label is wrong) [b] of losses [b]; 0 where nothing tells them."""
  noisy = 1 - clean_probability(mixture, values, mask=there)
  noisy = jnp.clip(noisy, CLIP, 1 - CLIP)
  return jnp.where(mixture.collapsed, 0, noisy)


_PUBLISHED = Settings(
  source='official code of arXiv 1904.11238, its script of M-DYR-H',
  method='dynamic_bootstrap',
  net='preact_resnet18',
  epochs=300,
  batch_size=128,
  learning_rate=0.1,
  weight_decay=1e-4,
  drops=(99, 249),
  views='crop_flip',
  arguments={'warmup': 105, 'alpha': 32.0, 'reg': 1.0},
)
SETTINGS: dict[Case, Settings] = {
  (dataset, 'symmetric_inclusive', None): _PUBLISHED
  for dataset in ('cifar10', 'cifar100')
}
"""Of rates 20 to 90%; the 100th epoch is the first at the second rate."""
