"""Golden checks of the rules of `jnl.pseudo` that look at batch after batch."""

import jax
import jax.numpy as jnp

from jnl import pseudo
from jnl.pseudo import Seen, class_fairness


def _run(rule, probs, index=None, steps=None):
  """Memories and weights of a rule after each of batches [t, b, c]."""
  t, b = probs.shape[:2]
  index = jnp.broadcast_to(jnp.arange(b), (t, b)) if index is None else index
  steps = jnp.arange(t) if steps is None else steps

  def step(memory, batch):
    seen = Seen(batch[0], jnp.ones(b), jnp.zeros(b), *batch[1:])
    memory, weights = rule.apply(memory, seen)
    return memory, (memory, weights)

  last, (memories, weights) = jax.lax.scan(
    step, rule.init(), (probs, index, steps)
  )
  return last, memories, weights


def check_flexmatch(case):
  n, warmup, cut = case.arrays['hyper'].tolist()
  case['hyper']
  c = case['logits'].shape[-1]
  rule = pseudo.flexmatch(int(n), c, threshold=cut, warmup=bool(warmup))
  last, memories, weights = yield (
    lambda z, index: _run(rule, jax.nn.softmax(z), index),
    *(case['logits'], case['idx']),
  )
  case.equal(weights, 'mask')
  case.value(memories.learned, 'classwise_acc')
  case.equal(last.chosen.rows.ravel()[: int(n)], 'selected_end')
  counts = (last.chosen.rows.ravel() == jnp.arange(c)[:, None]).sum(1)
  assert last.counts.tolist() == counts.tolist(), 'moved, as if recounted'


def check_freematch(case):
  momentum, quantile, clip = case.arrays['hyper'].tolist()
  case['hyper']
  rule = pseudo.freematch(
    case['weak'].shape[-1],
    momentum=momentum,
    quantile=0.8 if quantile else None,
    clip=0.95 if clip else None,
  )

  def run(weak, strong):
    _, memories, weights = _run(rule, jax.nn.softmax(weak))
    loss = lambda z, w, memory: class_fairness(
      z, w, memory.probs, memory.shares
    )
    slope = jax.vmap(jax.value_and_grad(loss))
    return memories, weights, slope(strong, weights, memories)

  found = yield run, case['weak'], case['strong']
  memories, weights, (fairness, slope) = found
  case.equal(weights, 'mask')
  case.value(memories.sure, 'tau')
  case.value(memories.probs, 'p_model')
  case.value(memories.shares, 'label_hist')
  case.value(fairness, 'ent')
  case.gradient(slope, 'ent_grad')


def check_softmatch(case):
  n_sigma, momentum, aligned = case.arrays['hyper'].tolist()
  case['hyper']
  c = case['logits'].shape[-1]
  align = pseudo.ema_alignment(c, momentum=momentum) if aligned else None
  rule = pseudo.softmatch(c, n_sigma=n_sigma, momentum=momentum, align=align)

  def run(logits):
    probs = jax.nn.softmax(logits)
    alone = _run(align, probs)[2] if align else probs
    return _run(rule, probs), alone

  (_, memories, weights), alone = yield run, case['logits']
  case.value(weights, 'weight')
  case.value(memories.mean, 'mu')
  case.value(memories.variance, 'var')
  case.value(alone, 'aligned')


def check_adamatch(case):
  rule, labeled = pseudo.relative(case.hp('cut')), len(case['lb'])

  def run(known, others):
    probs = jax.nn.softmax(jnp.concatenate([known, others]))
    index = jnp.arange(len(probs))
    kind = index < labeled
    return rule.apply((), Seen(probs, ~kind, kind, index, jnp.int32(0)))[1]

  weights = yield run, case['lb'], case['ub']
  case.equal(weights[labeled:], 'mask')


def check_dash(case):
  """Batches are two steps apart, an epoch has two, a period ten of these."""
  least, gamma, scale, initial, temperature = case.arrays['hyper'].tolist()
  case['hyper']
  falling = {'initial': initial, 'gamma': gamma, 'scale': scale, 'least': least}
  rule = pseudo.dash(20, temperature=temperature, **falling)

  def run(logits):
    probs, steps = jax.nn.softmax(logits), 2 * jnp.arange(len(logits))
    rho = pseudo.dash_threshold(steps, 20, **falling)
    own = lambda p, rho: pseudo.dash_targets(
      p, rho, least=least, temperature=temperature
    )
    return _run(rule, probs, steps=steps)[2], rho, jax.vmap(own)(probs, rho)

  weights, rho, targets = yield run, case['logits']
  case.equal(weights, 'mask')
  case.close(rho, 'rho', rtol=1e-6)
  case.equal((targets == 1).any(-1).all(-1), 'hard')


CHECKS = {
  ('ssl_family', 'adamatch_mask'): check_adamatch,
  ('ssl_family', 'dash_mask'): check_dash,
  ('ssl_family', 'flexmatch'): check_flexmatch,
  ('ssl_family', 'freematch'): check_freematch,
  ('ssl_family', 'softmatch'): check_softmatch,
}
