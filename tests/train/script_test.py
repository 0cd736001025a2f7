"""What scripts share: settings, rows of each class, networks, optimizers."""

import dataclasses

import jax
import numpy as np
import pytest

from jnl import data, noise
from jnl.data import Examples, from_arrays
from jnl.train import option, parse, script


@dataclasses.dataclass(frozen=True)
class Config(script.Resumable):
  methods: tuple[str, ...] = option(('ce',), 'what')
  seeds: int = option(3, 'runs, each with its own bags')
  rate: float = option(0.4, 'of noise')


def test_a_script_adds_options_and_changes_defaults(capsys):
  config = parse(Config, '', ['--rate', '.2', '--data-dir', 'here'])
  assert (config.seeds, config.dataset, config.rate) == (3, 'digits', 0.2)
  assert script.setting(config) == {'net': 'mlp', 'rate': 0.2}
  assert script.setting(config, ['net']) == {'rate': 0.2}
  assert script.about('e', config, 'AUC') == {
    'experiment': 'e', 'dataset': 'digits', 'metric': 'AUC',
    'setting': {'net': 'mlp', 'rate': 0.2},
  }  # fmt: skip
  with pytest.raises(SystemExit):
    parse(Config, '', ['--help'])
  assert 'its own bags (default: 3)' in capsys.readouterr().out


@pytest.mark.parametrize(
  ('changed', 'message'),
  [
    ({'methods': ('cee',)}, "unknown method 'cee'; did you mean 'ce'"),
    ({'net': 'mpl'}, "unknown net 'mpl'"),
    ({'seeds': 0}, 'seeds must be at least 1, got 0'),
    ({'checkpoint_every': -1}, 'checkpoint-every must not be negative'),
  ],
)
def test_common_options_are_checked(changed, message):
  script.check_common(Config(net=''), ['ce', 'elr'])
  with pytest.raises(ValueError, match=message):
    script.check_common(Config(**changed), ['ce', 'elr'])


def test_numbers_with_commas():
  assert script.numbers('sizes', ('8', '32'), 1) == [8, 32]
  for values in (('8', 'x'), ('0',), ('-1',), ('1.5',)):
    with pytest.raises(ValueError, match='sizes must be numbers from 1 on'):
      script.numbers('sizes', values, 1)


def test_where_runs_are_saved():
  assert script.checkpoint(Config(), 'ce') is None
  saved = script.checkpoint(Config(out='o', checkpoint_every=5), 'ce')
  assert (saved.folder, saved.every, saved.resume) == (
    'o/checkpoints/ce', 5, False
  )  # fmt: skip
  assert script.checkpoint(Config(resume=True), 'ce').every is None
  assert saved.config == {
    'net': 'mlp', 'rate': 0.4, 'dataset': 'digits', 'epochs': None
  }  # fmt: skip


def test_so_many_of_each_class():
  rng = np.random.default_rng(0)
  labels = rng.choice([0, 2, 3], 60)  # no example of class 1
  order = rng.permutation(60)
  for size in (4, np.array([1, 9, 3, 100])):
    found = script.per_class(labels, size, order)
    wanted = np.minimum(
      np.broadcast_to(size, 4), np.bincount(labels, minlength=4)
    )
    np.testing.assert_array_equal(
      np.bincount(labels[found], minlength=4), wanted
    )
    for k in (0, 2, 3):  # the first ones along the order
      rows = [i for i in order if labels[i] == k]
      assert set(rows[: wanted[k]]) == set(
        np.flatnonzero(found & (labels == k))
      )
  first = script.per_class(labels, 1)
  assert [int(i) for i in np.flatnonzero(first)] == sorted(
    int(np.argmax(labels == k)) for k in (0, 2, 3)
  )


def dataset(n=40):
  labels = np.arange(n) % 4
  x = np.arange(2 * n, dtype=np.float32).reshape(n, 2) + 5
  return from_arrays(x, labels.astype(np.int32), x[:8], labels[:8])


