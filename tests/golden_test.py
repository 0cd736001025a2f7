"""Numbers computed with official implementations, against the public API.

Reads every `<system>__<function>__<case>.npz` in the folder JNL_GOLDEN
(default: `golden` beside this file) and runs it through a table `(system,
function) -> check`; sizes and hyperparameters come from the file. A check must
read all the numbers of a file, or say why not; a variant that a file lacks is
not missed. See golden_case.py. `-m ''` runs all files in float64 and one of
each function in float32; JNL_GOLDEN=tests/golden all in every precision.
"""

import collections
import functools
import os
import pathlib

import golden_adapt
import golden_aggregate
import golden_audit
import golden_automata
import golden_belief
from golden_case import Case, side_by_side
import golden_complementary
import golden_cotta
import golden_crowd
import golden_em
import golden_losses
import golden_meta
import golden_noise
import golden_proportions
import golden_pseudo
import golden_pu
import golden_rules
import golden_select
import golden_teacher
import golden_transition
import jax
import numpy as np
import pytest

DEFAULT = pathlib.Path(__file__).parent / 'golden'
FOLDER = pathlib.Path(os.environ.get('JNL_GOLDEN', DEFAULT))
FILES = sorted(FOLDER.glob('*.npz'))
# Who brings files of their own wants all of them, whatever they cost.
OWN = FOLDER == DEFAULT
pytestmark = [] if OWN else [pytest.mark.unbounded]
CHECKS = {
  **golden_adapt.CHECKS,
  **golden_aggregate.CHECKS,
  **golden_audit.CHECKS,
  **golden_automata.CHECKS,
  **golden_belief.CHECKS,
  **golden_complementary.CHECKS,
  **golden_cotta.CHECKS,
  **golden_crowd.CHECKS,
  **golden_em.CHECKS,
  **golden_losses.CHECKS,
  **golden_meta.CHECKS,
  **golden_noise.CHECKS,
  **golden_proportions.CHECKS,
  **golden_pseudo.CHECKS,
  **golden_pu.CHECKS,
  **golden_rules.CHECKS,
  **golden_select.CHECKS,
  **golden_teacher.CHECKS,
  **golden_transition.CHECKS,
}
# The first stage has a file of each function, but none of these costly ones.
SLOW = {
  'docta__hoc_simifeat__k3',
  'docta__hoc_simifeat__k5',
  'bootstrap__m_dyr_h__public_a',
  'bp__gibbs__public_bag_star_tree',
  'bp__gibbs__public_chain_tree',
  'bp__gibbs__public_two_bags_one_edge_tree',
  'elr__sequence__public_c10_asym',
  'ill__noisy_label_step__public_c10_eye',
  'ill__noisy_label_step__public_c20_scale2p25',
  'ill__partial_label_step__public_c10_full',
  'ill__partial_label_step__public_c10_q0p3',
  'llp_bp__combined_run_map_bp__public_bag8_defaults',
  'llp_bp__combined_run_map_bp__public_excess',
  'elr_plus__step__public_c10',
  'elr_plus__step__public_c100',
  'llp_losses__binary__public_b4m6',
  'llp_losses__binary__public_extreme',
  'mwn__step__public_big_loss',
  'mwn__step__public_linear',
  'mwn__step__public_mlp',
  'mwn__step__public_mlp_3steps',
  'robust__truncated_gce__public_b',
  'shrinkmatch__shrink_loss__allcertain',
  'sop__step__public_clipped_twice',
  'sop__step__public_init_1e8',
  'sop__step__public_plain',
  'storm__step__public_adam_mlp',
  'storm__step__public_sgd_imbalanced',
  'storm__step__public_sgd_linear_3c',
  'storm__step__public_sgd_mlp',
}
# What enumeration checks in tests/automata and tests/belief in any case.
ENUMERATED = ('nfa__', 'bp__gibbs__', 'llp_bp__')
# Of these that is all there is to say in float32.
DOUBLE = ('nfa__label_proportion__', 'nfa__multiple_instance__', 'bp__gibbs__')


def pair(path):
  return tuple(path.stem.split('__')[:2])


def load(path, precision):
  with np.load(path) as file:
    return Case(dict(file), precision)


def hardest(paths):
  """The file whose numbers float32 can hold the least."""
  signs = ('underflow', 'extreme', 'big')
  return max(paths, key=lambda path: [sign in path.stem for sign in signs])


def in_single():
  """The files to run in float32 beside float64: one of each function.

  The mathematics of the others is that of float64; rounding is the function's,
  and of every loss tests/losses/property_test.py says how it rounds.
  """
  alike = collections.defaultdict(list)
  for path in FILES:
    if not path.stem.startswith(DOUBLE):
      alike[pair(path)].append(path)
  return set(map(hardest, alike.values())) if OWN else set(FILES)


