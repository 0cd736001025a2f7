"""Golden checks of `jnl.meta`: L2RW, Meta-Weight-Net, MSLC, MLC and STORM.

Weights in the files are [out, in]; ours are kernels [in, out]. The float32
numbers of L2RW and Meta-Weight-Net are of another draw of the network, which is
not in the files: both precisions are compared with the float64 numbers.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jnl import losses, meta

WEIGHT_DECAY, MOMENTUM = 5e-4, 0.9


def _layers(case, prefix, names):
  """The dense layers `prefix.name.weight` and `.bias`, as kernels."""
  return {
    name: {
      'kernel': case[f'{prefix}.{name}.weight'].T,
      'bias': case[f'{prefix}.{name}.bias'],
    }
    for name in names
    if f'{prefix}.{name}.weight' in case
  }


def _compare_layers(case, found, prefix, compare, scale=1.0):
  for name, layer in found.items():
    compare(layer['kernel'].T, f'{prefix}.{name}.weight', scale)
    compare(layer['bias'], f'{prefix}.{name}.bias', scale)


def _dense(layer, x):
  return x @ layer['kernel'] + layer['bias']


def _logits(params, x, last='l2'):
  """tanh after the first layer, if there are two."""
  return _dense(params[last], _features(params, x))


def _features(params, x):
  return jnp.tanh(_dense(params['l1'], x)) if 'l1' in params else x


def _ce(params, x, y):
  return losses.ce(_logits(params, x), y)


def _mean_ce(params, x, y):
  return jnp.mean(_ce(params, x, y))


def _sgd(case):
  return optax.chain(
    optax.add_decayed_weights(WEIGHT_DECAY),
    optax.sgd(case.hp('lr'), momentum=MOMENTUM),
  )


def _from_double(check):
  """Leaves out the float32 numbers, which are of another network."""

  def run(case):
    case.arrays = {
      name: a for name, a in case.arrays.items() if not name.endswith('_f32')
    }
    return check(case)

  return run


def _l2rw(case):
  params = _layers(case, 'param', ('l1', 'l2'))
  x, y, x_val, y_val = (case[k] for k in ('x', 'y', 'x_val', 'y_val'))
  tx = optax.sgd(case.hp('lr'))

  def run(params):
    def per_example(params):
      return _ce(params, x, y)

    opt = tx.init(params)
    found = meta.meta_gradient(
      per_example,
      lambda p: _mean_ce(p, x_val, y_val),
      jnp.zeros(y.shape, x.dtype),
      params,
      opt,
      tx,
    )
    direction = jax.grad(_mean_ce)(params, x_val, y_val)
    dots = meta.weight_gradient(per_example, params, direction)
    w = meta.l2rw_weights(dots)
    loss, gradient = jax.value_and_grad(
      lambda p: meta.total(per_example(p), w)
    )(params)
    stepped, _, _ = meta.virtual_step(gradient, params, opt, tx)
    return found, dots, w, loss, gradient, stepped

  found, dots, w, loss, gradient, stepped = yield run, params
  big = float(np.abs(dots).max())
  case.gradient(found.weights, 'grad_eps', big)
  case.gradient(dots, 'dots', big)
  case.gradient(w, 'w')
  case.value(found.meta_loss, 'meta_loss')
  case.gradient(loss, 'loss')
  # Gradients are sums of terms as large as the inputs.
  size = max(1.0, float(np.abs(case.arrays['x']).max()))
  _compare_layers(case, gradient, 'grad', case.gradient, size)
  _compare_layers(case, stepped, 'sgd', case.value, size)


def _weigher(layers):
  return {'hidden': layers['linear1'], 'out': layers['linear2']}


def _unweigher(params):
  return {'linear1': params['hidden'], 'linear2': params['out']}


def _weigher_step(gradient, params, opt):
  tx = optax.chain(optax.add_decayed_weights(1e-4), optax.adam(1e-3))
  updates, opt = tx.update(gradient, opt or tx.init(params), params)
  return optax.apply_updates(params, updates), opt


def _mwn(case):
  params = _layers(case, 'param', ('l1', 'l2'))
  names = ('linear1', 'linear2')
  vnet = _weigher(_layers(case, 'v', names))
  x, y, x_val, y_val = (case[k] for k in ('x', 'y', 'x_val', 'y_val'))
  virtual, tx, model = optax.sgd(case.hp('lr')), _sgd(case), meta.weigher()

  def weigh(vnet, values):
    return meta.weigh(model, vnet, {}, jax.lax.stop_gradient(values), None)[0]

  def step(params, vnet, opt, vnet_opt):
    def per_example(params):
      return _ce(params, x, y)

    values = per_example(params)
    v = weigh(vnet, values)
    found = meta.meta_gradient(
      per_example,
      lambda p: _mean_ce(p, x_val, y_val),
      v / len(y),
      params,
      virtual.init(params),
      virtual,
    )
    by_vnet = jax.grad(lambda n: jnp.mean(found.weights * weigh(n, values)))(
      vnet
    )
    vnet, vnet_opt = _weigher_step(by_vnet, vnet, vnet_opt)
    w = weigh(vnet, values)
    loss, gradient = jax.value_and_grad(lambda p: jnp.mean(per_example(p) * w))(
      params
    )
    updates, opt = tx.update(gradient, opt or tx.init(params), params)
    numbers = (v, jnp.mean(v * values), found.meta_loss, w, loss)
    moved = (optax.apply_updates(params, updates), vnet, opt, vnet_opt)
    return moved, numbers, by_vnet, gradient

  def run(params, vnet):
    moved = (params, vnet, None, None)
    for _ in range(case.hp('steps')):
      moved, numbers, by_vnet, gradient = step(*moved)
    return moved[0], moved[1], numbers, by_vnet, gradient

  params, vnet, numbers, by_vnet, gradient = yield run, params, vnet
  case.value(numbers[0][:, None], 'v_lambda')
  case.value(numbers[1], 'virtual_loss')
  case.value(numbers[2], 'meta_loss')
  case.value(numbers[3][:, None], 'w_new')
  case.value(numbers[4], 'loss')
  big = max(1.0, float(np.abs(numbers[2])))
  _compare_layers(case, _unweigher(by_vnet), 'vgrad', case.gradient, big)
  _compare_layers(case, gradient, 'grad', case.gradient, big)
  _compare_layers(case, params, 'param_after', case.value, big)
  _compare_stepped(case, _unweigher(vnet), by_vnet)


def _compare_stepped(case, vnet, by_vnet):
  """Adam's first steps are signs: of gradients that are roundings, noise."""
  if case.precision == 'f64':
    _compare_layers(case, vnet, 'v_after', case.value)
    return
  by_vnet = _unweigher(by_vnet)
  for name, layer in vnet.items():
    for ours, theirs in (('kernel', 'weight'), ('bias', 'bias')):
      key = f'{name}.{theirs}'
      if not case.has(f'v_after.{key}'):
        continue
      own, slope = np.asarray(layer[ours]).T, np.asarray(by_vnet[name][ours]).T
      sure = np.abs(slope + 1e-4 * case.arrays[f'v.{key}']) > 1e-6
      expected = case.expected(f'v_after.{key}')
      np.testing.assert_allclose(
        own[sure], expected[sure], rtol=1e-5, atol=2e-5, err_msg=key
      )
      np.testing.assert_allclose(own, expected, atol=2.1e-3 * case.hp('steps'))


