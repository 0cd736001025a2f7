"""A method as a newcomer writes it from BUILD.md, "A new method": a sham.

Two networks learn the labels that both find easy, and have to agree elsewhere.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jnl import Method, Outputs, State, Table, losses
from jnl.base import (
  Aux,
  Refit,
  check_batch,
  global_mean,
  pack_rows,
  read_rows,
  unpack_rows,
  write_rows,
)
from jnl.steps import each, from_loss, model_keys, of_stream, training_pass
from jnl.train import Score


class Memory(NamedTuple):
  trust: Table  # [n], 0 or 1
  agreement: Table  # [n_u], when last seen


def sham(model, tx, *, num_examples, num_unlabeled, shards=1, shards_u=1):
  def init(key):
    params, stats = jax.vmap(model.init)(jax.random.split(key, 2))
    trust = pack_rows(jnp.ones(num_examples), shards)
    agreement = pack_rows(jnp.zeros(num_unlabeled), shards_u, 'u')
    opt = tx.init(params)
    return State(jnp.int32(0), params, stats, opt, Memory(trust, agreement))

  def loss_fn(params, state, batch, key):
    check_batch(batch, 'x', 'labels', 'weight')
    own, weight = of_stream(batch, 'u'), batch['weight']

    def one(params, stats):
      keys, keys_u = model_keys(key, batch), model_keys(key, own, 'u')
      labeled, stats = training_pass(
        model, params, stats, batch['x'], keys, weight
      )
      unlabeled, stats = training_pass(
        model, params, stats, own['x'], keys_u, own['weight']
      )
      return losses.ce(labeled.logits, batch['labels']), unlabeled.logits, stats

    both, logits_u, stats = each(one, 2, params, state.stats)
    gap = jnp.square(jnp.diff(jax.nn.softmax(logits_u), axis=0)[0]).sum(-1)
    trusted = weight * read_rows(state.extra.trust, batch['index'])
    disagreement = global_mean(gap, own['weight'])
    loss = global_mean(both.mean(0), trusted) + disagreement
    agreement = write_rows(
      state.extra.agreement, own['index'], 1 - gap, where=own['weight'] > 0
    )
    extra = state.extra._replace(agreement=agreement)
    return loss, Aux(stats, extra, {'disagreement': disagreement})

  def predict(state, x):
    one = lambda params, stats: model.apply(params, stats, x, None, False)[0]
    outputs = each(one, 2, state.params, state.stats)
    return Outputs(outputs.logits.mean(0), outputs.features.mean(0))

  def collect(state, batch, key):
    del key
    return losses.ce(predict(state, batch['x']).logits, batch['labels'])

  def update(state, table, key):
    del key
    rows = unpack_rows(table, num_examples)
    trust = (rows <= jnp.nanquantile(rows, 0.7)).astype(jnp.float32)
    extra = state.extra._replace(trust=pack_rows(trust, shards))
    return state._replace(extra=extra)

  step = from_loss(loss_fn, model, tx).step
  return Method(init, step, predict, Refit(collect, update))


median_confidence = Score(
  lambda outputs, batch: jax.nn.softmax(outputs.logits).max(-1),
  lambda rows, arrays: {'median_confidence': jnp.median(rows)},
)
