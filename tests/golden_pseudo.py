"""Golden checks of `jnl.pseudo` and of methods that learn what it makes."""

import jax
import jax.numpy as jnp
import numpy as np

from jnl import losses
from jnl.base import global_mean
from jnl.methods import self_train
from jnl.methods._divide_mix import _terms
from jnl.methods._mixing import mixed_losses
from jnl.pseudo import (
  Seen,
  annealing_threshold,
  co_guess,
  co_refine,
  ema_alignment,
  fixed,
  growing_quota,
  hard,
  leaderboard,
  most_confident,
  one_hot,
  queue_alignment,
  shrinkable,
  shrinking,
  shrunk_cross_entropy,
  soft,
  sub_labels,
  top_per_class,
)
from jnl.ramps import linear_rampup


def check_divide_mix(case):
  """Of labeled rows and others in one batch, where the code has two."""
  guesses, own = case['u_probs'], case['x_probs']
  labels, t = case['labels'], case.hp('T')
  since = case.hp('epoch') - case.hp('warm_up')
  b, c = len(labels), own.shape[-1]

  def run(guesses, own, clean, labels, z):
    guessed = co_guess(guesses, temperature=t)
    labels = one_hot(labels, c).astype(own.dtype)
    refined = co_refine(labels, own.mean(0), clean, temperature=t)
    targets = jnp.concatenate([refined, guessed])[:, None]
    labeled, ones = jnp.arange(2 * b) < b, jnp.ones(2 * b, z.dtype)
    lam = 25 * linear_rampup(since, 16)

    def loss(z):
      terms = _terms(z[:, None], targets, labeled, ones)
      return terms.labeled + lam * terms.guessed + terms.prior, terms

    entropy = -losses.ce(z, jax.nn.softmax(z))[:b].mean()
    values = jax.value_and_grad(loss, has_aux=True)(z)
    return guessed, refined, lam, values, entropy

  z = jnp.concatenate([case['logits_x'], case['logits_u']])
  found = yield run, guesses, own, case['w_clean'][:, 0], labels, z
  guessed, refined, lam, ((loss, terms), slope), entropy = found
  case.value(guessed, 'targets_u')
  case.value(refined, 'targets_x')
  case.value(terms.labeled, 'Lx')
  case.value(terms.guessed, 'Lu')
  case.close(lam, 'lamb', rtol=1e-6)
  case.value(terms.prior, 'penalty')
  case.value(loss, 'loss')
  case.gradient(slope[:b], 'grad_x')
  case.gradient(slope[b:], 'grad_u')
  case.value(entropy, 'neg_entropy_x')


# --- alignments, targets, ShrinkMatch ----------------------------------------


def _suffixed(case):
  """Here results of float32 have no suffix where those of float64 have one."""
  for name in list(case.arrays):
    if f'{name}_f64' in case.arrays:
      case.arrays[f'{name}_f32'] = case.arrays.pop(name)


def _two_kinds(unlabeled, labeled):
  """Both kinds of probabilities in one batch, as a rule sees it."""
  probs = jnp.concatenate([unlabeled, labeled])
  kind = jnp.arange(len(probs)) < len(unlabeled)
  return Seen(probs, kind, ~kind, jnp.arange(len(probs)), jnp.int32(0))


def _aligned(rule, unlabeled, labeled):
  """Of batches [t, b, c] of both kinds, [t, b, c]."""

  def step(memory, probs):
    memory, aligned = rule.apply(memory, _two_kinds(*probs))
    return memory, aligned[: len(probs[0])]

  return jax.lax.scan(step, rule.init(), (unlabeled, labeled))


def check_dist_align(case):
  """Which target is not in the file, but it fits one alone."""

  def run(unlabeled, labeled):
    probs = jax.nn.softmax(unlabeled), jax.nn.softmax(labeled)
    c = unlabeled.shape[-1]
    rules = {
      'ema': lambda target: ema_alignment(c, target=target, momentum=0.9),
      'queue': lambda target: queue_alignment(
        c, length=4, target=target, offset=1e-6
      ),
    }
    return {
      name: [_aligned(rule(t), *probs)[1] for t in ('uniform', 'model')]
      for name, rule in rules.items()
    }

  found = yield run, case['ulb'], case['lb']
  for name, both in found.items():
    if case.has(f'aligned_{name}'):
      expected = case.expected(f'aligned_{name}')
      off = [np.abs(aligned - expected).max() for aligned in both]
      case.value(both[np.argmin(off)], f'aligned_{name}')


