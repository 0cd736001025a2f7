"""Methods: a way to train for each paper, by what is known of the labels.

`from jnl import methods; methods.elr(model, tx, num_examples=..., ...)`. Each
returns a `jnl.Method`, for `jnl.train.fit` or a loop of one's own.

Labels that are wrong
  supervised          any loss of `jnl.losses`, most of them robust
  elr                 early-learning regularization; `mislabeled` reads it
  cpc                 class prototypes; `clean_posterior` says whom to trust
  ill_noisy           EM with a transition matrix; `learned_transition` gives it
Wrong labels, and a few clean examples (a stream `meta`)
  l2rw                weights by agreement with a clean batch
  mwn                 Meta-Weight-Net; `weigher_optimizer` is the official one
  mslc                a label, its memory and the prediction, mixed
  mlc                 a second network corrects the labels
Wrong labels, the stream `meta` drawn from them too
  storm               a rescaler that teaches itself
Sets of candidates
  proden              progressive identification of the true label
  ill_partial         EM on sets
Few labels
  ill_semi            EM on labeled and unlabeled examples
Labels of every kind
  ill_mixed           noisy, partial and missing ones in one batch
Bags: proportions, counts, any evidence
  supervised_bags     any loss of whole bags
  dllp                mean predictions matched
  easy_llp            the loss of instances, estimated
  weak_em             EM on the posterior of any evidence (`jnl.automata`)
  llp_bp              counts and neighbors, by belief propagation, in rounds
  refine              its parts: `similarity_graph`, `pseudo_labels`, this
By name
  build               a method or a loss, for a training set of a size
  known_names         the names there are
  takes               whether one has an argument
Settings that papers published
  published           for a method or loss, data set, noise and rate
  known_settings      all of a method
"""

from typing import TYPE_CHECKING

from jnl._lazy import names_of
from jnl.steps import supervised as supervised
from jnl.steps import supervised_bags as supervised_bags

if TYPE_CHECKING:  # "as" says to type checkers that it is handed on
  from jnl.methods._cpc import Believed as Believed
  from jnl.methods._cpc import Cleaner as Cleaner
  from jnl.methods._cpc import clean_posterior as clean_posterior
  from jnl.methods._cpc import cpc as cpc
  from jnl.methods._dllp import dllp as dllp
  from jnl.methods._easy_llp import easy_llp as easy_llp
  from jnl.methods._elr import elr as elr
  from jnl.methods._elr import mislabeled as mislabeled
  from jnl.methods._ill import Marginal as Marginal
  from jnl.methods._ill import ill_mixed as ill_mixed
  from jnl.methods._ill import ill_noisy as ill_noisy
  from jnl.methods._ill import ill_partial as ill_partial
  from jnl.methods._ill import ill_semi as ill_semi
  from jnl.methods._ill import learned_transition as learned_transition
  from jnl.methods._l2rw import Reweighted as Reweighted
  from jnl.methods._l2rw import l2rw as l2rw
  from jnl.methods._llp_bp import Propagated as Propagated
  from jnl.methods._llp_bp import PseudoLabels as PseudoLabels
  from jnl.methods._llp_bp import llp_bp as llp_bp
  from jnl.methods._llp_bp import pseudo_labels as pseudo_labels
  from jnl.methods._llp_bp import refine as refine
  from jnl.methods._llp_bp import similarity_graph as similarity_graph
  from jnl.methods._mlc import Corrected as Corrected
  from jnl.methods._mlc import mlc as mlc
  from jnl.methods._mslc import Purified as Purified
  from jnl.methods._mslc import mslc as mslc
  from jnl.methods._mwn import Weighed as Weighed
  from jnl.methods._mwn import mwn as mwn
  from jnl.methods._mwn import weigher_optimizer as weigher_optimizer
  from jnl.methods._named import build as build
  from jnl.methods._named import known_names as known_names
  from jnl.methods._named import takes as takes
  from jnl.methods._proden import proden as proden
  from jnl.methods._published import Settings as Settings
  from jnl.methods._published import known_settings as known_settings
  from jnl.methods._published import published as published
  from jnl.methods._storm import Rescaled as Rescaled
  from jnl.methods._storm import storm as storm
  from jnl.methods._weak_em import weak_em as weak_em

_NAMES = {
  '_cpc': ('Believed', 'Cleaner', 'clean_posterior', 'cpc'),
  '_dllp': ('dllp',),
  '_easy_llp': ('easy_llp',),
  '_elr': ('elr', 'mislabeled'),
  '_ill': (
    'Marginal',
    'ill_mixed',
    'ill_noisy',
    'ill_partial',
    'ill_semi',
    'learned_transition',
  ),
  '_l2rw': ('Reweighted', 'l2rw'),
  '_llp_bp': (
    'Propagated',
    'PseudoLabels',
    'llp_bp',
    'pseudo_labels',
    'refine',
    'similarity_graph',
  ),
  '_mlc': ('Corrected', 'mlc'),
  '_mslc': ('Purified', 'mslc'),
  '_mwn': ('Weighed', 'mwn', 'weigher_optimizer'),
  '_named': ('build', 'known_names', 'takes'),
  '_proden': ('proden',),
  '_published': ('Settings', 'known_settings', 'published'),
  '_storm': ('Rescaled', 'storm'),
  '_weak_em': ('weak_em',),
  '': ('supervised', 'supervised_bags'),
}
"""Which file has what: a file is loaded when one of its names is first used."""

if not TYPE_CHECKING:  # to mypy, a name that is not there is an error
  __getattr__, __dir__ = names_of(__name__, _NAMES)
  __all__ = __dir__()
