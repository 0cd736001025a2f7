"""Methods: a way to train for each paper, by what is known of the labels.

`from jnl import methods; methods.elr(model, tx, num_examples=..., ...)`. Each
returns a `jnl.Method`, for `jnl.train.fit` or a loop of one's own.

Labels that are wrong
  supervised          any loss of `jnl.losses`, most of them robust
  elr                 early-learning regularization; `mislabeled` reads it
  sop                 noise of each label learned; `learned_noise` reads it
  sop_plus            the same, a strong view, and no class that dies out
  gjs                 two views and the label, each drawn to their mean
  dynamic_bootstrap   a mixture of losses weighs label and guess; mixup
  cores               sure predictions rewarded, doubtful labels sieved out
  peer                cross-entropy less that of shuffled pairs
  cpc                 class prototypes; `clean_posterior` says whom to trust
The same, by two networks
  divide_mix          for each other they divide labels from none
  elr_plus            ELR, with averages of weights, and mixup
  co_teaching         each learns the small losses of the other
  co_teaching_plus    the same where they disagree
  decoupling          all labels where they disagree
  jocor               small losses, and agreement
The same, by a transition matrix, which `estimated_transition` reads
  forward_t           given or of anchors, before the loss
  dual_t              the same, by way of the predicted classes
  t_revision          it weighs examples, and is revised at last
  vol_min             learned with the network, of least volume
  ill_noisy           EM; `learned_transition` reads this one
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
Several labels that hold, of which some are known
  pu_mlc              the others unlabeled, not negative; mixed examples
Few labels
  ill_semi            EM on labeled and unlabeled examples
  pseudo_label        sure guesses
  uda                 of a weak view, sharpened, on a strong one
  fixmatch            of a weak view, on a strong one
  flexmatch           surer where a class has been learned
  freematch           as sure as the network is, class by class
  softmatch           all guesses, the unsure ones less
  adamatch            as sure as labeled examples, and aligned with them
  dash                guesses of a small loss, smaller and smaller
  shrinkmatch         unsure guesses too, among fewer classes
  weak_strong         the step of all these, with any rule of `jnl.pseudo`
  mix_match           sharpened guesses, mixed with labels and each other
  mean_teacher        what the average of the network says of another view
  fst                 guesses of an average that looks ahead
The same in rounds, with any learner, scikit-learn's too
  self_train          fitted, guesses that count added, and fitted again
  fpl                 once, the k of each class that are most probably of it
  ifpl                in rounds
  grip                in rounds, more and more of each class
  class_vectors       their model: cosines with a vector of each class
  fit_vectors         a learner made of it
Labels of every kind
  ill_mixed           noisy, partial and missing ones in one batch
Bags: proportions, counts, any evidence
  supervised_bags     any loss of whole bags
  dllp                mean predictions matched
  easy_llp            the loss of instances, estimated
  weak_em             EM on the posterior of any evidence (`jnl.automata`)
  llp_bp              counts and neighbors, by belief propagation, in rounds
  refine              its parts: `similarity_graph`, `pseudo_labels`, this
A stream without labels, at test time; each is a `jnl.Adapter`
  batch_norm_adapt    normalized by the batch, nothing learned
  tent                its entropy made smaller, by the norm layers alone
  cotta               an average of weights, over views where unsure
  confidence_quantile its threshold
  adand               a detector of what is no class, by a frozen classifier
  noise_images        to inject for it
By name
  build               a method or a loss, for a training set of a size
  known_names         the names there are
  takes               whether one has an argument
  TWO_VIEWS           those that want a second view, `x_strong`
Settings that papers published
  published           for a method or loss, data set, noise and rate
  known_settings      all of a method
"""

from typing import TYPE_CHECKING

from jnl._lazy import names_of
from jnl.steps import supervised as supervised
from jnl.steps import supervised_bags as supervised_bags