def _mslc(case):
  params = _layers(case, 'param', ('l1', 'l2'))
  names = ('linear1', 'linear2')
  nets = [_weigher(_layers(case, v, names)) for v in ('v1', 'v2')]
  x, y, x_val, y_val = (case[k] for k in ('x', 'y', 'x_val', 'y_val'))
  soft, tx, model = (
    case['soft_labels'],
    optax.sgd(case.hp('lr')),
    meta.weigher(),
  )

  def trust(net, values):
    return meta.weigh(model, net, {}, jax.lax.stop_gradient(values), None)[0]

  def run(params, nets):
    def parts(params):
      return meta.mslc_losses(_logits(params, x), y, soft)

    values = parts(params)
    alpha, beta = (trust(n, values[i]) for i, n in enumerate(nets))

    def virtual(params):
      return jnp.mean(meta.mslc_mix(parts(params), alpha, beta))

    loss, gradient = jax.value_and_grad(virtual)(params)
    moved, _, pull = meta.virtual_step(gradient, params, tx.init(params), tx)
    meta_loss, by_moved = jax.value_and_grad(_mean_ce)(moved, x_val, y_val)
    slopes = meta.weight_gradient(parts, params, pull(by_moved))

    def objective(nets):
      found = [trust(n, values[i]) for i, n in enumerate(nets)]
      return jnp.mean(meta.mslc_mix(slopes, *found))

    label = meta.mslc_labels(_logits(params, x), y, soft, alpha, beta)
    return alpha, beta, loss, meta_loss, label, jax.grad(objective)(nets)

  alpha, beta, loss, meta_loss, label, by_nets = yield run, params, nets
  case.value(alpha[:, None], 'alpha')
  case.value(beta[:, None], 'beta')
  case.value(loss, 'virtual_loss')
  case.value(meta_loss, 'meta_loss')
  case.value(label, 'new_soft_label_with_current_params')
  for net, prefix in zip(by_nets, ('v1_grad', 'v2_grad'), strict=True):
    _compare_layers(case, _unweigher(net), prefix, case.gradient)


