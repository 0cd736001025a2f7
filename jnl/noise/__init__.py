"""Wrong labels, made to measure: matrices, draws, candidate sets, bags, files.

A label generator returns `NoisyLabels(labels, flipped, probs)`; matrices are
`T[i, j] = P(noisy = j | clean = i)`. Official code draws with numpy or Python
generators: the distribution here is theirs, the draws are not. With y the clean
labels, c classes and a rate r, the noise of

  Patrini, Co-teaching, JoCoR, T-Revision, VolMinNet
    symmetric     corrupt(key, y, symmetric(c, r))
    pair flip     corrupt(key, y, pair_flip(c, r))
    MNIST         corrupt(key, y, mnist_asymmetric(r))            also APL
    CIFAR-10      corrupt(key, y, cifar10_asymmetric(r))
  ELR, SOP, GJS, DivideMix, GLWS, ILL
    symmetric     fixed_count(key, y, symmetric_inclusive(c, 1), r)
  APL
    symmetric     fixed_count(key, y, symmetric(c, 1), r, per_class=True)
  CIFAR-10 asymmetric
    GLWS, ILL     fixed_count(key, y, cifar10_asymmetric(1), r, per_class=True)
    DivideMix     fixed_count(key, y, cifar10_asymmetric(1), r)
    ELR, SOP, GJS, APL   cifar10_asymmetric_in_place(key, y, r)
  CIFAR-100 asymmetric
    Patrini, ELR, APL, LRT   corrupt(key, y, cifar100_index_blocks(r))
    GLWS, ILL     corrupt(key, y, cifar100_pair_swaps(key2, r))
    GJS           fixed_count(key, y, cifar100_superclasses(1), r)
  instance dependent
    PDN (Xia)     part_dependent(key, x, y, c, r)
    CORES         part_dependent(key, x, y, c, r, shared=True)
    PMD (PLC)     pmd(key, y, eta, kind=1, factor=1.43)
  partial labels  candidate_sets(key, y, c, q), noisy_candidate_sets
  complementary   corrupt(key, y, complementary(c)), complementary_sets
    biased        corrupt(key, y, complementary_biased(key2, c))
  bags            bags(key, n, num_bags, mean=10, std=1), cut_bags(order, m)
  bags of a table bags_of_ids(group), counts_of_ids(bags, {id: count});
                  of a DataFrame `jnl.data.from_table`
"""

from jnl.noise._bag_sets import (
  Bags,
  bags,
  bags_of_ids,
  check_whole_bags,
  counts_of_ids,
  counts_of_proportions,
  cut_bags,
  rows_of_bags,
)
from jnl.noise._complementary import (
  complementary,
  complementary_biased,
  complementary_sets,
)
from jnl.noise._draws import (
  NoisyLabels,
  cifar10_asymmetric_in_place,
  corrupt,
  corrupt_each,
  empirical_transition,
  fixed_count,
  noise_rate,
)
from jnl.noise._files import SavedDraw, load_draw, save_draw
from jnl.noise._instance import (
  binary_pmd,
  binary_pmd_rates,
  part_dependent,
  part_dependent_probs,
  pmd,
  pmd_probs,
  truncated_rates,
)
from jnl.noise._matrices import (
  CIFAR100_COARSE,
  cifar10_asymmetric,
  cifar100_index_blocks,
  cifar100_pair_swaps,
  cifar100_superclasses,
  class_imbalanced,
  class_map,
  mnist_asymmetric,
  pair_flip,
  symmetric,
  symmetric_inclusive,
)
from jnl.noise._sets import (
  Candidates,
  candidate_sets,
  noisy_candidate_sets,
)

__all__ = [
  'CIFAR100_COARSE',
  'Bags',
  'Candidates',
  'NoisyLabels',
  'SavedDraw',
  'bags',
  'bags_of_ids',
  'binary_pmd',
  'binary_pmd_rates',
  'candidate_sets',
  'check_whole_bags',
  'cifar10_asymmetric',
  'cifar10_asymmetric_in_place',
  'cifar100_index_blocks',
  'cifar100_pair_swaps',
  'cifar100_superclasses',
  'class_imbalanced',
  'class_map',
  'complementary',
  'complementary_biased',
  'complementary_sets',
  'corrupt',
  'corrupt_each',
  'counts_of_ids',
  'counts_of_proportions',
  'cut_bags',
  'empirical_transition',
  'fixed_count',
  'load_draw',
  'mnist_asymmetric',
  'noise_rate',
  'noisy_candidate_sets',
  'pair_flip',
  'part_dependent',
  'part_dependent_probs',
  'pmd',
  'pmd_probs',
  'rows_of_bags',
  'save_draw',
  'symmetric',
  'symmetric_inclusive',
  'truncated_rates',
]


def __dir__() -> list[str]:
  return __all__