def check_shrinkmatch_queue(case):
  probs = case['probs']
  rule = queue_alignment(probs.shape[-1])
  run = lambda p: _aligned(rule, p, p)
  memory, aligned = yield run, probs
  case.value(aligned, 'aligned')
  # The newest comes first.
  case.value(np.roll(memory.unlabeled[::-1], len(probs), 0), 'queue_end')


def check_consistency(case):
  """Masked rows count in the mean; `kl_inv` is of no method here (CRMatch)."""
  _suffixed(case)
  z, weak, mask = case['logits'], case['weak_logits'], case['mask']
  rounded = case['soft']  # in float32
  case.skip('kl_inv')

  def run(z, weak, mask, rounded):
    weak = jax.nn.softmax(weak)
    targets = hard(weak), rounded
    mean = lambda values: global_mean(values, mask, jnp.ones_like(mask))

    def squares(z):  # that they are of all rows is the official way
      none, every = jnp.zeros_like(mask), jnp.ones_like(mask)
      return mixed_losses(z[:, None], targets[1][:, None], none, every)[1]

    found = [
      jax.value_and_grad(loss)(z)
      for loss in (
        lambda z: mean(losses.ce(z, targets[0])),
        lambda z: mean(losses.ce(z, targets[1])),
        squares,
      )
    ]
    return targets[0], soft()(weak), found

  guess, probs, found = yield run, z, weak, mask, rounded
  case.equal(guess.argmax(1), 'hard')
  np.testing.assert_allclose(probs, rounded, atol=1e-6)
  for (value, slope), name in zip(
    found, ('ce_hard', 'ce_soft', 'mse'), strict=True
  ):
    case.value(value, name)
    case.gradient(slope, f'{name}_grad')


def check_annealing(case):
  """The last of the schedules is none, which leaves out nobody."""
  kind, *rows = case['rows'].T
  rows = [a.astype(case.dtype) for a in rows]

  def run(*rows):
    kinds = ('linear', 'exp', 'log')
    return [annealing_threshold(*rows, schedule=name) for name in kinds]

  found = yield run, *rows
  case.value(np.choose(kind, [*found, np.ones_like(rows[0])]), 'tsa')


def check_sharpen(case):
  """No method here smooths its guesses: `smooth01` is not compared."""
  case.skip('smooth01')

  def run(*z):
    probs = jax.nn.softmax(jnp.stack(z))
    guess = jnp.argmax(hard(probs[0]), -1)
    return co_guess(probs, temperature=1.0), co_guess(probs), guess

  mean, sharpened, guess = yield run, case['logits1'], case['logits2']
  case.value(mean, 'avg')
  case.value(sharpened, 'sharpened')
  case.equal(guess, 'hard')


def check_shrunk(case):
  """How many classes are left, flat logits say: their loss is p log k."""
  _suffixed(case)
  probs, z, thr = case['weak_probs'], case['strong_logits'], case.hp('thr')
  weak = case['weak_logits']

  def run(probs, weak, z):
    loss = lambda z: jnp.sum(shrunk_cross_entropy(z, probs, threshold=thr))
    own, flat = (
      shrunk_cross_entropy(a, probs, threshold=thr) for a in (z, 0 * z)
    )
    again = shrunk_cross_entropy(z, jax.nn.softmax(weak), threshold=thr)
    counts = shrinkable(probs, threshold=thr)
    return own, again, flat, counts, jax.value_and_grad(loss)(z)

  own, again, flat, counts, (total, slope) = yield run, probs, weak, z
  np.testing.assert_allclose(own, again, rtol=1e-5, atol=1e-6)
  case.value(own, 'per_example')
  case.value(total, 'loss_sum')
  case.gradient(slope, 'grad_strong')
  c, top = probs.shape[1], probs.max(1)
  kept = np.rint(np.exp(flat / top)).astype(int)
  never = np.where((top >= thr) | (c < 3), -1, c - 1)
  case.equal(np.where(counts, c - kept + 1, never), 'cut_index')