if TYPE_CHECKING:  # "as" says to type checkers that it is handed on
  from jnl.methods._adand import Ring as Ring
  from jnl.methods._adand import Rings as Rings
  from jnl.methods._adand import adand as adand
  from jnl.methods._adand import noise_images as noise_images
  from jnl.methods._class_vectors import class_vectors as class_vectors
  from jnl.methods._class_vectors import fit_vectors as fit_vectors
  from jnl.methods._co_teaching import co_teaching as co_teaching
  from jnl.methods._co_teaching import co_teaching_plus as co_teaching_plus
  from jnl.methods._co_teaching import decoupling as decoupling
  from jnl.methods._cores import cores as cores
  from jnl.methods._cotta import Adapting as Adapting
  from jnl.methods._cotta import confidence_quantile as confidence_quantile
  from jnl.methods._cotta import cotta as cotta
  from jnl.methods._cpc import Believed as Believed
  from jnl.methods._cpc import Cleaner as Cleaner
  from jnl.methods._cpc import clean_posterior as clean_posterior
  from jnl.methods._cpc import cpc as cpc
  from jnl.methods._divide_mix import Divided as Divided
  from jnl.methods._divide_mix import divide_mix as divide_mix
  from jnl.methods._dllp import dllp as dllp
  from jnl.methods._dual_t import dual_t as dual_t
  from jnl.methods._dynamic_bootstrap import (
    dynamic_bootstrap as dynamic_bootstrap,
  )
  from jnl.methods._easy_llp import easy_llp as easy_llp
  from jnl.methods._elr import elr as elr
  from jnl.methods._elr import mislabeled as mislabeled
  from jnl.methods._elr_plus import Taught as Taught
  from jnl.methods._elr_plus import elr_plus as elr_plus
  from jnl.methods._estimated import Estimated as Estimated
  from jnl.methods._estimated import WithMatrix as WithMatrix
  from jnl.methods._estimated import (
    estimated_transition as estimated_transition,
  )
  from jnl.methods._forward_t import forward_t as forward_t
  from jnl.methods._fst import fst as fst
  from jnl.methods._gjs import gjs as gjs
  from jnl.methods._ill import Marginal as Marginal
  from jnl.methods._ill import ill_mixed as ill_mixed
  from jnl.methods._ill import ill_noisy as ill_noisy
  from jnl.methods._ill import ill_partial as ill_partial
  from jnl.methods._ill import ill_semi as ill_semi
  from jnl.methods._ill import learned_transition as learned_transition
  from jnl.methods._jocor import jocor as jocor
  from jnl.methods._l2rw import Reweighted as Reweighted
  from jnl.methods._l2rw import l2rw as l2rw
  from jnl.methods._llp_bp import Propagated as Propagated
  from jnl.methods._llp_bp import PseudoLabels as PseudoLabels
  from jnl.methods._llp_bp import llp_bp as llp_bp
  from jnl.methods._llp_bp import pseudo_labels as pseudo_labels
  from jnl.methods._llp_bp import refine as refine
  from jnl.methods._llp_bp import similarity_graph as similarity_graph
  from jnl.methods._mean_teacher import mean_teacher as mean_teacher
  from jnl.methods._mix_match import mix_match as mix_match
  from jnl.methods._mlc import Corrected as Corrected
  from jnl.methods._mlc import mlc as mlc
  from jnl.methods._mslc import Purified as Purified
  from jnl.methods._mslc import mslc as mslc
  from jnl.methods._mwn import Weighed as Weighed
  from jnl.methods._mwn import mwn as mwn
  from jnl.methods._mwn import weigher_optimizer as weigher_optimizer
  from jnl.methods._named import TWO_VIEWS as TWO_VIEWS
  from jnl.methods._named import build as build
  from jnl.methods._named import known_names as known_names
  from jnl.methods._named import takes as takes
  from jnl.methods._peer import peer as peer
  from jnl.methods._proden import proden as proden
  from jnl.methods._pu_mlc import pu_mlc as pu_mlc
  from jnl.methods._published import Settings as Settings
  from jnl.methods._published import known_settings as known_settings
  from jnl.methods._published import published as published
  from jnl.methods._self_training import Learner as Learner
  from jnl.methods._self_training import SelfTrained as SelfTrained
  from jnl.methods._self_training import fpl as fpl
  from jnl.methods._self_training import grip as grip
  from jnl.methods._self_training import ifpl as ifpl
  from jnl.methods._self_training import self_train as self_train
  from jnl.methods._semi_supervised import adamatch as adamatch
  from jnl.methods._semi_supervised import dash as dash
  from jnl.methods._semi_supervised import fixmatch as fixmatch
  from jnl.methods._semi_supervised import flexmatch as flexmatch
  from jnl.methods._semi_supervised import freematch as freematch
  from jnl.methods._semi_supervised import pseudo_label as pseudo_label
  from jnl.methods._semi_supervised import softmatch as softmatch
  from jnl.methods._semi_supervised import uda as uda
  from jnl.methods._shrinkmatch import auxiliary_head as auxiliary_head
  from jnl.methods._shrinkmatch import shrinkmatch as shrinkmatch
  from jnl.methods._sop import SparseNoise as SparseNoise
  from jnl.methods._sop import learned_noise as learned_noise
  from jnl.methods._sop import sop as sop
  from jnl.methods._sop import sop_plus as sop_plus
  from jnl.methods._storm import Rescaled as Rescaled
  from jnl.methods._storm import storm as storm
  from jnl.methods._t_revision import t_revision as t_revision
  from jnl.methods._tent import batch_norm_adapt as batch_norm_adapt
  from jnl.methods._tent import tent as tent
  from jnl.methods._vol_min import vol_min as vol_min
  from jnl.methods._weak_em import weak_em as weak_em
  from jnl.methods._weak_strong import Guessing as Guessing
  from jnl.methods._weak_strong import weak_strong as weak_strong

