"""Golden checks of `jnl.pseudo` and of methods that learn what it makes."""

import jax
import jax.numpy as jnp

from jnl import losses
from jnl.methods._divide_mix import _terms
from jnl.pseudo import co_guess, co_refine, one_hot
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


CHECKS = {('dividemix', 'targets_and_loss'): check_divide_mix}