def in_first_stage():
  """A file of each function, unless all are costly or enumerated."""
  first = {}
  for path in FILES:
    if path.stem not in SLOW and not path.stem.startswith(ENUMERATED):
      first.setdefault(pair(path), path)
  return set(first.values())


def runs():
  """(file, precision, whether it is slow): all that there is in the table."""
  single, first = in_single(), in_first_stage()
  for path in FILES:
    if pair(path) in CHECKS:
      precisions = load(path, 'f32').precisions()
      if path not in single:
        precisions = precisions[-1:]
      for precision in precisions:
        # float32 only where there is nothing else: the mathematics is the same.
        slow = path not in first or precision != precisions[-1]
        yield path, precision, slow and OWN


def check_of(path):
  """The check, and what computes for several files what it yields."""
  entry = CHECKS[pair(path)]
  return entry if isinstance(entry, tuple) else (entry, side_by_side)


def batches():
  """By (file, precision): the files that are computed together, a few."""
  alike = collections.defaultdict(list)
  for path, precision, slow in RUNS:
    alike[check_of(path)[1], precision, slow].append(path)
  for (way, precision, _), paths in alike.items():
    some = BATCH if way is side_by_side else len(paths)
    for start in range(0, len(paths), some):
      batch = tuple(paths[start : start + some])
      yield from (((path, precision), batch) for path in batch)


RUNS, BATCH = list(runs()), 6
TOGETHER = dict(batches())


@functools.cache
def computed(paths, precision):
  """By file: what its check asks for."""
  checks, ways = zip(*map(check_of, paths), strict=True)
  with jax.enable_x64(precision == 'f64'):
    asked = [
      next(check(load(path, precision)))
      for check, path in zip(checks, paths, strict=True)
    ]
    return dict(zip(paths, ways[0](asked), strict=True))


def compare(path, case):
  """Against what was computed; no number of the case may be left out."""
  check, _ = check_of(path)
  found = computed(TOGETHER[path, case.precision], case.precision)[path]
  with jax.enable_x64(case.precision == 'f64'):
    running = check(case)
    next(running)
    with pytest.raises(StopIteration):
      running.send(found)
  assert not case.unread(), f'{path.name}: not compared: {case.unread()}'


@pytest.mark.parametrize(
  ('path', 'precision'),
  [
    pytest.param(
      path,
      precision,
      id=f'{path.stem}-{precision}',
      marks=[pytest.mark.slow] if slow else [],
    )
    for path, precision, slow in RUNS
  ],
)
def test_golden(path, precision):
  case = load(path, precision)
  compare(path, case)
  assert case.results, f'{path.name}: nothing was compared'


# Of each function a file and its precision, of the first stage if it has one.
ONE_EACH = {
  pair(path): (path, precision, slow)
  for path, precision, slow in sorted(RUNS, key=lambda run: not run[2])
}


@pytest.mark.parametrize(
  'function',
  [
    pytest.param(
      function,
      id='__'.join(function),
      marks=[pytest.mark.slow] if slow else [],
    )
    for function, (_, _, slow) in sorted(ONE_EACH.items())
  ],
)
def test_a_number_that_a_file_lacks_is_not_missed(function):
  """Taken away one by one, in both precisions: the others are compared."""
  path, precision, _ = ONE_EACH[function]
  if check_of(path)[1] is list:
    pytest.skip('computes in its comparison: too slow to repeat')
  whole = load(path, precision)
  compare(path, whole)
  for name in whole.results - whole.inputs:
    twins = {name, name[:-3] + 'f32', name[:-3] + 'f64'}
    rest = {k: v for k, v in whole.arrays.items() if k not in twins}
    compare(path, Case(rest, precision))


def test_every_check_has_a_file():
  """A misspelt name in the table would otherwise check nothing."""
  assert set(CHECKS) <= {pair(path) for path in DEFAULT.glob('*.npz')}


def test_folder_is_not_empty():
  assert FILES, f'no golden files in {FOLDER}'


def test_report_what_is_not_built(record_property, capsys):
  """Names the files whose function has no check yet; their number may fall."""
  missing = sorted(
    {'__'.join(pair(p)) for p in FILES} - {'__'.join(key) for key in CHECKS}
  )
  record_property('not_built', missing)
  with capsys.disabled():
    for name in missing:
      print(f'\nnot built: {name}', end='')
  # The folder of the repository holds only what is built.
  assert FOLDER != DEFAULT or not missing