_NAMES = {
  '_adand': ('Ring', 'Rings', 'adand', 'noise_images'),
  '_class_vectors': ('class_vectors', 'fit_vectors'),
  '_co_teaching': ('co_teaching', 'co_teaching_plus', 'decoupling'),
  '_cores': ('cores',),
  '_cotta': ('Adapting', 'confidence_quantile', 'cotta'),
  '_cpc': ('Believed', 'Cleaner', 'clean_posterior', 'cpc'),
  '_divide_mix': ('Divided', 'divide_mix'),
  '_dllp': ('dllp',),
  '_dual_t': ('dual_t',),
  '_dynamic_bootstrap': ('dynamic_bootstrap',),
  '_easy_llp': ('easy_llp',),
  '_elr': ('elr', 'mislabeled'),
  '_elr_plus': ('Taught', 'elr_plus'),
  '_estimated': ('Estimated', 'WithMatrix', 'estimated_transition'),
  '_forward_t': ('forward_t',),
  '_fst': ('fst',),
  '_gjs': ('gjs',),
  '_ill': (
    'Marginal',
    'ill_mixed',
    'ill_noisy',
    'ill_partial',
    'ill_semi',
    'learned_transition',
  ),
  '_jocor': ('jocor',),
  '_l2rw': ('Reweighted', 'l2rw'),
  '_llp_bp': (
    'Propagated',
    'PseudoLabels',
    'llp_bp',
    'pseudo_labels',
    'refine',
    'similarity_graph',
  ),
  '_mean_teacher': ('mean_teacher',),
  '_mix_match': ('mix_match',),
  '_mlc': ('Corrected', 'mlc'),
  '_mslc': ('Purified', 'mslc'),
  '_mwn': ('Weighed', 'mwn', 'weigher_optimizer'),
  '_named': ('TWO_VIEWS', 'build', 'known_names', 'takes'),
  '_peer': ('peer',),
  '_proden': ('proden',),
  '_published': ('Settings', 'known_settings', 'published'),
  '_pu_mlc': ('pu_mlc',),
  '_self_training': (
    'Learner',
    'SelfTrained',
    'fpl',
    'grip',
    'ifpl',
    'self_train',
  ),
  '_semi_supervised': (
    'adamatch',
    'dash',
    'fixmatch',
    'flexmatch',
    'freematch',
    'pseudo_label',
    'softmatch',
    'uda',
  ),
  '_shrinkmatch': ('auxiliary_head', 'shrinkmatch'),
  '_sop': ('SparseNoise', 'learned_noise', 'sop', 'sop_plus'),
  '_storm': ('Rescaled', 'storm'),
  '_t_revision': ('t_revision',),
  '_tent': ('batch_norm_adapt', 'tent'),
  '_vol_min': ('vol_min',),
  '_weak_em': ('weak_em',),
  '_weak_strong': ('Guessing', 'weak_strong'),
  '': ('supervised', 'supervised_bags'),
}
"""Which file has what: a file is loaded when one of its names is first used."""

if not TYPE_CHECKING:  # to mypy, a name that is not there is an error
  __getattr__, __dir__ = names_of(__name__, _NAMES)
  __all__ = __dir__()
