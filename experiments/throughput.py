"""How fast it is: losses against a copy in memory, steps, epochs, inference.

- `losses`: value and gradient of a loss against a pass over its logits.
- `steps`: training steps of methods against those of plain cross-entropy.
- `epochs`: `fit` against its bare steps, and streamed from the host or not.
- `em`: steps of imprecise label learning against those of cross-entropy.
- `few_labels`: steps of FlexMatch and its kin against those of FixMatch.
- `meta`: steps of meta rescaling against those of cross-entropy.
- `counts`: inference from the counts of bags against their likelihood alone.
- `belief`: an iteration of belief propagation against a pass over its ties.
- `neighbors`: nearest neighbors against scikit-learn's.
- `pgmax_comparison`: belief propagation beside PGMax, if it is installed.
- `cleanlab_comparison`: confident learning beside cleanlab, if it is installed.

  python experiments/throughput.py                   # twelve minutes
  python experiments/throughput.py --sections losses --dtype bfloat16
  python experiments/throughput.py --sections steps --devices 8 \\
    --parallel shard_map

The files of `experiments/benchmarks/` say more of each. An option is read by
the sections that its help names; one that names none is read by all.

A measurement and what it is compared with are taken in turn, and the ratio is
the median of theirs, turn by turn: a machine whose speed drifts, or is shared,
drifts in both. The whole is repeated in processes of its own and the median of
these is reported. Compilation is timed apart.

Out come tables, `results.jsonl` (one line for each row: `name, shape, dtype,
ms, floor_ms, ratio` and more) and a bar plot for each section.

On CPU the processes run with glibc's malloc set to keep what is freed: buffers
of this size are otherwise returned to the system and faulted in again at every
call, which takes longer than most losses. One arena, since those of XLA's
threads hold no more than 64 MB.
"""

import dataclasses
import os

from benchmarks import (
  belief,
  cleanlab_comparison,
  clock,
  counts,
  em,
  epochs,
  few_labels,
  losses,
  meta,
  neighbors,
  pgmax_comparison,
  steps,
)
import jax

from jnl.base import check, check_name
from jnl.train import option, options, report, run

SECTIONS = {
  'losses': losses,
  'steps': steps,
  'epochs': epochs,
  'em': em,
  'few_labels': few_labels,
  'meta': meta,
  'counts': counts,
  'belief': belief,
  'neighbors': neighbors,
  'pgmax_comparison': pgmax_comparison,
  'cleanlab_comparison': cleanlab_comparison,
}


@dataclasses.dataclass(frozen=True)
class Config(
  cleanlab_comparison.Options,
  pgmax_comparison.Options,
  neighbors.Options,
  belief.Options,
  counts.Options,
  few_labels.Options,
  em.Options,  # and those of meta
  epochs.Options,
  steps.Options,
  losses.Options,
):
  """The options of all sections, and what to do with them."""

  sections: tuple[str, ...] = option(tuple(SECTIONS), 'what to measure')
  processes: int = option(3, 'how often the whole is repeated')
  out: str = option('results/throughput', 'folder for what comes out')
  smoke: bool = option(False, 'seconds only: three sections, small shapes')


def main(config: Config) -> None:
  """Measures in processes of its own -> medians -> report."""
  if config.smoke:
    chosen = config.sections != Config.sections
    few = config.sections if chosen else ('losses', 'epochs', 'neighbors')
    config = dataclasses.replace(config, rounds=1, sections=few)
    for section in SECTIONS.values():
      config = dataclasses.replace(config, **section.SMOKE)
  with options():
    check_options(config)
  if clock.ROWS in os.environ:
    report.write_jsonl(os.environ[clock.ROWS], measure(config))
    return
  with options():
    config = dataclasses.replace(config, out=report.own_folder(config.out))
  if config.smoke:
    runs = [measure(config)]
  else:
    turns = range(config.processes)
    runs = [clock.in_process(__file__, config) for _ in turns]
  rows = clock.medians(runs)
  for name in config.sections:
    own = [row for row in rows if row['section'] == name]
    show(name, own)
    plot(config, name, own)
  report.write_jsonl(f'{config.out}/results.jsonl', rows)
  print(f'\nwrote results.jsonl and a plot for each section to {config.out}')


def check_options(config: Config) -> None:
  """Raises for an option that cannot be, before any work."""
  check(config.sections, f'sections must name some of {tuple(SECTIONS)}')
  check_name('dtype', config.dtype, ('float32', 'bfloat16'))
  for name in ('devices', 'rounds', 'processes'):
    value = getattr(config, name)
    check(value >= 1, f'{name} must be at least 1, got {value}')
  for section in config.sections:
    check_name('section', section, SECTIONS)
    SECTIONS[section].check_options(config)


def measure(config: Config) -> list[dict]:
  """All rows of this process."""
  check(
    config.devices <= jax.device_count(),
    f'devices must be at most {jax.device_count()}, got {config.devices}',
  )
  device = f'{config.devices} x {jax.devices()[0].device_kind}'
  common = {'dtype': config.dtype, 'device': device, 'rounds': config.rounds}
  return [
    {'experiment': 'throughput', 'section': section, **row, **common}
    for section in config.sections
    for row in SECTIONS[section].measure(config)
  ]


def show(section: str, rows: list[dict]) -> None:
  """Prints the table of a section."""
  header = ['name', 'ms', 'floor ms', 'ratio', 'of each process', 'compile s']
  lines = [
    [
      row['name'],
      f'{row["ms"]:.2f}',
      f'{row["floor_ms"]:.2f}',
      f'{row["ratio"]:.2f}',
      ' '.join(f'{ratio:.2f}' for ratio in row['ratios']),
      f'{row["compile_s"]:.2f}',
      row.get('kind', ''),
      row.get('note', ''),
    ]
    for row in rows
  ]
  first = rows[0]
  print(f'\n{section}: {first["shape"]} {first["dtype"]}, {first["device"]}')
  print(report.table([*header, 'kind', 'note'], lines))


def plot(config: Config, section: str, rows: list[dict]) -> None:
  """Plots the ratios of a section."""
  report.plot_bars(
    f'{config.out}/{section}.png',
    {row['name']: row['ratio'] for row in rows},
    kinds=[row.get('kind', '') for row in rows],
    title=f'{section}: {rows[0]["shape"]} {config.dtype}, {rows[0]["device"]}',
    xlabel=SECTIONS[section].UNIT,
  )


if __name__ == '__main__':
  run(main, Config, __doc__)