def check_shrinkmatch_loss(case):
  """As published for STL-10: sure guesses as hard labels."""
  thr = case.hp('thr')

  def run(strong, weak, aux):
    probs = jax.nn.softmax(weak)
    seen = _two_kinds(probs, probs[:0])
    _, weights = shrinking(thr).apply(shrinking(thr).init(), seen)
    sure = losses.ce(strong, hard(probs)) * weights
    shrunk = shrunk_cross_entropy(aux, probs, threshold=thr)
    return jnp.mean(sure), jnp.mean(weights), jnp.mean(shrunk)

  arrays = (case[f'logits_{name}'] for name in ('s', 'w', 'aux'))
  found = yield run, *arrays
  for value, name in zip(
    found, ('certain_loss', 'mask_mean', 'shrink_loss'), strict=True
  ):
    case.value(value, name)


# Rounds and quotas.


def check_top_per_class(case):
  probs, k = jax.nn.softmax(case['logits']), case.hp('k')
  index, valid = yield (lambda probs: top_per_class(probs, k)), probs
  there = min(k, len(probs))
  np.testing.assert_array_equal(valid, np.arange(k) < there + 0 * valid)
  case.equal(index[:, :there], 'topk_per_class')
  ids, labels = leaderboard(probs, k)
  case.equal(ids, 'ids')
  case.equal(labels, 'labels')


def check_growing_quota(case):
  """One at least, where the code has 0."""
  yield (tuple,)
  quotas = np.full((len(case['hp']), 12), -1)
  for row, (n, c, percent) in zip(quotas, case['hp'], strict=True):
    rounds = 100 // percent
    for i in range(rounds + 1):
      none = (i + 1) * (n // rounds) < c
      row[i] = 0 if none else growing_quota(i, n, c, rounds)
      assert growing_quota(i, n, c, rounds) == max(1, row[i])
  case.equal(quotas, 'k')


def check_sub_labels(case):
  c, keep = case.hp('N'), case.hp('K')

  def run(weak, guessed):
    return (
      sub_labels(weak, guessed, c),
      sub_labels(weak, guessed, c, kind='agree'),
      sub_labels(weak, guessed, c, kind='frequent', keep=keep),
    )

  found = yield run, case['weak'], case['teacher']
  for labels, name in zip(found, ('full', 'B', 'D'), strict=True):
    case.equal(labels, name)


def naive_bayes(x, labels, weights):
  """Posteriors of normal features; all rows count alike."""
  own = [x[labels == k] for k in range(labels.max() + 1)]
  share = np.array([len(rows) / len(x) for rows in own], x.dtype)
  mean = np.stack([rows.mean(0) for rows in own])
  spread = np.stack([rows.var(0) for rows in own]) + 1e-9 * x.var(0).max()

  def predict(x):
    apart = np.square(x[:, None] - mean) / spread
    logs = np.log(share) - 0.5 * np.sum(np.log(spread) + apart, axis=-1)
    odds = np.exp(logs - logs.max(1, keepdims=True))
    return odds / odds.sum(1, keepdims=True)

  return predict


def check_self_training(case):
  """Rounds count those that find nobody, as there."""
  case.skip('y_true')
  yield (tuple,)
  threshold, k = case.hp('threshold'), case.hp('k_best')
  rule = most_confident(k) if k > 0 else fixed(threshold, strict=True)
  found = self_train(naive_bayes, case['X'], case['y_partial'], rule, rounds=10)
  if case.dtype(threshold) == 1:  # float32 cannot tell who is above it
    case.skip('transduction', 'labeled_iter', 'proba')
    assert found.rounds == case.expected('n_iter') - 1
    return
  case.equal(found.labels, 'transduction')
  case.equal(found.round, 'labeled_iter')
  case.equal(found.rounds, 'n_iter')
  case.value(found.probs, 'proba')


CHECKS = {
  ('grip', 'topk_leaderboard'): check_top_per_class,
  ('grip', 'schedule'): check_growing_quota,
  ('spl', 'label_space_selfref'): check_sub_labels,
  ('self_training', 'gaussian_nb_loop'): check_self_training,
  ('dividemix', 'targets_and_loss'): check_divide_mix,
  ('shrinkmatch', 'shrink_loss'): check_shrunk,
  ('shrinkmatch', 'consistency_with_shrink_stl'): check_shrinkmatch_loss,
  ('shrinkmatch', 'distribution_alignment_queue'): check_shrinkmatch_queue,
  ('ssl_family', 'dist_align'): check_dist_align,
  ('ssl_family', 'consistency_loss'): check_consistency,
  ('ssl_family', 'uda_tsa'): check_annealing,
  ('ssl_family', 'mixmatch_sharpen'): check_sharpen,
}