def _mlc(case):
  params = _layers(case, 'param', ('l1', 'l2'))
  x, y, x_val, y_val = (case[k] for k in ('x', 'y', 'x_val', 'y_val'))
  layers = _layers(case, 'meta', ('net.0', 'net.2', 'net.4'))
  net = {
    'embedding': case['meta.cls_emb.weight'],
    'layers': list(layers.values()),
  }
  d, c = params['l2']['kernel'].shape
  model = meta.corrector(d, c, skip=bool(case.hp('skip')))
  tx = _sgd(case)

  def correct(net, h):
    h = jax.lax.stop_gradient(h)
    return jax.nn.softmax(model.apply(net, {}, (h, y), None, True)[0].logits)

  def run(params, net):
    def log_probs(params):
      return jax.nn.log_softmax(_logits(params, x))

    h = _features(params, x)
    soft = correct(net, h)
    loss, gradient = jax.value_and_grad(
      lambda p: jnp.mean(losses.ce(_logits(p, x), soft))
    )(params)
    moved, _, pull = meta.virtual_step(gradient, params, tx.init(params), tx)
    meta_loss, by_moved = jax.value_and_grad(_mean_ce)(moved, x_val, y_val)
    slopes = -meta.weight_gradient(log_probs, params, pull(by_moved))
    by_net = jax.grad(lambda n: jnp.mean(jnp.sum(correct(n, h) * slopes, -1)))(
      net
    )
    return soft, loss, meta_loss, moved, by_net

  soft, loss, meta_loss, moved, by_net = yield run, params, net
  case.value(soft, 'pseudo_target')
  case.value(loss, 'loss_s')
  case.value(meta_loss, 'loss_g')
  _compare_layers(case, moved, 'param_after', case.value)
  case.gradient(by_net['embedding'], 'meta_grad.cls_emb.weight')
  found = dict(zip(layers, by_net['layers'], strict=True))
  _compare_layers(case, found, 'meta_grad', case.gradient)


_RESCALER = {'hidden': 0, 'out': 3}


def _storm_rescaler(case, classes):
  """The kernels of all classes, stacked; ours has no biases, see there."""
  for k in range(classes):
    for layer in _RESCALER.values():
      case.skip(f'param.rescaler_{k}.{layer}.bias')
  return {
    name: np.stack(
      [case[f'param.rescaler_{k}.{layer}.weight'].T for k in range(classes)]
    )
    for name, layer in _RESCALER.items()
  }


def _compare_rescaler(case, found, prefix, classes, scale):
  for k in range(classes):
    for name, layer in _RESCALER.items():
      kernel = np.asarray(found[name][k]).T
      key = f'{prefix}.rescaler_{k}.{layer}'
      case.gradient(kernel, f'{key}.weight', scale)
      case.gradient(np.zeros_like(kernel[:, 0]), f'{key}.bias', scale)


def _rounding(features, labels):
  """How far off float32 may be, in us and in the reference, [b, 19].

  Divergences and overlaps see distances in units of deviations that are often a
  hundredth of the losses that they are computed from, and square them.
  """
  bound = np.full(features.shape, 1e-6)
  smallest = np.maximum(np.minimum(features[:, 3], features[:, 4]), 1e-8)
  unit = 1e-6 * np.maximum(features[:, 0], features[:, 1]) / smallest
  away = np.abs(features[:, 0] - features[:, 1]) / smallest
  own = np.stack([unit * (1 + away + 2 * np.abs(features[:, 12])), unit], 1)
  for i, key in enumerate(zip(labels, features[:, 18], strict=True)):
    group = (labels == key[0]) & (features[:, 18] == key[1])
    bound[i, 12:15] += own[group, 0].max()
    bound[i, 15:18] += own[group, 1].max()
  return bound


def _compare_features(case, found, name):
  if not case.has(name):
    return
  expected = case.expected(name)
  labels = case.arrays[name.replace('features', 'y')]
  error = np.abs(np.asarray(found) - expected) - 1e-5 * np.abs(expected)
  assert np.all(error <= _rounding(expected, labels)), name


