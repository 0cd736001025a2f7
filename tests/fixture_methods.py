"""Two small methods that prove the abstraction: they bend it where it is weak.

`co_divide`: two stacked networks, each weighting the examples of the other by a
mixture that a refit fits to the losses of the whole training set. `reweight`:
a meta method, whose example weights are one forward-mode product with the
gradient on a second stream.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jnl.base import (
  Aux,
  Method,
  Model,
  Outputs,
  Refit,
  State,
  Table,
  global_grad,
  global_mean,
  global_sum,
  pack_rows,
  read_rows,
)
from jnl.data import load
from jnl.steps import each, from_loss, model_keys, training_pass


def linear():
  """A model of one matrix, zeros at first."""
  return Model(
    lambda key: (jnp.zeros((2, 3)), {}),
    lambda params, stats, x, keys, train: (Outputs(x @ params, x), stats),
  )


def smooth(dim, hidden, classes):
  """A network of one hidden layer, the same for every key; quick to compile."""
  rng = np.random.default_rng(0)
  first = rng.normal(size=(dim, hidden)).astype(np.float32)
  last = rng.normal(size=(hidden, classes)).astype(np.float32)

  def init(key):
    del key
    return {'first': jnp.asarray(first), 'last': jnp.asarray(last)}, {}

  def apply(params, stats, x, keys, train):
    del keys, train
    h = jnp.tanh(x @ params['first'])
    return Outputs(h @ params['last'], h), stats

  return Model(init, apply)


def mlp(dim, hidden, classes):
  """A network to be trained, of one hidden layer; as `smooth` otherwise."""
  rng = np.random.default_rng(0)
  first = rng.normal(size=(dim, hidden)) * (2 / dim) ** 0.5
  last = rng.normal(size=(hidden, classes)) * hidden**-0.5

  def init(key):
    del key
    return {'first': jnp.float32(first), 'last': jnp.float32(last)}, {}

  def apply(params, stats, x, keys, train):
    del keys, train
    h = jax.nn.relu(x.reshape(len(x), -1) @ params['first'])
    return Outputs(h @ params['last'], h), stats

  return Model(init, apply)


def cross_entropy(logits, labels):
  picked = jnp.take_along_axis(logits, labels[:, None], axis=1)[:, 0]
  return jax.nn.logsumexp(logits, axis=1) - picked


class Trust(NamedTuple):
  """For each network, how far each example is trusted."""

  clean: Table  # [n, 2]


def mixture_posterior(values, iterations=10):
  """P(smaller mean | value) [n] of a two-component Gaussian mixture."""
  low, high = jnp.min(values), jnp.max(values)
  mean, var = jnp.stack([low, high]), jnp.full(2, jnp.var(values) + 0.1)
  share = jnp.full(2, 0.5)

  def posterior(mean, var, share):
    log = jnp.log(share) - 0.5 * jnp.log(var)
    return jax.nn.softmax(
      log - 0.5 * (values[:, None] - mean) ** 2 / var, axis=1
    )

  def em(carry, _):
    r = posterior(*carry)
    count = r.sum(0) + 1e-6
    mean = (r * values[:, None]).sum(0) / count
    var = (r * (values[:, None] - mean) ** 2).sum(0) / count + 0.1
    return (mean, var, count / count.sum()), None

  (mean, var, share), _ = jax.lax.scan(em, (mean, var, share), None, iterations)
  return posterior(mean, var, share)[:, jnp.argmin(mean)]


def co_divide(model, tx, n, shards):
  """Two networks that clean the data for each other."""

  def init(key):
    params, stats = jax.vmap(model.init)(jax.random.split(key, 2))
    extra = Trust(pack_rows(jnp.ones((n, 2)), shards))
    return State(jnp.int32(0), params, stats, tx.init(params), extra)

  def loss_fn(params, state, batch, key):
    trust = read_rows(state.extra.clean, batch['index'])

    def one(params, stats, other):
      keys = model_keys(jax.random.fold_in(key, 7), batch)
      outputs, stats = training_pass(
        model, params, stats, batch['x'], keys, batch['weight']
      )
      losses = cross_entropy(outputs.logits, batch['labels'])
      weight = batch['weight'] * jnp.take(trust, other, axis=1)
      return global_mean(losses, weight, denominator=batch['weight']), stats

    losses, stats = each(one, 2, params, state.stats, jnp.array([1, 0]))
    return jnp.sum(losses), Aux(stats, state.extra, {'first': losses[0]})

  def collect(state, batch, key):
    del key

    def one(params, stats):
      outputs, _ = model.apply(params, stats, batch['x'], None, False)
      return cross_entropy(outputs.logits, batch['labels'])

    return each(one, 2, state.params, state.stats).T

  def update(state, losses, key):
    del key
    rows = losses.rows.reshape(-1, 2)[:n]
    clean = jnp.stack([mixture_posterior(rows[:, k]) for k in range(2)], 1)
    return state._replace(extra=Trust(pack_rows(clean, shards)))

  def predict(state, x):
    def one(params, stats):
      return model.apply(params, stats, x, None, False)[0]

    both = each(one, 2, state.params, state.stats)
    return Outputs(both.logits.mean(0), both.features.mean(0), both)

  step = from_loss(loss_fn, model, tx).step
  return Method(init, step, predict, Refit(collect, update))


def reweight(model, tx):
  """Weights by agreement of each gradient with that of a trusted stream."""
  plain = from_loss(lambda *args: None, model, tx)

  def losses_of(params, state, batch, key, stream=''):
    keys = model_keys(key, {'index': batch['index' + stream]})
    x, weight = batch['x' + stream], batch['weight' + stream]
    outputs, stats = training_pass(model, params, state.stats, x, keys, weight)
    return cross_entropy(outputs.logits, batch['labels' + stream]), stats

  def step(state, batch, key):
    key_meta = jax.random.fold_in(key, 1)

    def meta_loss(params):
      losses, _ = losses_of(params, state, batch, key_meta, '_meta')
      return global_mean(losses, batch['weight_meta']), None

    (meta, _), direction = global_grad(meta_loss)(state.params)
    _, agreement = jax.jvp(
      lambda params: losses_of(params, state, batch, key)[0],
      (state.params,),
      (direction,),
    )
    weight = jnp.maximum(agreement, 0) * (batch['weight'] > 0)
    total = global_sum(jnp.sum(weight))
    weight = weight / jnp.where(total == 0, 1, total)

    def loss_fn(params):
      losses, stats = losses_of(params, state, batch, key)
      # The weights are a distribution over the batch: divide by no more.
      count = global_sum(jnp.sum(weight))
      return global_mean(losses, weight) * count, stats

    (loss, stats), gradient = global_grad(loss_fn)(state.params)
    updates, opt = tx.update(gradient, state.opt, state.params)
    params = optax.apply_updates(state.params, updates)
    state = State(state.step + 1, params, stats, opt)
    return state, {'loss': loss, 'meta_loss': meta}

  return plain._replace(step=step)


def batches(arrays, *, epochs, batch_size):
  """Some epochs of arrays [n, ...] in random order: [steps, b, ...]."""
  n, rng = len(arrays['x']), np.random.default_rng(0)
  steps = n // batch_size
  orders = [rng.permutation(n)[: steps * batch_size] for _ in range(epochs)]
  index = np.stack(orders).reshape(-1, batch_size)
  weight = np.ones(index.shape, np.float32)
  rows = {k: a[index] for k, a in arrays.items()}
  return {'index': index, 'weight': weight, **rows}


def noisy_digits(rng):
  """Digits, and labels of which 40% are another class, drawn evenly."""
  digits = load('digits')
  clean = digits.train.labels
  other = (clean + rng.integers(1, 10, clean.shape)) % 10
  return digits, np.where(rng.random(clean.shape) < 0.4, other, clean).astype(
    np.int32
  )


def train(method, batches):
  """A state after some batches, in one program and without a trainer."""

  def step(state, batch):
    key = jax.random.fold_in(jax.random.key(1), state.step)
    return method.step(state, batch, key)

  @jax.jit
  def run(key, batches):
    return jax.lax.scan(step, method.init(key), batches)[0]

  return run(jax.random.key(0), batches)


def accuracy(method, state, x, labels):
  logits = jax.jit(method.predict)(state, x).logits
  return np.mean(np.argmax(logits, axis=1) == labels)