def test_two_classes_and_bags_of_them():
  two = script.binary(dataset(), [1, 3])
  whole = data.published_order(two)
  np.testing.assert_array_equal(whole.labels, whole.id % 2)
  assert two.num_classes == 2
  with pytest.raises(ValueError, match='positive must leave both classes'):
    script.binary(dataset(), [7])
  part = Examples(*(values[:5] for values in two.train))
  bags = noise.cut_bags(np.array([4, 0, 1, 3, 2]), 3)
  arrays = script.bag_arrays(part, bags)
  assert arrays['mask'].sum(1).tolist() == [3, 2]
  assert arrays['counts'].tolist() == [
    part.labels[[4, 0, 1]].sum(), part.labels[[3, 2]].sum()
  ]  # fmt: skip
  np.testing.assert_array_equal(arrays['x'][1, :2], part.x[[3, 2]])
  assert not arrays['x'][1, 2].any()
  runs = script.per_run([arrays, {k: 2 * v for k, v in arrays.items()}])
  np.testing.assert_array_equal(runs['counts'].values[1], 2 * arrays['counts'])


def test_networks_and_optimizers_by_name():
  x = dataset().train.x
  model = script.network('mlp', 3, x, hidden=[7], standardize=True)
  params, stats = model.init(jax.random.key(0))
  assert params['Dense_0']['kernel'].shape == (2, 7)
  scaled = (x - x.mean(0)) / x.std(0)
  outputs, _ = model.apply(params, stats, x, None, False)
  plain = script.network('mlp', 3, x, hidden=[7])
  expected, _ = plain.apply(params, stats, scaled, None, False)
  np.testing.assert_allclose(outputs.logits, expected.logits, atol=1e-5)
  with pytest.raises(ValueError, match="unknown dtype 'float8'"):
    script.network('mlp', 3, x, dtype='float8')

  # Two steps of SGD with momentum and L2, by hand.
  tx = script.optimizer('sgd', 0.1, 0.5)
  p, state, velocity = np.float32(2), tx.init(np.float32(2)), 0.0
  for gradient in (1.0, 3.0):
    update, state = tx.update(np.float32(gradient), state, p)
    velocity = 0.9 * velocity + gradient + 0.5 * p
    np.testing.assert_allclose(update, -0.1 * velocity, rtol=1e-6)
    p = np.float32(p + update)
  for name in ('adam', 'first_adam'):
    tx = script.optimizer(name, 0.1)
    update, _ = tx.update(np.float32(3), tx.init(p), p)
    np.testing.assert_allclose(update, -0.1, rtol=1e-3)
  with pytest.raises(ValueError, match="unknown optimizer 'lion'"):
    script.optimizer('lion', 0.1)


def test_noise_belongs_to_the_file_not_to_the_split(tmp_path):
  """Tests of `data.noisy`, which scripts draw their labels by."""
  key, whole = jax.random.key(3), dataset()
  one = data.noisy(key, whole, 'symmetric', 0.5)
  drawn = noise.corrupt(key, np.arange(40) % 4, noise.symmetric(4, 0.5))
  np.testing.assert_array_equal(one.draw.labels, drawn.labels)
  np.testing.assert_array_equal(one.train, drawn.labels[whole.train.id])
  np.testing.assert_array_equal(
    one.validation, drawn.labels[whole.validation.id]
  )
  # Written, and read again by the name of the file; not written twice.
  data.save_noisy(tmp_path, [one])
  file = tmp_path / 'draw_0.npz'
  again = data.noisy(key, whole, 'symmetric', 0.5, file=file)
  np.testing.assert_array_equal(again.train, one.train)
  data.save_noisy(tmp_path / 'new', [again])
  assert not (tmp_path / 'new').exists()
  with pytest.raises(ValueError, match='cifar10n_worse is read from files'):
    data.noisy(key, whole, 'cifar10n_worse', 0.5)
  with pytest.raises(ValueError, match="unknown noise 'symetric'"):
    data.noisy(key, whole, 'symetric', 0.5)