def _is_adam(case, lr):
  """Whether all moved by the rate, as far as a first step of Adam does.

  No number of a file says which optimizer it has.
  """
  moved = [
    np.abs(a - case.arrays[name.replace('_after', '')]).ravel()
    for name, a in case.arrays.items()
    if name.startswith('param_after.')
  ]
  moved = np.concatenate(moved) / lr
  return np.max(moved) < 1.01 and np.median(moved) > 0.9


def _storm(case):
  classes, lr = case.hp('C'), case.hp('lr')
  params = _layers(case, 'param', ('l1', 'classifier'))
  net = _storm_rescaler(case, classes)
  y, y_val = case['y'], case['y_val']
  batch = case['x'] * case['masks'], y
  batch_val = case['x_val'] * case['masks_val'], y_val
  assert case.hp('G') == len(batch[0])
  adam = _is_adam(case, lr)
  tx = meta.first_adam(lr) if adam else optax.sgd(lr)
  model = meta.rescaler(classes)

  def passes(params, batch):
    """Losses [G, b] and logits [G, b, c]."""
    logits = _logits(params, batch[0], 'classifier')
    labels = jnp.broadcast_to(batch[1], logits.shape[:2])
    return losses.ce(logits, labels), logits

  def see(params, batch):
    memory = meta.storm_memory(classes, len(batch[1]))
    values, logits = passes(params, batch)
    features, _ = meta.storm_features(values, logits, batch[1], memory)
    return values, logits, features

  def rescale(net, features, labels):
    mask = jnp.ones(labels.shape)
    return meta.rescale(model, net, {}, features, labels, mask)[0]

  def weighted(params, batch, w):
    return meta.total(passes(params, batch)[0][0], w)

  # What follows the features is compared from the features of the file: the
  # rounding of ours would come back, magnified, in the weights.
  features, features_val = case['features'], case['features_val']

  def run(params, net):
    seen = see(params, batch)
    w = rescale(net, features, y)
    loss, gradient = jax.value_and_grad(weighted)(params, batch, w)
    moved, _, pull = meta.virtual_step(gradient, params, tx.init(params), tx)
    seen_val = see(moved, batch_val)
    w_val = rescale(net, features_val, y_val)
    meta_loss, by_moved = jax.value_and_grad(weighted)(moved, batch_val, w_val)
    by_weight = meta.weight_gradient(
      lambda p: passes(p, batch)[0][0], params, pull(by_moved)
    )
    inner = jax.grad(lambda n: by_weight @ rescale(n, features, y))(net)
    outer = jax.grad(
      lambda n: seen_val[0][0] @ rescale(n, features_val, y_val)
    )(net)
    return seen, w, loss, moved, seen_val, w_val, meta_loss, inner, outer

  seen, w, loss, moved, seen_val, w_val, meta_loss, inner, outer = yield (
    run,
    params,
    net,
  )
  for found, end in ((seen, ''), (seen_val, '_val')):
    case.value(found[0], 'losses' + end)
    case.value(found[1], 'logits' + end)
    _compare_features(case, found[2], 'features' + end)
  rounding = _rounding(case.arrays['features'], case.arrays['y'])
  for column, name in ((12, 'kl'), (15, 'ovl')):
    if not case.has(name):
      continue
    own, expected = np.asarray(seen[2][:, column]), case.expected(name)
    error = np.abs(own - expected) - 1e-5 * np.abs(expected)
    assert np.all(error <= rounding[:, column]), name
  case.equal(seen[2][:, 18], 'agreement')
  case.value(w, 'weights')
  case.value(w_val, 'weights_val')
  case.value(loss, 'loss')
  case.value(meta_loss, 'meta_loss')
  _compare_layers(case, moved, 'param_after', case.value)
  both = jax.tree.map(np.add, inner, outer)
  size = max(float(np.abs(a).max()) for a in jax.tree.leaves(both))
  # In the file it is what float32 left of a difference of the other two. The
  # derivative of Adam's first step goes by the square of gradients that cancel.
  _compare_rescaler(case, inner, 'g_meta', classes, size * (10 if adam else 1))
  _compare_rescaler(case, outer, 'g_outer', classes, size)
  _compare_rescaler(case, both, 'g_total', classes, size)


CHECKS = {
  ('l2rw', 'weights'): _from_double(_l2rw),
  ('mwn', 'step'): _from_double(_mwn),
  ('mslc', 'virtual_step'): _mslc,
  ('mlc', 'step'): _mlc,
  ('storm', 'step'): _storm,
}
